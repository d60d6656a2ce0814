"""Projections, and the decay that keeps a budget."""

import numpy as np
import pytest
import torch
from scipy import optimize

from lightning_reg import MaxRank, Simplex
from lightning_reg.prox.projections import l1_ball_, max_rank_, simplex_, spend_budget_


def test_a_weight_far_above_its_budget_goes_to_zero_and_not_through_it():
    weight, multiplier = torch.tensor([3.0, -4.0]), torch.tensor(0.0)
    spend_budget_(weight, multiplier, torch.tensor(0.1), rate=1.0)  # λ would be 12.5 / 0.1 − 1
    assert torch.equal(weight, torch.zeros(2)) and multiplier == 1.0


def test_a_weight_within_its_budget_is_left_alone():
    weight, multiplier = torch.tensor([3.0, -4.0]), torch.tensor(0.0)
    spend_budget_(weight, multiplier, torch.tensor(20.0), rate=1.0)
    assert torch.equal(weight, torch.tensor([3.0, -4.0])) and multiplier == 0.0


@pytest.mark.parametrize("radius", [0.1, 2.0, 9.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_nearest_point_of_an_l1_ball_by_bisection(radius: float, dtype: torch.dtype) -> None:
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    values = weight.double().numpy().copy()
    low, high = 0.0, float(np.abs(values).max())
    for _ in range(100):  # the threshold at which the moduli add up to the radius
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(np.abs(values) - middle, 0).sum() > radius else (low, middle)
    wanted = np.sign(values) * np.maximum(np.abs(values) - high, 0)
    before = weight.clone()
    l1_ball_(weight, radius)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    assert np.allclose(weight.double().numpy(), wanted, rtol=tolerance, atol=tolerance)
    assert torch.equal(weight, before) == (np.abs(values).sum() <= radius)
    assert bool((weight == 0).any()) == (radius < 10.0)


def test_a_ball_of_equal_weights_and_of_none() -> None:
    weight = torch.full((4,), 2.0)
    l1_ball_(weight, 2.0)
    assert weight.tolist() == [0.5] * 4
    l1_ball_(torch.zeros(0, 3), 1.0)


@pytest.mark.parametrize("radius", [0.1, 2.0, 50.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_nearest_point_of_a_simplex_by_scipy(radius: float, dtype: torch.dtype) -> None:
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    values = weight.double().numpy().copy()
    left = lambda theta: np.maximum(values - theta, 0).sum() - radius  # noqa: E731
    theta = optimize.brentq(left, values.min() - radius, values.max(), xtol=1e-15)
    simplex_(weight, radius)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    assert np.allclose(weight.double().numpy(), np.maximum(values - theta, 0), rtol=tolerance, atol=tolerance)
    if dtype != torch.bfloat16:
        before = weight.clone()
        simplex_(weight, radius)
        assert torch.equal(weight, before)
    simplex_(torch.zeros(0, 3), 1.0)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (3, 2, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_lower_rank_is_numpys_truncated_decomposition(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    u, sigma, v = np.linalg.svd(weight.double().flatten(1).numpy(), full_matrices=False)
    wanted = (u[:, :2] * sigma[:2]) @ v[:2]
    max_rank_(weight, 2)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert np.allclose(weight.double().flatten(1).numpy(), wanted, rtol=tolerance, atol=tolerance)
    before = weight.clone()
    if dtype != torch.bfloat16:  # which rounds what it holds to a higher rank
        max_rank_(weight, 2)
    for loose in (min(wanted.shape), 9):
        max_rank_(weight, loose)
    assert torch.equal(weight, before)
    vector = torch.tensor([1.0, 2.0])
    max_rank_(vector, 1)
    assert vector.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("rank", [0, -1, 1.5, True])
def test_a_rank_out_of_range_is_refused(rank: float) -> None:
    with pytest.raises(ValueError, match="MaxRank"):
        MaxRank(rank)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Simplex"):
        Simplex(-1.0)
