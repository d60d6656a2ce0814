"""Penalties and constraints on one tensor act in an order that does not go by the list."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_reg import L1, L2, Box, ElasticNet, GroupLasso, L2Norm, MaxNorm, NonNegative, attach
from lightning_reg.callbacks import PenaltyCallback
from tests.support import QUIET, Net, data, weights

START = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def stepped(regularizers: Sequence[Any], learning_rate: float = 1.0) -> Tensor:
    """Weights after one proximal step of each, from START, with no gradient."""
    model = nn.Linear(5, 4, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(START)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    for regularizer in regularizers:
        attach(model, optimizer, regularizer, apply="proximal")
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    return model.weight.detach()


def assert_minimises(x: Tensor, value: Any, inside: Any) -> None:
    """No point of the set near ``x`` has a smaller ½‖x − START‖² + value(x), which is strongly convex."""

    def objective(point: Tensor) -> float:
        return float(0.5 * (point - START).square().sum() + value(point))

    torch.testing.assert_close(inside(x), x)
    least, generator = objective(x), torch.Generator().manual_seed(1)
    for size in (1e-1, 1e-2, 1e-3):
        for _ in range(40):
            direction = torch.randn(START.shape, generator=generator, dtype=START.dtype)
            mask = torch.rand(START.shape, generator=generator) < torch.rand((), generator=generator)
            scaled = x * (1 + size * direction[:, :1])
            for other in (x + size * direction * mask, scaled, x.lerp(START, size)):
                assert objective(inside(other)) >= least - 1e-12


def anywhere(x: Tensor) -> Tensor:
    return x


def rows(x: Tensor) -> Tensor:
    return x.norm(dim=1).sum() * 5**0.5


SUMS: dict[str, tuple[list[Any], Any, Any]] = {
    "L1, L2": ([L1(0.3), L2(0.5)], lambda x: 0.3 * x.abs().sum() + 0.25 * x.square().sum(), anywhere),
    "L1, elastic net": (
        [L1(0.2), ElasticNet(0.4)],
        lambda x: 0.4 * x.abs().sum() + 0.1 * x.square().sum(),
        anywhere,
    ),
    "L1, rows, tensor, L2": (
        [L1(0.1), GroupLasso(0.1), L2Norm(0.2), L2(0.5)],
        lambda x: 0.1 * x.abs().sum() + 0.1 * rows(x) + 0.2 * x.norm() + 0.25 * x.square().sum(),
        anywhere,
    ),
    "rows, signs": ([GroupLasso(0.2), NonNegative()], lambda x: 0.2 * rows(x), lambda x: x.clamp(min=0.0)),
    "L1, box": ([L1(0.2), Box(-0.5, 0.7)], lambda x: 0.2 * x.abs().sum(), lambda x: x.clamp(-0.5, 0.7)),
    "L2, norm": ([L2(0.5), MaxNorm(0.8)], lambda x: 0.25 * x.square().sum(), lambda x: x.renorm(2, 0, 0.8)),
}


@pytest.mark.parametrize("name", SUMS)
def test_the_composition_is_the_operator_of_the_sum(name: str) -> None:
    regularizers, value, inside = SUMS[name]
    result = stepped(regularizers)
    assert_minimises(result, value, inside)
    for order in itertools.permutations(regularizers):
        assert torch.equal(stepped(order), result)


@pytest.mark.parametrize(
    "constraint", [MaxNorm(0.4), NonNegative(), Box(-0.1, 0.2)], ids=lambda c: c.log_name
)
def test_what_a_constraint_demands_holds_whatever_else_acts(constraint: Any) -> None:
    for order in itertools.permutations([constraint, L1(0.1), L2(0.3)]):
        result = stepped(order)
        inside = {"max_norm": lambda w: w.renorm(2, 0, 0.4), "non_negative": lambda w: w.clamp(min=0.0)}
        want = inside.get(constraint.log_name, lambda w: w.clamp(-0.1, 0.2))(result)
        torch.testing.assert_close(result, want)
        assert not torch.equal(stepped(order[:0]), result)


def fit(callbacks: list[Any]) -> Tensor:
    module = Net(lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    pl.Trainer(callbacks=callbacks, max_epochs=2, **QUIET).fit(module, DataLoader(data(), 16))
    return weights(module)


def test_callbacks_in_any_order_are_the_elastic_net() -> None:
    def proximal(penalty: Any) -> PenaltyCallback:
        return PenaltyCallback(penalty, "proximal", log=False)

    want = fit([proximal(ElasticNet(0.2, l1_ratio=0.5))])
    torch.testing.assert_close(fit([proximal(L1(0.1)), proximal(L2(0.1))]), want)
    torch.testing.assert_close(fit([proximal(L2(0.1)), proximal(L1(0.1))]), want)


def test_all_share_one_pair_of_hooks_and_the_last_takes_it_away() -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handles = [attach(model, optimizer, r, apply="proximal") for r in (L2(0.1), L1(0.1), MaxNorm(1.0))]
    assert len(optimizer._optimizer_step_post_hooks) == 1
    for handle in handles:
        assert optimizer._optimizer_step_post_hooks
        handle.remove()
    assert not optimizer._optimizer_step_post_hooks and not optimizer._optimizer_step_pre_hooks
