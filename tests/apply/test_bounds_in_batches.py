"""Bounds in mini-batches: weights stay at the ends of an interval where those of the stated problem do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.optimize import lsq_linear
from torch import Tensor

from lightning_reg import Box, NonNegative, attach
from lightning_reg.apply.dual_averaging import is_average
from lightning_reg.prox.dual_averaging import hold_bounds_

STEPS = 2000
OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, 0.02),
    "momentum": lambda parameters: torch.optim.SGD(parameters, 0.002, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, 0.01),
}


def problem(seed: int, features: int = 40, size: int = 600) -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    x = torch.randn(size, features, generator=noise) + 0.5 * torch.randn(size, 1, generator=noise)
    truth = torch.randn(features, generator=noise)
    return x, x @ truth + torch.randn(size, generator=noise)


def solution(x: Tensor, y: Tensor, low: float, high: float) -> Tensor:
    bounds = (low, high)
    return torch.from_numpy(lsq_linear(x.double().numpy(), y.double().numpy(), bounds, "bvls", tol=1e-12).x)


def trained(
    constraint: Any, x: Tensor, y: Tensor, optimizer: str, cosine: bool, batch: int = 16, **options: Any
) -> Tensor:
    net = torch.nn.Linear(x.shape[1], 1, bias=False)
    torch.nn.init.zeros_(net.weight)
    stepper = OPTIMIZERS[optimizer](net.parameters())
    rate = stepper.param_groups[0]["lr"]
    handle = attach(net, stepper, constraint, **options)
    draws = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        if cosine:
            stepper.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / STEPS)) / 2
        chosen = torch.randint(len(x), (batch,), generator=draws) if batch else slice(None)
        rows, wanted = x[chosen], y[chosen]
        net.weight.grad = (net.weight.detach() @ rows.T - wanted) @ rows / len(wanted)
        stepper.step()
    handle.remove()
    assert not any(is_average(name) for state in stepper.state.values() for name in state)
    return net.weight[0].detach()


def agreement(weight: Tensor, wanted: Tensor, low: float, high: float) -> float:
    """F1 of what is at a bound."""
    ours = (weight == low) | (weight == high)
    theirs = ((wanted - low).abs() < 1e-9) | ((wanted - high).abs() < 1e-9)
    return float(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "constraint, cosine",
    [(NonNegative(), True), (Box(-0.5, 0.5), False)],
    ids=["non-negative, cosine", "box, constant"],
)
@pytest.mark.slow
def test_batches_find_the_bounds_of_the_problem(constraint: Any, optimizer: str, cosine: bool) -> None:
    low, high = constraint.bounds
    x, y = problem(12)
    weight = trained(constraint, x, y, optimizer, cosine)
    assert agreement(weight, solution(x, y, low, high), low, high) >= (0.9 if cosine else 0.85)


@pytest.mark.slow
def test_noise_leaves_a_bound_without_the_average() -> None:
    x, y = problem(11)
    wanted = solution(x, y, 0.0, math.inf)
    plain = trained(NonNegative(), x, y, "SGD", True, dual_averaging=False)
    held = trained(NonNegative(), x, y, "SGD", True)
    assert agreement(held, wanted, 0.0, math.inf) > 0.95
    assert agreement(plain, wanted, 0.0, math.inf) < 0.9


@pytest.mark.parametrize("constraint", [NonNegative(), Box(-0.5, 0.5)], ids=["non-negative", "box"])
def test_all_of_the_data_give_the_solution(constraint: Any) -> None:
    x, y = problem(14, size=200)
    low, high = constraint.bounds
    wanted = solution(x, y, low, high)
    weight = trained(constraint, x, y, "SGD", cosine=False, batch=0)
    assert agreement(weight, wanted, low, high) == 1.0
    torch.testing.assert_close(weight.double(), wanted, rtol=1e-4, atol=1e-4)


def test_the_rule_by_hand() -> None:
    """At the low end, between, at the high end, and on the way back; then ends that there are none of."""
    weight = torch.tensor([0.2, 0.2, 0.7, 0.9, 1.2])
    average = torch.tensor([-1.0, 0.0, 0.4, -0.1, 0.0])
    hold_bounds_(weight, average, 0.0, 1.0, share=0.5)
    torch.testing.assert_close(average, torch.tensor([-0.4, 0.0, 0.05, 0.0, 0.1]))
    torch.testing.assert_close(weight, torch.tensor([0.0, 0.2, 1.0, 0.9, 1.0]))
    weight, average = torch.tensor([0.2, -0.2]), torch.tensor([3.0, 3.0])
    hold_bounds_(weight, average, 0.0, math.inf, share=0.5)
    torch.testing.assert_close(weight, torch.tensor([0.2, 0.0]))
    torch.testing.assert_close(average, torch.tensor([0.0, -0.1]))


def test_one_end_is_the_other_mirrored() -> None:
    weight, average = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    mirrored, kept = -weight, -average
    for _ in range(3):
        hold_bounds_(weight, average, -math.inf, 0.5, 0.3)
        hold_bounds_(mirrored, kept, -0.5, math.inf, 0.3)
        assert torch.equal(weight, -mirrored) and torch.equal(average, -kept)
        assert bool((weight <= 0.5).all()) and 0 < int((weight == 0.5).sum()) < 50
        assert bool((average >= 0.0).all())
        weight += 0.1
        mirrored -= 0.1


def test_a_rate_of_zero_moves_no_average() -> None:
    net = torch.nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    handle = attach(net, optimizer, NonNegative())
    net.weight.grad = torch.tensor([[9.0, 9.0, -9.0]])
    optimizer.step()
    state = optimizer.state[net.weight]
    key = next(name for name in state if is_average(name) and isinstance(state[name], Tensor))
    before = state[key].clone()
    assert bool((before[0, :2] < 0).all())
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert torch.equal(state[key], before)
    handle.remove()
