"""attach() under Fabric ≡ a loop written by hand in plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import SGD, Adam

from lightning_reg import L1, GroupLasso, Linear, attach
from lightning_reg.select.parameters import select_parameters
from tests.support import data, network, relative, weights, without_averages

MODES = ["gradient", "decoupled", "proximal"]
STRENGTH = 0.05
LR = 0.05
STEPS = 12
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
CLIPS: dict[str, dict[str, float]] = {"unclipped": {}, "norm": {"max_norm": 0.3}, "value": {"clip_val": 0.02}}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def micro_batches(count: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    x, y = data(8 * count, torch.float64).tensors
    return list(zip(x.to(dtype).split(8), y.to(dtype).split(8), strict=True))


def by_hand(
    apply: str, accumulate: int = 1, clip: str = "unclipped", dtype: torch.dtype = torch.float64
) -> Tensor:
    """Plain SGD; the formulas of L1 on the two weight matrices, written out."""
    model = network().to(dtype)
    optimizer = SGD(model.parameters(), lr=LR)
    matrices = [model[0].weight, model[2].weight]
    for i, (x, y) in enumerate(micro_batches(STEPS * accumulate, dtype)):
        loss = nn.functional.mse_loss(model(x), y)
        if apply == "gradient":
            loss = loss + STRENGTH * sum(w.abs().sum() for w in matrices)
        (loss / accumulate).backward()
        if (i + 1) % accumulate:
            continue
        factor = 1.0
        if clip == "norm":
            norm = clip_grad_norm_(model.parameters(), **CLIPS[clip])
            factor = min(1.0, CLIPS[clip]["max_norm"] / (float(norm) + 1e-6))
        elif clip == "value":
            clip_grad_value_(model.parameters(), CLIPS[clip]["clip_val"])
        with torch.no_grad():
            if apply == "decoupled":
                for w in matrices:
                    w -= LR * STRENGTH * w.sign()
            optimizer.step()
            if apply == "proximal":
                for w in matrices:
                    w.copy_(w.sign() * (w.abs() - LR * STRENGTH * factor).clamp(min=0))
        optimizer.zero_grad()
    return weights(model)


def seen_by(handle: Any, apply: str, clip: str) -> AbstractContextManager[None]:
    """A clipping by norm that a proximal step takes into account."""
    return handle.clipping() if handle and (apply, clip) == ("proximal", "norm") else nullcontext()


def run(
    apply: Any,
    accumulate: int = 1,
    clip: str = "unclipped",
    dtype: torch.dtype = torch.float64,
    when: str = "after",
    **options: Any,
) -> Tensor:
    fabric = Fabric(accelerator="cpu", devices=1, **options)
    model = network().to(dtype)
    optimizer: Any = SGD(model.parameters(), lr=LR)
    if when == "before":
        handle = attach(model, optimizer, L1(STRENGTH), apply, **without_averages(apply))
    bare = model
    wrapped, optimizer = fabric.setup(model, optimizer)
    if when != "before":
        given = wrapped if when == "after" else bare
        handle = attach(given, optimizer, L1(STRENGTH), apply, **without_averages(apply))
    for i, (x, y) in enumerate(micro_batches(STEPS * accumulate, dtype)):
        with default_dtype(dtype):  # to which Fabric casts outputs
            fabric.backward(nn.functional.mse_loss(wrapped(x), y) / accumulate)
        if (i + 1) % accumulate == 0:
            if clip != "unclipped":
                if apply == "gradient":
                    handle.add_gradient()
                with seen_by(handle, apply, clip):
                    fabric.clip_gradients(wrapped, optimizer, **CLIPS[clip])
            optimizer.step()
            optimizer.zero_grad()
    assert handle.step == STEPS
    return weights(bare)


@pytest.mark.filterwarnings("ignore:clipping by value")
@pytest.mark.parametrize("apply", MODES)
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_fabric_is_the_loop_by_hand(apply: str, accumulate: int, clip: str, dtype: torch.dtype) -> None:
    expected = by_hand(apply, accumulate, clip, dtype)
    got = run(apply, accumulate, clip, dtype, precision="64-true" if dtype == torch.float64 else "32-true")
    assert relative(got, expected) < TOLERANCE[dtype]
    assert relative(got, by_hand("none", accumulate, clip, dtype)) > 1e-3, "the term must matter"


@pytest.mark.parametrize("apply", MODES)
@pytest.mark.parametrize("when", ["before", "after", "bare model, wrapped optimizer"])
def test_before_or_after_setup(apply: str, when: str) -> None:
    got = run(apply, 2, "norm", when=when, precision="64-true")
    assert relative(got, by_hand(apply, 2, "norm")) < 1e-12


# --- precisions --------------------------------------------------------------------------------------


def mixed_run(
    precision: str, apply: Any, fused: bool, clip: bool, hand: bool = False, bad: int | None = None
) -> tuple[Tensor, list[Tensor], int]:
    """Twelve steps in mixed precision, the term in the loss where ``hand``."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if precision == "16-mixed" else None
    fabric = Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision(precision, "cpu", scaler))
    model = network()
    bare = model
    penalty = L1(Linear(0.02, 0.2))
    model, optimizer = fabric.setup(model, Adam(model.parameters(), lr=0.01, fused=fused))
    handle = None if hand else attach(model, optimizer, penalty, apply, total_steps=STEPS)
    history = [weights(bare)]
    for step, (x, y) in enumerate(micro_batches(STEPS, torch.float32)):
        loss = nn.functional.mse_loss(model(x), y)
        if hand:
            loss = loss + penalty(bare, step, STEPS)
        fabric.backward(loss)
        if step == bad:
            bare[0].weight.grad[0, 0] = torch.inf
        if clip:
            if handle is not None and apply == "gradient":
                handle.add_gradient()
            with seen_by(handle, apply, "norm"):
                fabric.clip_gradients(model, optimizer, max_norm=0.3, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad()
        history.append(weights(bare))
    return weights(bare), history, handle.step if handle is not None else -1


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize(("fused", "clip"), [(False, False), (False, True), (True, False)])
def test_mixed_precision(precision: str, fused: bool, clip: bool) -> None:
    got, _, _ = mixed_run(precision, "gradient", fused, clip)
    expected, _, _ = mixed_run(precision, "gradient", fused, clip, hand=True)
    assert relative(got, expected) < 1e-5


@pytest.mark.parametrize("apply", MODES)
@pytest.mark.parametrize(("fused", "clip"), [(False, True)])  # unclipped: test_ways_in.py
def test_a_step_that_fabrics_scaler_skips(apply: str, fused: bool, clip: bool) -> None:
    _, history, steps = mixed_run("16-mixed", apply, fused, clip, bad=5)
    assert torch.equal(history[5], history[6]) and not torch.equal(history[6], history[7])
    assert steps == STEPS - 1


@pytest.mark.parametrize("apply", MODES)
@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_true_half_precisions(apply: str, precision: str) -> None:
    got = run(apply, dtype=torch.float32, precision=precision)
    assert relative(got.double(), by_hand(apply)) < 0.05
    assert relative(got.double(), by_hand("none")) > 0.05


# --- names, and what is refused ----------------------------------------------------------------------


def test_names_are_the_users() -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    for model in (network(), torch.compile(network(), backend="eager")):
        wrapped = fabric.setup(model)
        assert [s.name for s in select_parameters(wrapped, "all")] == [
            "0.weight",
            "0.bias",
            "2.weight",
            "2.bias",
        ]
        assert [s.name for s in select_parameters(wrapped, "2.*")] == ["2.weight", "2.bias"]
        with pytest.raises(ValueError, match="none of the 4 parameters of Sequential"):
            select_parameters(wrapped, "nothing")


def test_groups_of_a_wrapped_model() -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = network(), None
    model, optimizer = fabric.setup(model, SGD(model.parameters(), lr=LR))
    attach(model, optimizer, GroupLasso(10.0, select="0.weight", groups="rows"), "proximal")
    fabric.backward(model(torch.ones(2, 10)).sum())
    optimizer.step()
    assert not model.module[0].weight.any() and model.module[2].weight.any()


def test_the_optimizer_of_lightnings_manual_optimization() -> None:
    model = network()
    optimizer = LightningOptimizer(Adam(model.parameters(), lr=LR))
    handle = attach(model, optimizer, L1(0.1), "proximal")  # whose metric is Adam's
    model(torch.ones(2, 10)).sum().backward()
    optimizer.optimizer.step()  # the one inside it, where Lightning's wrapper is not asked
    assert handle.step == 1


@pytest.mark.parametrize("wrap", [False, True], ids=["bare", "fabric"])
def test_an_optimizer_of_another_model(wrap: bool) -> None:
    model: Any = network()
    optimizer: Any = SGD(network().parameters(), lr=LR)
    if wrap:
        fabric = Fabric(accelerator="cpu", devices=1)
        model, optimizer = fabric.setup(model), fabric.setup_optimizers(optimizer)
    with pytest.raises(ValueError, match="SGD holds no parameter of the model, so it steps another one"):
        attach(model, optimizer, L1(0.1))


def test_an_optimizer_that_holds_none_of_the_selected() -> None:
    model = network()
    optimizer = SGD(model[2].parameters(), lr=LR)
    with pytest.raises(
        ValueError, match=r"select='0\.\*' names 0.weight, and SGD holds none of what it names"
    ):
        attach(model, optimizer, L1(0.1, select="0.*"))
    assert not optimizer._optimizer_step_pre_hooks


def test_parameters_exchanged_after_attaching() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=LR)
    attach(model, optimizer, L1(0.1))
    for layer in (model[0], model[2]):
        layer.weight, layer.bias = nn.Parameter(layer.weight.data), nn.Parameter(layer.bias.data)
    with pytest.raises(ValueError, match="made before the parameters were exchanged"):
        optimizer.step()


class DeepSpeedEngine(nn.Sequential):
    """What DeepSpeed calls its wrapper."""


def test_deepspeed_is_out_of_reach() -> None:
    model = DeepSpeedEngine(network())
    sentence = r"DeepSpeed steps an optimizer of its own.*add penalty\(model\) to the loss"
    with pytest.raises(ValueError, match=sentence):
        attach(model, SGD(model.parameters(), lr=LR), L1(0.1))


@pytest.mark.parametrize("swapped", [True, False])
def test_what_is_not_a_model_or_an_optimizer(swapped: bool) -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=LR)
    arguments: Any = (optimizer, model) if swapped else (model, list(model.parameters()))
    with pytest.raises(
        TypeError, match="SGD is not a module" if swapped else "list is not a torch optimizer"
    ):
        attach(*arguments, L1(0.1))
