"""One member of each family here; the whole zoo by its own command, see ``zoo``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from lightning_reg import L1, L2, NonNegative, attach
from tests.third_party.optimizers import zoo

#: The mode, and what it is: "equal" or "refused".
EQUAL = dict.fromkeys(zoo.MODES, "equal")
FAMILIES = {
    "torch.SGD": EQUAL,
    "torch.Adamax": EQUAL,
    "torch.Adadelta": EQUAL,
    "torch.ASGD": EQUAL,
    "torch.Muon": {**EQUAL, "proximal": "refused"},
    "torch.LBFGS": {**dict.fromkeys(zoo.MODES, "refused"), "loss": "equal", "constraint": "equal"},
    "timm.AdaBelief": EQUAL,
    "timm.NAdamW": EQUAL,
    "timm.Lars": EQUAL,
    "timm.RMSpropTF": EQUAL,
    "timm.AdamP": {**EQUAL, "proximal": "refused"},
    "timm.Adahessian": {**EQUAL, "gradient": "refused", "proximal": "refused"},
    "pytorch_optimizer.AdaBelief": EQUAL,
    "pytorch_optimizer.Yogi": EQUAL,
    "pytorch_optimizer.Lamb": EQUAL,
    "pytorch_optimizer.AdamS": {**EQUAL, "proximal": "refused"},
    "pytorch_optimizer.Adalite": {**EQUAL, "proximal": "refused"},
    "pytorch_optimizer.Fromage": {**EQUAL, "decoupled": "refused", "proximal": "refused"},
    "pytorch_optimizer.SOAP": {**EQUAL, "proximal": "refused"},
    "torch_optimizer.Lamb": {**EQUAL, "decoupled": "refused"},
    "schedulefree.AdamWScheduleFree": {
        **dict.fromkeys(zoo.MODES, "refused"),
        "loss": "equal",
        "gradient": "equal",
    },
    "prodigyopt.Prodigy": {**EQUAL, "proximal": "refused"},
    "dadaptation.DAdaptSGD": {
        **dict.fromkeys(zoo.MODES, "refused"),
        "loss": "equal",
        "gradient": "equal",
    },
    "lion_pytorch.Lion": {**EQUAL, "proximal": "refused"},
    "torchao.AdamW8bit": {**EQUAL, "proximal": "refused"},
    "heavyball.AdamC": {**EQUAL, "proximal": "refused"},
    "heavyball.SFAdamW": {
        **dict.fromkeys(zoo.MODES, "refused"),
        "loss": "equal",
        "gradient": "equal",
    },
    "bitsandbytes.AdamW8bit": {**EQUAL, "proximal": "refused"},
    "bitsandbytes.LARS": {**EQUAL, "decoupled": "refused", "proximal": "refused"},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def member(name: str) -> zoo.Member:
    package, _, cls = name.partition(".")
    with zoo.quiet():
        pytest.importorskip(package)
    found = zoo.member_of(package, cls)
    if found is None:
        pytest.skip(f"no {name} in this version")
    return found


@pytest.mark.parametrize(
    ("name", "mode"),
    [  # one worker compiles torchao's steps, once
        pytest.param(name, mode, marks=pytest.mark.xdist_group("torchao") if "torchao" in name else ())
        for name in FAMILIES
        for mode in zoo.MODES
    ],
)
def test_equal_or_refused(name: str, mode: str) -> None:
    result = zoo.cell(member(name), mode)
    assert result.startswith(FAMILIES[name][mode]), result


def test_wrappers_are_refused_where_they_would_undo_it() -> None:
    with zoo.quiet():
        others = pytest.importorskip("pytorch_optimizer")
    model = nn.Linear(2, 2)
    sharp = others.SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    for apply in ("gradient", "decoupled", "proximal"):
        with pytest.raises(ValueError, match="attach to the optimizer inside it"):
            attach(model, sharp, L1(0.1) if apply == "proximal" else L2(0.1), apply=apply)  # type: ignore[arg-type]
    attach(model, sharp.base_optimizer, L1(0.1), apply="proximal")
    with pytest.raises(ValueError, match="NonNegative does not hold under SAM"):
        attach(model, sharp, NonNegative())


@pytest.mark.parametrize(
    ("name", "own", "kind"),
    [
        ("AdamC", {"normalized": True}, "corrected"),
        ("AdaBelief", {"fixed_decay": True}, "independent"),
        ("AdaBelief", {}, "lr"),
    ],
)
def test_each_kind_of_decay_is_that_of_another_library(name: str, own: dict[str, bool], kind: Any) -> None:
    cls = getattr(pytest.importorskip("pytorch_optimizer"), name)

    def run(ours: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Linear(4, 2, bias=False)
        options = {"weight_decouple": True, "weight_decay": 0.0 if ours else 0.1}
        optimizer = cls([{"params": list(model.parameters()), **({} if ours else own)}], lr=0.05, **options)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
        if ours:
            attach(model, optimizer, L2(0.1, decay=kind), apply="decoupled")
        for _ in range(5):
            optimizer.zero_grad()
            (model(torch.eye(4)) - 1.0).square().mean().backward()
            optimizer.step()
            schedule.step()
        return model.weight.detach()

    torch.testing.assert_close(run(ours=True), run(ours=False), rtol=1e-6, atol=1e-7)


def test_rates_that_are_made_inside_the_step_are_refused() -> None:
    library = pytest.importorskip("pytorch_optimizer")
    model = nn.Linear(4, 2)
    for optimizer in (
        library.TRAC(torch.optim.SGD(model.parameters(), lr=0.1)),
        library.Ranger21(model.parameters(), num_iterations=10, weight_decay=0.0),
    ):
        with pytest.raises(ValueError, match="apply='decoupled' does not work under"):
            attach(model, optimizer, L2(0.1), apply="decoupled")
        attach(model, optimizer, L2(0.1)).remove()


@pytest.mark.parametrize("name", ["AdamW8bit", "Lion8bit"])
def test_eight_bits_of_bitsandbytes_where_tensors_are_large_enough_for_them(name: str) -> None:
    with zoo.quiet():
        library = pytest.importorskip("bitsandbytes")

    def run(way: str) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Linear(128, 128, bias=False)
        with zoo.quiet():
            decay = 0.5 if way == "own decay" else 0.0
            optimizer = getattr(library.optim, name)(model.parameters(), lr=0.01, weight_decay=decay)
        if way in ("decoupled", "gradient"):
            attach(model, optimizer, L2(0.5), apply=way)  # type: ignore[arg-type]
        for _ in range(4):
            optimizer.zero_grad()
            loss = model(torch.eye(128)).square().mean()
            (loss + 0.25 * model.weight.square().sum() if way == "loss" else loss).backward()
            with zoo.quiet():
                optimizer.step()
        assert optimizer.state[model.weight]["state1"].dtype == torch.uint8
        return model.weight.detach()

    torch.testing.assert_close(run("decoupled"), run("own decay"))
    torch.testing.assert_close(run("gradient"), run("loss"))
