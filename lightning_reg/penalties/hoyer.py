"""Ratios of norms: sparsity that does not depend on scale."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field

import torch
from torch import Tensor

from lightning_reg.penalties._factors import Factors
from lightning_reg.penalties.base import Penalty
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.select.parameters import Select
from lightning_reg.tensors.precision import norm, real_dtype

__all__ = ["Hoyer", "HoyerSquare"]


def _ratio(weight: Tensor) -> Tensor:
    """‖w‖₁/‖w‖₂, and 0 at 0 with a gradient of 0."""
    length = norm(weight)
    safe = torch.where(length > 0, length, 1.0)
    return norm(weight, 1) / safe


def _ratio_gradient(weight: Tensor) -> tuple[Tensor, Tensor]:
    """‖w‖₁/‖w‖₂ and its gradient, (sign(w) − (w/‖w‖₂)·‖w‖₁/‖w‖₂)/‖w‖₂; both 0 at 0."""
    length = norm(weight)
    inverse = torch.where(length > 0, 1.0 / length, 0.0)
    ratio = norm(weight, 1) * inverse
    dtype = real_dtype(weight.dtype)
    unit = weight * inverse.to(dtype)
    return ratio, (torch.sgn(weight) - unit * ratio.to(dtype)) * inverse.to(dtype)


@dataclass(frozen=True)
class Hoyer(Penalty):
    r"""The ratio of norms of each tensor: :math:`\lambda\|w\|_1/\|w\|_2`.

    It lies between :math:`\lambda` (one weight) and :math:`\lambda\sqrt n` (all of one size) whatever the
    scale, so that it makes small weights smaller without shrinking the tensor. A zero tensor counts 0. There
    is no proximal operator in closed form; prune what has become small.

    Args:
        strength: λ ≥ 0, in units of loss.
        select: what it applies to.
        factors: what λ is multiplied by for each tensor: a dict of numbers by parameter name, or a callable
            ``(name, parameter, module) -> number``.
        name: its name in logs.

    Raises:
        ValueError: a negative, NaN or infinite strength.

    >>> Hoyer(1.0).value(torch.tensor([3.0, 4.0]), strength=1.0)
    tensor(1.4000)

    References:
        Hoyer, *Non-negative Matrix Factorization with Sparseness Constraints*, JMLR 5, 2004.
    """

    strength: ScheduleLike
    select: Select = "weights"
    _: KW_ONLY
    factors: Factors | None = field(default=None, repr=False, compare=False)
    name: str | None = None

    def value(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\lambda\|w\|_1/\|w\|_2`."""
        return _ratio(weight) * strength

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\lambda(\operatorname{sign}(w) - w\|w\|_1/\|w\|_2^2)/\|w\|_2`, and 0 at 0."""
        return _ratio_gradient(weight)[1] * strength


@dataclass(frozen=True)
class HoyerSquare(Penalty):
    r"""The squared ratio of norms of each tensor: :math:`\lambda\|w\|_1^2/\|w\|_2^2`.

    Between :math:`\lambda` and :math:`\lambda n`: about λ times the number of weights that matter. A zero
    tensor counts 0. There is no proximal operator in closed form.

    Args:
        strength: λ ≥ 0, in units of loss.
        select: what it applies to.
        factors: what λ is multiplied by for each tensor: a dict of numbers by parameter name, or a callable
            ``(name, parameter, module) -> number``.
        name: its name in logs.

    Raises:
        ValueError: a negative, NaN or infinite strength.

    >>> HoyerSquare(1.0).value(torch.tensor([3.0, 4.0]), strength=1.0)
    tensor(1.9600)

    References:
        Yang, Wen and Li, *DeepHoyer: Learning Sparser Neural Network with Differentiable Scale-Invariant
        Sparsity Measures*, ICLR 2020.
    """

    strength: ScheduleLike
    select: Select = "weights"
    _: KW_ONLY
    factors: Factors | None = field(default=None, repr=False, compare=False)
    name: str | None = None

    def value(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\lambda\|w\|_1^2/\|w\|_2^2`."""
        return _ratio(weight).square() * strength

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        """Return 2λ times the ratio times the ratio's gradient, and 0 at 0."""
        ratio, gradient = _ratio_gradient(weight)
        return gradient * (2.0 * strength * ratio).to(real_dtype(weight.dtype))
