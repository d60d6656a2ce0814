"""attach() under Accelerate ≡ the same loop with the term in the loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn
from torch.optim import Adam, AdamW
from torch.utils.data import DataLoader

from lightning_reg import L1, L2, Linear, attach
from tests.support import data, network, relative, weights

pytestmark = pytest.mark.filterwarnings("ignore")

MODES = ["gradient", "decoupled", "proximal"]
STEPS = 8
PENALTY = L1(Linear(0.1, 0.5))
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.fixture(autouse=True)
def _fresh_state() -> Any:
    """Accelerate keeps its state for the whole process."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def batches(accumulate: int, dtype: torch.dtype) -> DataLoader:
    x, y = data(8 * STEPS * accumulate, torch.float64).tensors
    return DataLoader(torch.utils.data.TensorDataset(x.to(dtype), y.to(dtype)), batch_size=8)


def plain(how: str, accumulate: int, clip: bool, dtype: torch.dtype) -> Tensor:
    """No Accelerate: the term in the loss, or the handle of a plain loop for the other modes."""
    model = network().to(dtype)
    optimizer = Adam(model.parameters(), lr=0.01)
    if how in ("decoupled", "proximal"):
        attach(model, optimizer, PENALTY, how, total_steps=STEPS)  # type: ignore[arg-type]
    for i, (x, y) in enumerate(batches(accumulate, dtype)):
        loss = nn.functional.mse_loss(model(x), y)
        if how == "gradient":
            loss = loss + PENALTY(model, i // accumulate, STEPS)
        (loss / accumulate).backward()
        if (i + 1) % accumulate == 0:
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            optimizer.step()
            optimizer.zero_grad()
    return weights(model)


@pytest.mark.parametrize("apply", MODES)
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_accelerate_is_the_plain_loop(
    apply: Any, accumulate: int, clip: bool, when: str, dtype: torch.dtype
) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model = network().to(dtype)
    optimizer: Any = Adam(model.parameters(), lr=0.01)
    loader = batches(accumulate, dtype)
    if when == "before":
        handle = attach(model, optimizer, PENALTY, apply, total_steps=STEPS)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    if when == "after":
        handle = attach(model, optimizer, PENALTY, apply, total_steps=STEPS)
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.mse_loss(model(x), y))
            if clip and accelerator.sync_gradients:
                if apply == "gradient":
                    handle.add_gradient()
                accelerator.clip_grad_norm_(model.parameters(), 0.3)
            optimizer.step()
            optimizer.zero_grad()
    assert handle.step == STEPS
    expected = plain(apply, accumulate, clip, dtype)
    assert relative(weights(model), expected) < TOLERANCE[dtype]
    assert relative(plain("none", accumulate, clip, dtype), expected) > 1e-3, "the term must matter"


def test_add_gradient_inside_an_accumulation_window_does_nothing() -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    model = network().double()
    model, optimizer, loader = accelerator.prepare(
        model, Adam(model.parameters(), lr=0.01), batches(4, torch.float64)
    )
    handle = attach(model, optimizer, PENALTY, total_steps=STEPS)
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.mse_loss(model(x), y))
            handle.add_gradient()
            optimizer.step()
            optimizer.zero_grad()
    assert relative(weights(model), plain("gradient", 4, False, torch.float64)) < 1e-12


# --- GradScaler; Accelerator itself refuses fp16 on a CPU, so the optimizer is wrapped by hand ---------


def scaled(apply: Any, fused: bool, clip: bool, bad: int | None = None) -> tuple[Tensor, list[Tensor], Any]:
    Accelerator(cpu=True)
    model = network().double()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    optimizer: Any = AcceleratedOptimizer(Adam(model.parameters(), lr=0.01, fused=fused), scaler=scaler)
    handle = attach(model, optimizer, PENALTY, apply, total_steps=STEPS)
    history = []
    for i, (x, y) in enumerate(batches(1, torch.float64)):
        scaler.scale(nn.functional.mse_loss(model(x), y)).backward()
        if i == bad:
            model[0].weight.grad[0, 0] = torch.inf
        if clip:
            if apply == "gradient":
                handle.add_gradient()
            scaler.unscale_(optimizer.optimizer)  # as accelerator.clip_grad_norm_ does
            nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        history.append(weights(model))
        optimizer.step()
        optimizer.zero_grad()
    return weights(model), history, handle


@pytest.mark.parametrize("apply", MODES)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("clip", [False, True])
def test_its_grad_scaler(apply: str, fused: bool, clip: bool) -> None:
    got, _, handle = scaled(apply, fused, clip)
    assert handle.step == STEPS
    assert relative(got, plain(apply, 1, clip, torch.float64)) < 1e-10
    _, history, handle = scaled(apply, fused, clip, bad=3)
    assert torch.equal(history[3], history[4]) and not torch.equal(history[4], history[5])
    assert handle.step == STEPS - 1


def test_decoupled_l2_is_adamw() -> None:
    def run(optimizer_class: Any, attached: bool) -> Tensor:
        accelerator = Accelerator(cpu=True)
        model = network().double()
        options = {} if attached else {"weight_decay": 0.1}
        model, optimizer = accelerator.prepare(model, optimizer_class(model.parameters(), lr=0.01, **options))
        if attached:
            attach(model, optimizer, L2(0.1, select="all"), "decoupled")
        for x, y in batches(1, torch.float64):
            accelerator.backward(nn.functional.mse_loss(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
        return weights(model)

    assert torch.equal(run(Adam, True), run(AdamW, False))


class DeepSpeedOptimizerWrapper(AcceleratedOptimizer):
    """What Accelerate calls it."""


def test_deepspeed_is_refused() -> None:
    Accelerator(cpu=True)
    model = network()
    with pytest.raises(ValueError, match=r"DeepSpeed steps an optimizer of its own.*penalty\(model\)"):
        attach(model, DeepSpeedOptimizerWrapper(Adam(model.parameters())), L1(0.1))
