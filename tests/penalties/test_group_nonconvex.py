"""MCP and SCAD of groups' norms: against those of single weights, skglm, and least squares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_reg import MCP, SCAD, GroupMCP, GroupSCAD, attach
from tests.turns import everyday

PAIRS: list[Any] = [
    (GroupMCP(1.0, gamma=2.5, size_weighted=False), MCP(1.0, gamma=2.5), 2.4),
    (GroupSCAD(1.0, a=3.2, size_weighted=False), SCAD(1.0, a=3.2), 2.1),
]


@pytest.mark.parametrize(("grouped", "single", "longest"), PAIRS, ids=["MCP", "SCAD"])
def test_groups_of_one_are_single_weights(grouped: Any, single: Any, longest: float) -> None:
    weight = torch.linspace(-5, 5, 101, dtype=torch.float64)[:, None]
    assert grouped.value(weight, 0.7) == pytest.approx(float(single.value(weight, 0.7)), rel=1e-13)
    torch.testing.assert_close(grouped.gradient(weight, 0.7), single.gradient(weight, 0.7))
    for step in (0.3, longest, torch.linspace(0.1, longest, 101, dtype=torch.float64)[:, None]):
        torch.testing.assert_close(grouped.prox(weight, 0.7, step), single.prox(weight, 0.7, step))


@pytest.mark.parametrize("penalty", [PAIRS[0][0], PAIRS[1][0]], ids=["MCP", "SCAD"])
def test_a_step_beyond_the_bend_counts_as_the_longest_and_cuts_no_long_group(penalty: Any) -> None:
    weight = torch.randn(40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight *= torch.linspace(0.1, 5.0, 40, dtype=torch.float64)[:, None]
    flat = 0.7 * (2.5 if isinstance(penalty, GroupMCP) else 3.2)
    long = weight.norm(dim=1) > flat
    nearly = penalty.longest_step * (1 - 2**-10)
    for step in (penalty.longest_step, 1e8, torch.full((40, 5), 1e8, dtype=torch.float64)):
        after = penalty.prox(weight, 0.7, step)
        torch.testing.assert_close(after, penalty.prox(weight, 0.7, nearly), rtol=1e-8, atol=1e-8)
        assert 0 < long.sum() < 40 and torch.equal(after[long], weight[long])


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    everyday(2, [(GroupMCP, "Adam"), (GroupSCAD, "SGD"), (GroupSCAD, "Adam"), (GroupMCP, "SGD")]),
)
def test_what_stays_is_least_squares_and_what_goes_is_zero(kind: Any, optimizer: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 12, dtype=torch.float64, generator=generator)
    y = x[:, :3] @ torch.tensor([[1.0], [-2.0], [1.5]], dtype=torch.float64)
    y = y + 0.3 * torch.randn(60, 1, dtype=torch.float64, generator=generator)
    oracle = torch.linalg.lstsq(x[:, :3], y).solution.T

    model = nn.Linear(12, 1, bias=False).double()
    options = {"lr": 0.1, "betas": (0.5, 0.9)} if optimizer == "Adam" else {"lr": 0.5}
    optimize = getattr(torch.optim, optimizer)(model.parameters(), **options)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimize, 0.97)
    labels = torch.arange(12)[None] // 3
    attach(model, optimize, kind(0.15, groups=lambda *_: labels), apply="proximal")
    for _ in range(200):
        optimize.zero_grad()
        (0.5 * (model(x) - y).square().mean()).backward()
        optimize.step()
        decay.step()
    weight = model.weight.detach()
    assert not weight[0, 3:].any()
    torch.testing.assert_close(weight[:, :3], oracle, rtol=0, atol=1e-3)


@pytest.mark.slow  # numba compiles
@pytest.mark.xdist_group("numba")
def test_values_and_proxes_are_skglms() -> None:
    blocks = pytest.importorskip("skglm.penalties.block_separable")
    w = 2 * np.random.default_rng(0).normal(size=(30, 4))
    weight = torch.from_numpy(w)
    for (ours, _, _), theirs in zip(
        PAIRS, (blocks.BlockMCPenalty(0.7, 2.5), blocks.BlockSCAD(0.7, 3.2)), strict=True
    ):
        np.testing.assert_allclose(float(ours.value(weight, 0.7)), theirs.value(w), rtol=1e-13)
        prox = [theirs.prox_1feat(row, 0.8, 0) for row in w]
        np.testing.assert_allclose(ours.prox(weight, 0.7, 0.8).numpy(), prox, rtol=1e-10, atol=1e-14)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="gamma=0"):
        GroupMCP(0.1, gamma=0)
    with pytest.raises(ValueError, match="above 2"):
        GroupSCAD(0.1, a=2.0)
