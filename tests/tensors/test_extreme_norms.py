"""Norms of weights whose squares a float32 does not hold, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from lightning_reg import (
    GroupLasso,
    Hoyer,
    HoyerSquare,
    L2Norm,
    Orthogonality,
    SparseGroupLasso,
    SpectralNorm,
    attach,
)
from lightning_reg.constraints import MaxNorm, UnitNorm
from lightning_reg.groups.layout import Slices
from lightning_reg.metrics import parameter_norm
from lightning_reg.prox.group import group_norms
from lightning_reg.tensors.precision import norm

SCALES = [1e20, 1e-30]
PENALTIES = [
    GroupLasso(1.0),
    L2Norm(1.0),
    SparseGroupLasso(1.0, l1_ratio=0.5),
    Hoyer(1.0),
    HoyerSquare(1.0),
    SpectralNorm(1.0, iterations=30),
    Orthogonality(1.0, form="srip", iterations=300),
]


def _layer(scale: float, dtype: torch.dtype, **options: Any) -> tuple[nn.Module, Any, SGD]:
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * scale
    layer = nn.Linear(7, 5, bias=False, dtype=dtype)
    layer.weight.data = weight.to(dtype)
    layer.weight.grad = torch.zeros_like(layer.weight)
    optimizer = SGD(layer.parameters(), lr=0.1 * scale)
    return layer, attach(layer, optimizer, **options), optimizer


def _value_and_gradient(scale: float, dtype: torch.dtype, penalty: Any) -> tuple[Tensor, Tensor]:
    layer, handle, _ = _layer(scale, dtype, penalty=penalty)
    handle.add_gradient()
    assert isinstance(layer.weight, Tensor) and layer.weight.grad is not None
    return handle.value().double(), layer.weight.grad.double()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda penalty: type(penalty).__name__)
def test_values_and_gradients(penalty: Any, scale: float) -> None:
    if isinstance(penalty, Orthogonality) and scale < 1.0:
        pytest.skip("every direction is as far from orthonormal as any other")
    (value, found), (right, expected) = (
        _value_and_gradient(scale, dtype, penalty) for dtype in (torch.float32, torch.float64)
    )
    if right < torch.finfo(torch.float32).max:
        torch.testing.assert_close(value, right, rtol=1e-4, atol=0.0)
    scale = float(expected.abs().max())
    torch.testing.assert_close(found / scale, expected / scale, rtol=0.0, atol=1e-3)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    "acting",
    [GroupLasso(1.0), L2Norm(1.0), SparseGroupLasso(1.0, l1_ratio=0.5), UnitNorm(), MaxNorm],
    ids=lambda acting: getattr(acting, "__name__", type(acting).__name__),
)
def test_what_acts_in_place(acting: Any, scale: float) -> None:
    penalty = acting(scale) if acting is MaxNorm else acting
    results = []
    for dtype in (torch.float32, torch.float64):
        layer, _, optimizer = _layer(scale, dtype, penalty=penalty, apply="proximal")
        optimizer.step()
        results.append(next(layer.parameters()).detach().double())
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4 * float(results[1].abs().max()))


def test_norms_of_several_tensors_of_zeros_and_of_nan() -> None:
    weight = torch.tensor([[3e30, 4e30], [0.0, 0.0], [3e-30, 4e-30]], requires_grad=True)
    layout = Slices((3, 2), keep=(0,))
    found = group_norms([weight, weight.detach()], [layout, layout])
    torch.testing.assert_close(found, torch.tensor([5e30, 0.0, 5e-30]) * 2**0.5, rtol=1e-6, atol=0.0)
    norms = layout.norm(weight)
    (gradient,) = torch.autograd.grad(norms.sum(), weight)
    torch.testing.assert_close(gradient, torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.6, 0.8]]))
    assert norm(torch.tensor([float("nan"), 1.0])).isnan() and norm(torch.tensor([])) == 0
    assert norm(torch.full((2,), 3e20 + 4e20j)) == pytest.approx(5e20 * 2**0.5)
    torch.testing.assert_close(parameter_norm([weight, weight]), torch.tensor(5e30 * 2**0.5))
    torch.vmap(norm)(torch.ones(2, 3))
