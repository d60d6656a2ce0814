"""Total variation: against bounded least squares, and the fused lasso's optimality."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import nn

from lightning_reg import L1, TotalVariation, attach
from lightning_reg.prox.fused import smooth_lines
from lightning_reg.select.parameters import select_parameters
from lightning_reg.tensors.steps import StepSize


@pytest.mark.parametrize("count", [2, 3, 17])
@pytest.mark.parametrize("threshold", [0.05, 0.5, 30.0])
def test_the_prox_of_a_line_is_the_dual_problems(count: int, threshold: float) -> None:
    line = np.random.default_rng(count).normal(size=count).cumsum().round(1)
    steps = np.diff(np.eye(count), axis=0)
    dual = optimize.lsq_linear(steps.T, line, (-threshold, threshold), method="bvls", tol=1e-15).x
    found = smooth_lines(torch.from_numpy(line), threshold)
    np.testing.assert_allclose(found.numpy(), line - steps.T @ dual, atol=1e-9)
    if threshold == 30.0:
        assert found.unique().numel() == 1
    elif count == 17:
        assert 1 < found.unique().numel() < 17


@pytest.mark.parametrize("factors", ["some", "zeros", "large"])
def test_each_step_has_a_threshold_of_its_own(factors: str) -> None:
    """Against the dual with bounds for each step; a factor of 0 lets neighbours part."""
    rng = np.random.default_rng(5)
    weight = rng.normal(size=(3, 12)).cumsum(1)
    each = rng.uniform(0.1, 2.0, size=(3, 11))
    each *= {"some": 1.0, "zeros": rng.integers(0, 2, size=(3, 11)), "large": 50.0}[factors]
    steps = np.diff(np.eye(12), axis=0)
    wanted = []
    for line, some in zip(weight, 0.35 * each, strict=True):
        free = steps[some > 0].T  # bounds may not be equal
        bounds = (-some[some > 0], some[some > 0])
        wanted.append(line - free @ optimize.lsq_linear(free, line, bounds, method="bvls", tol=1e-15).x)
    model = nn.Linear(12, 3, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(weight))
    penalty = TotalVariation(1.0, factors=torch.from_numpy(each))
    bound = penalty.bind(select_parameters(model, "weights"))
    value = bound.total([model.weight], 0.7, model.weight)
    assert float(value.detach()) == pytest.approx(0.7 * (each * np.abs(np.diff(weight))).sum())
    (gradient,) = torch.autograd.grad(value, model.weight)
    torch.testing.assert_close(bound.gradient(model.weight, 0.7), gradient)
    bound.prox_([model.weight], 0.7, [StepSize.of(0.5)])
    np.testing.assert_allclose(model.weight.detach().numpy(), wanted, atol=1e-9)


def test_factors_of_steps_along_another_dimension() -> None:
    weight = torch.randn(5, 3, dtype=torch.float64)
    column = torch.tensor([[0.0], [1.0], [3.0], [0.5]], dtype=torch.float64)
    model = nn.Linear(3, 5, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(weight)
    bound = TotalVariation(1.0, dim=0, factors=column).bind(select_parameters(model, "weights"))
    bound.prox_([model.weight], 0.2, [StepSize.of(1.0)])
    lines = [smooth_lines(line, 0.2 * column[:, 0]) for line in weight.T]
    assert torch.equal(model.weight.detach(), torch.stack(lines, dim=1))
    assert torch.equal(model.weight[0], weight[0])  # nothing holds it to its neighbour


def test_each_line_by_itself_along_any_dimension() -> None:
    weight = torch.randn(3, 5, 4, dtype=torch.float64)
    for dim in (0, 1, -1):
        found = TotalVariation(1.0, dim=dim).prox(weight, 0.7, 0.5)
        lines = [smooth_lines(line, 0.35) for line in weight.movedim(dim, -1).reshape(-1, weight.shape[dim])]
        wanted = torch.stack(lines).view(weight.movedim(dim, -1).shape).movedim(-1, dim)
        assert torch.equal(found, wanted)


def test_beside_l1_it_is_the_fused_lasso_in_either_order() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 12, dtype=torch.float64, generator=generator)
    truth = torch.tensor([0.0] * 4 + [2.0] * 4 + [0.0] * 4, dtype=torch.float64)
    y = x @ truth + 0.3 * torch.randn(60, dtype=torch.float64, generator=generator)
    ends = []
    for penalties in ([L1(0.05), TotalVariation(0.1)], [TotalVariation(0.1), L1(0.05)]):
        model = nn.Linear(12, 1, bias=False).double()
        nn.init.zeros_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        for penalty in penalties:
            attach(model, optimizer, penalty, apply="proximal", dual_averaging=False)
        for _ in range(150):
            optimizer.zero_grad()
            (0.5 * (model(x)[:, 0] - y).square().mean()).backward()
            optimizer.step()
        ends.append(model.weight.detach()[0])
    assert torch.equal(*ends)
    weight = ends[0]
    assert weight[4:8].unique().numel() == 1 and not weight[:4].any() and not weight[8:].any()
    # no direction that fuses, parts or moves neighbours lowers the objective
    cost = lambda w: (  # noqa: E731
        0.5 * (x @ w - y).square().mean() + 0.05 * w.abs().sum() + 0.1 * w.diff().abs().sum()
    )
    for begin, end in pairwise([0, 2, 4, 6, 8, 10, 12]):
        for size in (1e-5, -1e-5):
            other = weight.clone()
            other[begin:end] += size
            assert cost(other) >= cost(weight) - 1e-12


def test_what_has_no_prox_is_refused() -> None:
    model = nn.Linear(4, 3)
    with pytest.raises(ValueError, match="use SGD"):
        attach(model, torch.optim.Adam(model.parameters()), TotalVariation(0.1), apply="proximal")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="no proximal operator"):
        attach(model, optimizer, TotalVariation(0.1, dim=(0, 1)), apply="proximal")
    with pytest.raises(ValueError, match=r"needs dimension 1, and bias is of shape \(3,\)"):
        attach(model, optimizer, TotalVariation(0.1, "all", dim=1))
    with pytest.raises(ValueError, match=r"of shape \(3, 4\) for weight, which needs \(3, 3\)"):
        attach(model, optimizer, TotalVariation(0.1, factors=torch.ones(3, 4)))
    with pytest.raises(ValueError, match=r"of shape \(3, 3\) for weight, which needs one number"):
        attach(model, optimizer, TotalVariation(0.1, dim=(0, 1), factors=torch.ones(3, 3)))
    with pytest.raises(ValueError, match="is no dimension"):
        TotalVariation(0.1, dim=())
