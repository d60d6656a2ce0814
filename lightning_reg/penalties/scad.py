"""Smoothly clipped absolute deviation."""

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
from lightning_reg.tensors.precision import wide

__all__ = ["SCAD"]


@dataclass(frozen=True)
class SCAD(ElementwisePenalty):
    r"""Smoothly clipped absolute deviation: the lasso near 0, flat for large weights.

    :math:`\lambda|w|` up to :math:`\lambda`; then :math:`(2a\lambda|w| - w^2 - \lambda^2)/2(a-1)`; and
    :math:`\lambda^2(a+1)/2` from :math:`a\lambda` on. Not convex.

    The prox needs :math:`a - 1 > \eta` for the step of each weight. A safe form is used where an optimizer's
    step is longer, as Adam's become for weights whose gradient vanishes: it counts as :math:`a - 1`.

    Args:
        strength: λ ≥ 0, in units of loss per unit of weight.
        select: what it applies to; real tensors.
        a: where it becomes flat, in units of λ; above 2, as the authors have it.
        factors: what λ is multiplied by for each weight, a tensor, a dict of tensors or numbers by parameter
            name, or a callable ``(name, parameter, module) -> tensor``; 0 leaves a weight alone.
        name: its name in logs.

    Raises:
        ValueError: a negative, NaN or infinite strength, or ``a`` not above 2.

    >>> SCAD(1.0).prox(torch.tensor([0.5, 1.5, 3.0, 9.0]), strength=1.0, step=1.0)
    tensor([0.0000, 0.5000, 2.5882, 9.0000])

    References:
        Fan and Li, *Variable Selection via Nonconcave Penalized Likelihood and its Oracle Properties*, JASA
        96(456), 2001.
    """

    holds_zeros = True

    kind: ClassVar[str] = "concave"
    turn: ClassVar[int] = 13

    strength: ScheduleLike
    select: Select = "weights"
    _: KW_ONLY
    a: float = 3.7
    factors: Factors | None = field(default=None, repr=False, compare=False)
    name: str | None = None
    takes_complex: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2.0 < self.a < float("inf"):
            raise ValueError(f"SCAD(a={self.a}) is out of range; give a finite number above 2")

    def value(self, weight: Tensor, strength: float) -> Tensor:
        """Return the sum over all weights, in float32 or wider."""
        return prox_nonconvex.scad(wide(weight).abs(), strength, self.a).sum()

    def each(self, weight: Tensor, strength: float) -> Tensor:
        """Return the formula of each weight."""
        return prox_nonconvex.scad(weight.abs(), strength, self.a)

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\operatorname{sign}(w)\min(\lambda, (a\lambda - |w|)_+/(a-1))`, and 0 at 0."""
        return torch.sgn(weight) * prox_nonconvex.scad_slope(weight.abs(), strength, self.a)

    def prox(self, weight: Tensor, strength: float, step: float | Tensor) -> Tensor:
        """Return the weight thresholded: soft, then ever less."""
        return prox_nonconvex.scad_threshold(wide(weight), step, strength, self.a).to(weight.dtype)

    def loop(self, strength: float) -> tuple[str, str, float, float]:
        """The loop that is :meth:`prox`, and its parameters."""
        return "prox._loops", "scad_threshold", strength, self.a

    def threshold(self, strength: float, step: float | Tensor) -> float | Tensor:
        r"""Return :math:`\min(\eta, a - 1)\lambda`."""
        most = self.a - 1.0
        return strength * (step.clamp(max=most) if isinstance(step, Tensor) else min(step, most))
