"""Several penalties on one tensor: one operator after the other against the operator of their sum.

That is found by the alternating direction method of multipliers, with operators written here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_reg import (
    L1,
    L2,
    L2SP,
    MCP,
    SCAD,
    Box,
    Coupled,
    ElasticNet,
    GroupLasso,
    GroupMCP,
    L1Ball,
    L2Norm,
    LInf,
    MaxNorm,
    MaxRank,
    NonNegative,
    NuclearNorm,
    OverlappingGroupLasso,
    SparseGroupLasso,
    TotalVariation,
    attach,
)

SHAPE = (4, 6)
STRENGTH = 0.3
START = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
FACTORS = torch.rand(SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.5


def soft(w: Tensor, tau: Any) -> Tensor:
    found: Tensor = w.sign() * (w.abs() - tau).clamp(min=0.0)
    return found


def shrink(w: Tensor, tau: float, norm: Tensor) -> Tensor:
    return w * (1.0 - tau / norm).clamp(min=0.0)


def rows(w: Tensor) -> Tensor:
    found: Tensor = w.norm(dim=1, keepdim=True)
    return found


Step = Callable[[Tensor, float], Tensor]
#: A penalty, and its operator in the Euclidean metric, by hand.
CASES: dict[str, tuple[Any, Step]] = {
    "L1": (L1(STRENGTH), lambda w, s: soft(w, s * STRENGTH)),
    "L1, factors": (
        L1(STRENGTH, factors={"weight": FACTORS}),
        lambda w, s: soft(w, s * STRENGTH * FACTORS),
    ),
    "L2": (L2(STRENGTH), lambda w, s: w / (1.0 + s * STRENGTH)),
    "L2, factors": (
        L2(STRENGTH, factors={"weight": FACTORS}),
        lambda w, s: w / (1.0 + s * STRENGTH * FACTORS),
    ),
    "L2SP": (
        L2SP(STRENGTH, reference={"weight": torch.full(SHAPE, 0.2)}),
        lambda w, s: 0.2 + (w - 0.2) / (1.0 + s * STRENGTH),
    ),
    "elastic net": (
        ElasticNet(STRENGTH, l1_ratio=0.4),
        lambda w, s: soft(w, 0.4 * s * STRENGTH) / (1.0 + 0.6 * s * STRENGTH),
    ),
    "group lasso": (GroupLasso(0.1), lambda w, s: shrink(w, 0.1 * s * 6**0.5, rows(w))),
    "sparse group lasso": (
        SparseGroupLasso(0.2, l1_ratio=0.5),
        lambda w, s: shrink(soft(w, 0.1 * s), 0.1 * s * 6**0.5, rows(soft(w, 0.1 * s))),
    ),
    "norm": (L2Norm(STRENGTH), lambda w, s: shrink(w, s * STRENGTH, w.norm())),
    "non-negative": (NonNegative(), lambda w, s: w.clamp(min=0.0)),
    "box": (Box(-0.4, 0.4), lambda w, s: w.clamp(-0.4, 0.4)),
    "max norm": (MaxNorm(0.9), lambda w, s: w * (0.9 / rows(w)).clamp(max=1.0)),
}
#: Where they are not, or where the last one projects in the Euclidean metric.
APART = [{name, "box"} for name in ("group lasso", "norm", "sparse group lasso", "max norm")]
APART += [{"L2, factors", "max norm"}]


def stepped(names: Sequence[str], optimizer: str) -> Tensor:
    """The weights after one step along a gradient of 0, which leaves all to the operators."""
    layer = nn.Linear(6, 4, bias=False, dtype=torch.float64)
    layer.weight.data.copy_(START)
    host: torch.optim.Optimizer
    if optimizer == "SGD":
        host = torch.optim.SGD(layer.parameters(), lr=0.5)
    else:
        host = torch.optim.RMSprop(layer.parameters(), lr=0.5, alpha=1.0, eps=0.0)
        host.state[layer.weight] = {"step": torch.tensor(9.0), "square_avg": FACTORS.square()}
    for name in names:
        penalty = CASES[name][0]
        how: Any = {} if penalty.is_constraint else {"apply": "proximal", "dual_averaging": False}
        attach(layer, host, penalty, **how)
    layer.weight.grad = torch.zeros_like(layer.weight)
    host.step()
    return layer.weight.detach()


def operator_of_sum(names: Sequence[str], optimizer: str) -> Tensor:
    eta = torch.full(SHAPE, 0.5, dtype=torch.float64) if optimizer == "SGD" else 0.5 / FACTORS
    near = START
    parts = [START for _ in names]
    duals = [torch.zeros_like(START) for _ in names]
    for _ in range(400):
        total = sum((part - dual for part, dual in zip(parts, duals, strict=True)), START / eta)
        near = total / (1.0 / eta + len(names))
        parts = [CASES[name][1](near + dual, 1.0) for name, dual in zip(names, duals, strict=True)]
        duals = [dual + near - part for dual, part in zip(duals, parts, strict=True)]
    return near


PAIRS = [pair for pair in itertools.combinations(CASES, 2) if set(pair) not in APART]
SINGLE = ["L1", "L1, factors", "L2", "L2, factors", "L2SP", "elastic net", "non-negative", "box"]


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_two_operators_are_that_of_their_sum_in_either_order(pair: tuple[str, str]) -> None:
    found = stepped(pair, "SGD")
    torch.testing.assert_close(found, stepped(pair[::-1], "SGD"), rtol=0.0, atol=1e-15)
    torch.testing.assert_close(found, operator_of_sum(pair, "SGD"), rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("pair", list(itertools.combinations(SINGLE, 2)), ids=" and ".join)
def test_so_they_are_in_a_metric(pair: tuple[str, str]) -> None:
    found = stepped(pair, "RMSprop")
    torch.testing.assert_close(found, operator_of_sum(pair, "RMSprop"), rtol=0.0, atol=1e-9)


def after_a_step(penalties: Sequence[Any]) -> Tensor:
    """The weights after one step of SGD along a gradient of 0."""
    layer = nn.Linear(6, 4, bias=False, dtype=torch.float64)
    layer.weight.data.copy_(START)
    host = torch.optim.SGD(layer.parameters(), lr=0.5)
    for penalty in penalties:
        attach(layer, host, penalty, apply="proximal", dual_averaging=False)
    layer.weight.grad = torch.zeros_like(layer.weight)
    host.step()
    return layer.weight.detach()


def test_total_variation_comes_between_a_quadratic_and_a_threshold() -> None:
    """With a quadratic the steps are shorter, and the fused lasso is its two operators in their order."""
    penalties = [ElasticNet(STRENGTH, l1_ratio=0.4), TotalVariation(0.2), L2(STRENGTH)]
    for order in itertools.permutations(penalties):
        weight = after_a_step(order)
        ridge = 1.0 + 0.5 * STRENGTH * 1.6
        eta = 0.5 / ridge
        expected = soft(TotalVariation(0.2).prox(START / ridge, 0.2, eta), eta * 0.4 * STRENGTH)
        torch.testing.assert_close(weight, expected, rtol=0.0, atol=1e-12)


def test_three_quadratics_and_a_norm() -> None:
    names = ["group lasso", "L2SP", "elastic net", "L2, factors"]
    assert float((stepped(names, "SGD") - operator_of_sum(names, "SGD")).abs().max()) < 1e-9


OTHERS = [
    (GroupLasso(0.1), Box(-0.4, 0.4)),
    (L2Norm(0.1), L1Ball(1.0)),
    (NuclearNorm(0.1), L1(0.1)),
    (MaxRank(2), L1(0.1)),
    (MCP(0.1), L1(0.1)),
    (SCAD(0.1), GroupLasso(0.1)),
    (LInf(0.1), GroupLasso(0.1)),
    (TotalVariation(0.1), GroupLasso(0.1)),
    (GroupMCP(0.1), L1(0.1)),
    (GroupLasso(0.1, groups="tensor"), GroupLasso(0.1)),  # the small ones come first
    (SparseGroupLasso(0.1), SparseGroupLasso(0.2)),
    (OverlappingGroupLasso(0.1), GroupLasso(0.1)),
]


@pytest.mark.parametrize("pair", OTHERS, ids=str)
def test_where_they_are_not_a_warning_says_so(pair: tuple[Any, Any]) -> None:
    layer = nn.Linear(6, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    how: list[Any] = [{} if p.is_constraint else {"apply": "proximal"} for p in pair]
    attach(layer, optimizer, pair[0], **how[0])
    with pytest.warns(UserWarning, match="on weight the proximal operators of .* not that of their sum"):
        attach(layer, optimizer, pair[1], **how[1])


def test_groups_that_cross_are_sent_to_the_penalty_that_has_both() -> None:
    """Rows, then columns, are not the operator of the sum, and those of OverlappingGroupLasso are."""
    layer = nn.Linear(6, 4, bias=False, dtype=torch.float64)
    layer.weight.data.copy_(START)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    crossed = GroupLasso(0.1), GroupLasso(0.1, groups="columns")
    attach(layer, optimizer, crossed[0], apply="proximal", dual_averaging=False)
    with pytest.warns(UserWarning, match="or use OverlappingGroupLasso in the place of both"):
        attach(layer, optimizer, crossed[1], apply="proximal", dual_averaging=False)
    layer.weight.grad = torch.zeros_like(layer.weight)
    optimizer.step()
    apart = OverlappingGroupLasso(0.1).prox(START, 0.1, 0.5) - layer.weight.detach()
    assert float(apart.abs().max()) > 1e-4


NESTED: list[tuple[Any, ...]] = [
    (GroupLasso(0.1), GroupLasso(0.2)),
    (GroupLasso(0.1), GroupLasso(0.2, groups="tensor")),
    (GroupLasso(0.1, groups="columns"), L2Norm(0.1)),
    (GroupLasso(0.1), SparseGroupLasso(0.1)),
    (OverlappingGroupLasso(0.1), L2Norm(0.2)),
]


@pytest.mark.parametrize("pair", NESTED, ids=str)
def test_nested_groups_are_the_sum_and_need_no_warning(pair: tuple[Any, Any]) -> None:
    weight = after_a_step(pair).requires_grad_()
    cost = (weight - START).square().sum() / (2 * 0.5) + sum(p.value(weight, p.strength) for p in pair)
    (slope,) = torch.autograd.grad(cost, weight)
    assert bool(weight.all()) and float(slope.abs().max()) < 1e-9


@pytest.mark.filterwarnings("ignore:.*a second time:UserWarning")
def test_groups_over_several_tensors_do_not_lie_in_one_of_them() -> None:
    net = nn.Sequential(nn.Linear(6, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    units = Coupled([{"0.weight": "rows", "2.weight": "columns"}])
    attach(net, optimizer, GroupLasso(0.1, groups=units), apply="proximal")
    attach(net, optimizer, GroupLasso(0.1, groups=units), apply="proximal")
    with pytest.warns(UserWarning, match=r"on 0\.weight .* not that of their sum"):
        attach(net, optimizer, GroupLasso(0.1, "0.weight"), apply="proximal")
