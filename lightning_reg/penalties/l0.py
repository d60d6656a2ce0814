"""The number of weights that are not zero."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lightning_reg.penalties._factors import Factors
from lightning_reg.penalties.elementwise import ElementwisePenalty
from lightning_reg.prox import nonconvex as prox_nonconvex
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.select.parameters import Select
from lightning_reg.tensors.precision import accumulator, real_dtype

__all__ = ["L0"]


@dataclass(frozen=True)
class L0(ElementwisePenalty):
    r"""The number of weights that are not zero: :math:`\lambda\,\#\{i : w_i \ne 0\}`.

    It has no gradient to follow, so it acts with ``apply="proximal"`` alone: weights with
    :math:`|w| \le \sqrt{2\eta\lambda}` become zero, and the others stay as they are. Not convex: what is
    found depends on where training starts.

    It is refused in a metric like Adam's: the gradient of a weight that stays vanishes, so that its step
    grows without bound, and the threshold with it, until every weight is cut off. Use SGD, or
    ``metric="euclidean"``.

    Args:
        strength: λ ≥ 0, in units of loss per weight.
        select: what it applies to.
        factors: what λ is multiplied by for each weight, a tensor, a dict of tensors or numbers by parameter
            name, or a callable ``(name, parameter, module) -> tensor``; 0 leaves a weight alone.
        name: its name in logs.

    Raises:
        ValueError: a negative, NaN or infinite strength.

    >>> L0(0.5).prox(torch.tensor([0.9, 1.1]), strength=0.5, step=1.0)
    tensor([0.0000, 1.1000])

    References:
        Blumensath and Davies, *Iterative Thresholding for Sparse Approximations*, J. Fourier Anal. Appl.
        14(5), 2008.
    """

    holds_zeros = True

    kind: ClassVar[str] = "concave"
    turn: ClassVar[int] = 16

    strength: ScheduleLike
    select: Select = "weights"
    _: KW_ONLY
    factors: Factors | None = field(default=None, repr=False, compare=False)
    name: str | None = None

    def value(self, weight: Tensor, strength: float) -> Tensor:
        """Return λ times the number of weights that are not zero; its derivative is 0."""
        dtype = accumulator(weight.dtype) or real_dtype(weight.dtype)
        return (weight.detach() != 0).sum().to(dtype) * strength

    def each(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\lambda` where a weight is not zero, and :math:`0`."""
        return (weight.detach() != 0).to(weight.dtype) * strength

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        """Return 0, the derivative almost everywhere."""
        return torch.zeros_like(weight)

    @property
    def has_gradient(self) -> bool:
        """No; it is 0."""
        return False

    @property
    def prox_in_metric(self) -> bool:
        """No; the threshold would grow until nothing is left."""
        return False

    def prox(self, weight: Tensor, strength: float, step: float | Tensor) -> Tensor:
        r"""Return the weight where :math:`|w| > \sqrt{2\eta\lambda}`, and 0 elsewhere."""
        return prox_nonconvex.hard_threshold(weight, (2.0 * step * strength) ** 0.5)

    def threshold(self, strength: float, step: float | Tensor) -> float | Tensor:
        r"""Return :math:`\sqrt{2\eta\lambda}`."""
        return (2.0 * step * strength) ** 0.5
