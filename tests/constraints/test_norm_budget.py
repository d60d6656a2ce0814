"""A budget of ½‖w‖², set after so many steps, against a loop by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from lightning_reg import L1Ball, MaxNorm, NonNegative, NormBudget, attach


def grown(factor: float, steps: int, warmup: int, rate: float, start: torch.Tensor) -> list[torch.Tensor]:
    """Weights after each of so many steps that make them a tenth longer."""
    weight, multiplier, budget, seen = start.clone(), 0.0, None, []
    if warmup == 0:
        budget = factor * 0.5 * float(weight.square().sum())
    for step in range(1, steps + 1):
        weight = weight * 1.1
        if budget is not None:
            energy = 0.5 * float(weight.square().sum())
            multiplier = min(1.0, max(0.0, multiplier + rate * (energy / budget - 1.0)))
            weight = weight * (1.0 - multiplier)
        if step == warmup:
            budget = factor * 0.5 * float(weight.square().sum())
        seen.append(weight)
    return seen


def step(model: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    model.weight.grad = -0.1 * model.weight.detach()
    optimizer.step()


@pytest.mark.parametrize(("factor", "warmup", "rate"), [(1.0, 0, 0.5), (1.3, 0, 0.2), (0.8, 2, 0.3)])
@pytest.mark.parametrize("stop", [None, 1, 4], ids=["whole", "resumed before", "resumed after"])
def test_steps_are_those_by_hand(factor: float, warmup: int, rate: float, stop: int | None) -> None:
    model = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    wanted = grown(factor, 7, warmup, rate, model.weight.detach())
    make: Any = lambda: NormBudget(factor, warmup_steps=warmup, rate=rate)  # noqa: E731
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    handle = attach(model, optimizer, make())
    for number, weight in enumerate(wanted):
        if number == stop:
            state = handle.state_dict()
            handle.remove()
            handle = attach(model, optimizer, make())
            handle.load_state_dict(state)
        step(model, optimizer)
        assert torch.allclose(model.weight, weight, rtol=1e-12), number


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf])
def test_a_factor_out_of_range_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="NormBudget"):
        NormBudget(factor)
    with pytest.raises(ValueError, match="NormBudget"):
        NormBudget(rate=factor)
    with pytest.raises(ValueError, match="L1Ball"):
        L1Ball(factor)


def test_what_is_in_range_is_taken() -> None:
    with pytest.raises(ValueError, match="NormBudget"):
        NormBudget(warmup_steps=-1)
    assert NormBudget(0.5, rate=0.5).warmup_steps == 0
    assert MaxNorm(0.5).limit == 0.5
    with pytest.raises(ValueError, match="MaxNorm"):
        MaxNorm(0.0)


def test_a_negative_weight_becomes_zero_and_a_small_one_stays() -> None:
    model = nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attach(model, optimizer, NonNegative())
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-0.5, 0.25, 0.0]]))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert model.weight.tolist() == [[0.0, 0.25, 0.0]]
