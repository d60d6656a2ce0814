"""The sum of square roots."""

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

__all__ = ["LHalf"]


@dataclass(frozen=True)
class LHalf(ElementwisePenalty):
    r"""The sum of square roots of the moduli: :math:`\lambda\sum_i|w_i|^{1/2}`.

    Sparser than the lasso, and it shrinks large weights less. Its gradient grows without bound near 0, so it
    acts with ``apply="proximal"`` alone. Not convex.

    Args:
        strength: λ ≥ 0, in units of loss per root of weight.
        select: what it applies to; real tensors.
        factors: what λ is multiplied by for each weight, a tensor, a dict of tensors or numbers by parameter
            name, or a callable ``(name, parameter, module) -> tensor``; 0 leaves a weight alone.
        name: its name in logs.

    Raises:
        ValueError: a negative, NaN or infinite strength.

    >>> LHalf(1.0).prox(torch.tensor([1.0, 2.0]), strength=1.0, step=1.0)
    tensor([0.0000, 1.6054])

    References:
        Xu, Chang, Xu and Zhang, *L1/2 Regularization: A Thresholding Representation Theory and a Fast
        Solver*, IEEE TNNLS 23(7), 2012.
    """

    holds_zeros = True

    kind: ClassVar[str] = "concave"
    turn: ClassVar[int] = 14

    strength: ScheduleLike
    select: Select = "weights"
    _: KW_ONLY
    factors: Factors | None = field(default=None, repr=False, compare=False)
    name: str | None = None
    takes_complex: ClassVar[bool] = False

    def value(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\lambda\sum_i|w_i|^{1/2}`, in float32 or wider; its gradient at 0 is 0."""
        modulus = wide(weight).abs()
        # the root's slope at 0 is infinite, and times 0 is NaN
        return (torch.where(modulus > 0, modulus, 1.0).sqrt() * (modulus > 0)).sum() * strength

    def each(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\lambda|w_i|^{1/2}`."""
        modulus = weight.abs()
        return torch.where(modulus > 0, modulus, 1.0).sqrt() * (modulus > 0) * strength

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\tfrac\lambda2\operatorname{sign}(w)|w|^{-1/2}`, and 0 at 0."""
        modulus = weight.abs()
        return torch.sgn(weight) * (0.5 * strength) * torch.where(modulus > 0, modulus, 1.0).rsqrt()

    @property
    def has_gradient(self) -> bool:
        """No; near 0 it is too long for any step."""
        return False

    def prox(self, weight: Tensor, strength: float, step: float | Tensor) -> Tensor:
        r"""Return the weight beyond :math:`\tfrac32(\eta\lambda)^{2/3}`, shortened, and 0 elsewhere."""
        return prox_nonconvex.half_threshold(wide(weight), step * strength).to(weight.dtype)

    def loop(self, strength: float) -> tuple[str, str, float, float]:
        """The loop that is :meth:`prox`, and its parameters."""
        return "prox._loops", "half_threshold", strength, 0.0

    def threshold(self, strength: float, step: float | Tensor) -> float | Tensor:
        r"""Return :math:`\tfrac32(\eta\lambda)^{2/3}`."""
        return 1.5 * (step * strength) ** (2.0 / 3.0)
