"""The sorted 1-norm: against isotonic regression, skglm, and the lasso."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.isotonic import isotonic_regression
from torch import Tensor, nn

from lightning_reg import L1, SLOPE, attach
from lightning_reg.prox.sorted import falling


@pytest.mark.parametrize("count", [1, 2, 7, 300])
@pytest.mark.parametrize("kind", ["normal", "rising", "ties"])
def test_falling_is_scikit_learns_isotonic_regression(count: int, kind: str) -> None:
    values = np.random.default_rng(count).normal(size=count)
    values = {"normal": values, "rising": np.sort(values), "ties": values.round()}[kind]
    wanted = isotonic_regression(values, increasing=False)
    np.testing.assert_allclose(falling(torch.from_numpy(values)).numpy(), wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("penalty", [SLOPE(1.0, last=0.3), SLOPE(1.0, fdr=0.2)], ids=["last", "fdr"])
def test_the_prox_is_an_isotonic_regression_of_sorted_moduli(penalty: SLOPE) -> None:
    w = np.random.default_rng(0).normal(size=60).round(1)
    coefficients = np.linspace(1.0, 0.3, 60)
    if penalty.fdr is not None:
        coefficients = stats.norm.isf(0.1 * np.arange(1, 61) / 60)
        coefficients /= coefficients[0]
    order = np.argsort(-np.abs(w))
    wanted = np.zeros(60)
    wanted[order] = isotonic_regression(np.abs(w)[order] - 0.35 * coefficients, increasing=False).clip(min=0)
    weight = torch.from_numpy(w).view(5, 12)
    found = penalty.prox(weight, strength=0.7, step=0.5)
    np.testing.assert_allclose(found.flatten().numpy(), np.sign(w) * wanted, rtol=1e-12, atol=1e-14)
    assert 0 < int((found == 0).sum()) < 60 and len(found.abs().unique()) < int((found != 0).sum())
    assert float(penalty.value(weight, 0.7)) == pytest.approx(0.7 * (np.abs(w)[order] * coefficients).sum())
    torch.testing.assert_close(penalty.prox(weight.float(), 0.7, 0.5), found.float())


def test_equal_coefficients_are_the_lasso() -> None:
    weight = torch.randn(4, 5, dtype=torch.float64)
    for ours, theirs in zip(_all(SLOPE(1.0, last=1.0), weight), _all(L1(1.0), weight), strict=True):
        torch.testing.assert_close(ours, theirs)


def _all(penalty: SLOPE | L1, weight: Tensor) -> tuple[Tensor, ...]:
    return penalty.value(weight, 0.7), penalty.gradient(weight, 0.7), penalty.prox(weight, 0.7, 0.5)


def test_correlated_features_get_one_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, dtype=torch.float64, generator=generator)
    x[:, 1] = x[:, 0] + 0.1 * x[:, 1]
    y = x[:, :2].sum(1, keepdim=True) + 0.1 * torch.randn(50, 1, dtype=torch.float64, generator=generator)
    model = nn.Linear(6, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    attach(model, optimizer, SLOPE(0.1), apply="proximal")
    for _ in range(300):
        optimizer.zero_grad()
        (0.5 * (model(x) - y).square().mean()).backward()
        optimizer.step()
    weight = model.weight.detach()[0]
    assert weight[0] == weight[1] and weight[0] > 0.8
    # the optimum of the same problem: its negative gradient is a subgradient, whose sorted sums are bounded
    residual = (x.T @ (y - model(x).detach()))[:, 0] / 50
    sums = residual.abs().sort(descending=True).values.cumsum(0)
    assert bool((sums <= 0.1 * torch.linspace(1, 0, 6, dtype=torch.float64).cumsum(0) + 1e-9).all())
    assert float(residual @ weight) == pytest.approx(float(SLOPE(1.0).value(weight, 0.1)), rel=1e-9)


def test_under_adam_it_is_refused_but_in_the_plain_metric() -> None:
    model = nn.Linear(4, 1)
    adam = torch.optim.Adam(model.parameters())
    with pytest.raises(ValueError, match="use SGD"):
        attach(model, adam, SLOPE(0.1), apply="proximal")
    attach(model, adam, SLOPE(0.1), apply="proximal", metric="euclidean")


@pytest.mark.slow  # numba compiles
@pytest.mark.xdist_group("numba")
def test_the_prox_is_skglms() -> None:
    penalties = pytest.importorskip("skglm.penalties")
    w = np.random.default_rng(1).normal(size=40)
    theirs = penalties.SLOPE(0.7 * np.linspace(1.0, 0.3, 40))
    found = SLOPE(1.0, last=0.3).prox(torch.from_numpy(w), 0.7, 0.5).numpy()
    np.testing.assert_allclose(found, theirs.prox_vec(w, 0.5), rtol=1e-10, atol=1e-14)
    assert theirs.value(w) == pytest.approx(float(SLOPE(1.0, last=0.3).value(torch.from_numpy(w), 0.7)))


def test_bad_arguments() -> None:
    for options in ({"last": 1.5}, {"last": -0.1}, {"fdr": 0.0}, {"fdr": 1.0}, {"fdr": 0.1, "last": 0.5}):
        with pytest.raises(ValueError, match=r"SLOPE\("):
            SLOPE(0.1, **options)
