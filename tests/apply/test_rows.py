"""Proximal steps on sparse gradients: the rows that a batch names, for the steps that they have missed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adagrad, Optimizer, SparseAdam

from lightning_reg import L1, ElasticNet, GroupLasso, L2Norm, attach

# torch 2.13 warns where a sparse tensor is made, which its optimizers do
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")

ROWS, WIDTH = 8, 3


def table(sparse: bool = True) -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(ROWS, WIDTH, sparse=sparse, dtype=torch.float64)


def step(model: nn.Module, optimizer: Optimizer, rows: list[int], target: float = 0.0) -> None:
    optimizer.zero_grad()
    (0.5 * (model(torch.tensor(rows)) - target).square().sum()).backward()
    optimizer.step()


@pytest.mark.parametrize("averaging", [True, False])
@pytest.mark.parametrize(
    "penalty", [L1(0.4), ElasticNet(0.9), GroupLasso(0.4)], ids=lambda p: type(p).__name__
)
def test_named_in_every_step_it_is_the_dense_one(penalty: Any, averaging: bool) -> None:
    found = []
    for sparse in (True, False):
        model = table(sparse)
        optimizer = Adagrad(model.parameters(), lr=0.1)
        attach(model, optimizer, penalty, apply="proximal", dual_averaging=averaging)
        for _ in range(20):
            step(model, optimizer, [*range(ROWS)], target=0.3)
        found.append(model.weight.detach())
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)
    assert bool((found[0] == 0).any())


@pytest.mark.parametrize("make", [Adagrad, SparseAdam])
def test_missed_steps_are_made_up_for(make: Any) -> None:
    model = table()
    optimizer = make(list(model.parameters()), lr=0.01)
    attach(model, optimizer, L1(0.1), apply="proximal", dual_averaging=False)
    plain, twin = table(), None
    twin = make(list(plain.parameters()), lr=0.01)
    start = model.weight.detach().clone()
    for rows in ([0, 1], [1], [1], [0, 1]):
        before = plain.weight.detach().clone()
        with torch.no_grad():
            plain.weight.copy_(model.weight)
        step(plain, twin, rows)
        step(model, optimizer, rows)
    state = twin.state[plain.weight]
    if make is Adagrad:
        eta = 0.01 / (state["sum"][0].sqrt() + 1e-10)
    else:
        eta = 0.01 * math.sqrt(1 - 0.999**4) / (state["exp_avg_sq"][0].sqrt() + 1e-8)
    moved = plain.weight[0].detach()
    expected = nn.functional.softshrink(moved / (3 * eta * 0.1), 1.0) * (3 * eta * 0.1)
    torch.testing.assert_close(model.weight[0].detach(), expected)  # steps 2 and 3 missed, and this one
    assert torch.equal(model.weight[2:], start[2:]) and model.weight.grad.is_sparse  # type: ignore[union-attr]
    assert not torch.equal(before, start)


RATES: list[tuple[Callable[..., Optimizer], float]] = [(Adagrad, 0.5), (SparseAdam, 0.05)]


@pytest.mark.slow
@pytest.mark.parametrize(("make", "lr"), RATES)
def test_rare_rows_meet_the_problem_that_is_stated(make: Any, lr: float) -> None:
    """A row that the share p of batches names has the solution soft(mean of its targets, λ/p)."""
    generator = torch.Generator().manual_seed(1)
    chance = torch.tensor([1.0, 0.5, 0.2, 0.1])
    target = torch.tensor([[1.0, 0.05, -1.5], [1.5, 0.1, -1.0], [2.0, 0.25, -1.0], [3.0, 0.5, -2.0]])
    model = nn.Embedding.from_pretrained(torch.zeros(5, 3) + 0.5, freeze=False, sparse=True)
    optimizer = make(list(model.parameters()), lr=lr)
    attach(model, optimizer, L1(0.1), apply="proximal")
    steps, counts, sums = 600, torch.zeros(4), torch.zeros(4, 3)
    for t in range(steps):
        optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * t / steps))
        rows = torch.nonzero(torch.rand(4, generator=generator) < chance).flatten()
        noisy = target[rows] + 0.3 * torch.randn(len(rows), 3, generator=generator)
        counts[rows] += 1
        sums[rows] += noisy
        optimizer.zero_grad()
        (0.5 * (model(rows) - noisy).square().sum()).backward()
        optimizer.step()
    weight: Tensor = model.weight.detach()
    mean, threshold = sums / counts[:, None], (0.1 * steps / counts)[:, None]
    expected = mean.sign() * (mean.abs() - threshold).clamp(min=0)
    assert torch.equal(weight[:4] != 0, expected != 0)
    torch.testing.assert_close(weight[:4], expected, atol=0.15, rtol=0.1)
    assert torch.equal(weight[4], torch.full((3,), 0.5))  # never named


def test_a_resumed_run_goes_on_bit_for_bit_and_nothing_stays() -> None:
    def run(split: bool) -> Tensor:
        model = table()
        optimizer = SparseAdam(list(model.parameters()), lr=0.1)
        handle = attach(model, optimizer, L1(0.3), apply="proximal")
        for i in range(8):
            if split and i == 4:
                saved = optimizer.state_dict(), handle.state_dict()
                optimizer = SparseAdam(list(model.parameters()), lr=0.1)
                handle = attach(model, optimizer, L1(0.3), apply="proximal")
                optimizer.load_state_dict(saved[0])
                handle.load_state_dict(saved[1])
            step(model, optimizer, [i % 3, 5], target=0.1)
        handle.remove()
        assert not any(name.startswith("lightning_reg") for name in optimizer.state[model.weight])
        return model.weight.detach()

    assert torch.equal(run(True), run(False))


def test_what_needs_the_whole_table_is_refused() -> None:
    model = table()
    optimizer = SparseAdam(list(model.parameters()), lr=0.1)
    ones = torch.ones(8, 3)
    for penalty in (
        L2Norm(0.1),
        GroupLasso(0.1, groups="columns"),
        L1(0.1, factors=ones),
    ):
        with pytest.raises(ValueError, match="the gradient of weight is sparse, and SparseAdam"):
            attach(model, optimizer, penalty, apply="proximal")
    attach(model, optimizer, L1(0.1), apply="proximal")
