"""One member of each family here; the whole zoo by its own command, see ``zoo``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

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
    "pytorch_optimizer.Lamb": EQUAL,
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


@pytest.mark.parametrize(("name", "mode"), [(name, mode) for name in FAMILIES for mode in zoo.MODES])
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
