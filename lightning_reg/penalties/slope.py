"""The sorted 1-norm: the larger a weight's rank, the more it is shrunk."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lightning_reg.penalties._factors import Factors
from lightning_reg.penalties.base import Penalty
from lightning_reg.prox.sorted import sorted_threshold
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.select.parameters import Select
from lightning_reg.tensors.precision import wide

__all__ = ["SLOPE"]


@dataclass(frozen=True)
class SLOPE(Penalty):
    r"""Sorted 1-norm of each tensor: :math:`\lambda\sum_i c_i|w|_{(i)}`, the largest modulus first.

    Also called OWL; the coefficients fall. It sets weights to zero, as L1 does, and weights of about one size
    to one size: features that are correlated get the same weight. :math:`c_1 = 1`, and then

    - :math:`c_i` falls in equal steps to ``last`` (OSCAR); L1 at ``last=1``;
    - with ``fdr=q``, :math:`c_i = \Phi^{-1}(1 - iq/2n)/\Phi^{-1}(1 - q/2n)`, the critical values of Benjamini
      and Hochberg, whose share of false discoveries among n orthogonal features is at most q.

    The prox is exact, for one step a tensor (SGD, or ``metric="euclidean"``): with a step for each weight,
    the order of the result is not that of the weights. Its zeros are not held by dual averaging, so that in
    mini-batches some come and go. Sharded tensors are gathered.

    Args:
        strength: λ ≥ 0, in units of loss per unit of weight.
        select: what it applies to; real tensors.
        last: :math:`c_n` in [0, 1], of the smallest weight.
        fdr: q in (0, 1), in the place of ``last``.
        factors: what λ is multiplied by for each tensor: a dict of numbers by parameter name, or a callable
            ``(name, parameter, module) -> number``.
        name: its name in logs.

    Raises:
        ValueError: a negative, NaN or infinite strength, ``last`` or ``fdr`` out of range, or both given.

    >>> penalty = SLOPE(1.0)
    >>> penalty.value(torch.tensor([3.0, -2.0, 1.0]), strength=1.0)
    tensor(4.)
    >>> penalty.prox(torch.tensor([3.0, -2.8, 0.2]), strength=1.0, step=1.0)
    tensor([ 2.1500, -2.1500,  0.2000])

    References:
        Bogdan, van den Berg, Sabatti, Su and Candès, *SLOPE: Adaptive Variable Selection via Convex
        Optimization*, Ann. Appl. Stat. 9(3), 2015; Bondell and Reich, *Simultaneous Regression Shrinkage,
        Variable Selection, and Supervised Clustering of Predictors with OSCAR*, Biometrics 64(1), 2008.
    """

    kind: ClassVar[str] = "moduli"

    strength: ScheduleLike
    select: Select = "weights"
    _: KW_ONLY
    last: float = 0.0
    fdr: float | None = None
    factors: Factors | None = field(default=None, repr=False, compare=False)
    name: str | None = None
    takes_complex: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.last <= 1.0:
            raise ValueError(f"SLOPE(last={self.last}) is outside [0, 1]; 1 is L1")
        if self.fdr is not None and (not 0.0 < self.fdr < 1.0 or self.last):
            raise ValueError(
                f"SLOPE(last={self.last}, fdr={self.fdr}) is out of range; give an fdr between 0 and 1, alone"
            )

    def coefficients(self, like: Tensor) -> Tensor:
        """Return the falling :math:`c_i` for as many weights, in the dtype of ``like``."""
        count = like.numel()
        if self.fdr is None or not count:
            return torch.linspace(1.0, self.last, count, dtype=like.dtype, device=like.device)
        ranks = torch.arange(1, count + 1, dtype=torch.float64)
        found: Tensor = torch.special.ndtri(1.0 - ranks * (self.fdr / (2 * count)))
        return (found / found[0]).to(like)

    def value(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\lambda\sum_i c_i|w|_{(i)}`, in float32 or wider."""
        modulus = wide(weight).flatten().abs().sort(descending=True, stable=True).values
        return (modulus * self.coefficients(modulus)).sum() * strength

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        """Return λ times sign and coefficient of each weight; of equal moduli the first is the largest."""
        modulus = wide(weight).flatten().abs()
        each = torch.empty_like(modulus)
        each[modulus.argsort(descending=True, stable=True)] = self.coefficients(modulus)
        return torch.sgn(weight) * (each * strength).to(weight.dtype).view(weight.shape)

    def prox(self, weight: Tensor, strength: float, step: float | Tensor) -> Tensor:
        """Return the weights shrunk by their ranks; what would change places gets one modulus."""
        values = wide(weight)
        thresholds = self.coefficients(values) * (float(step) * strength)
        return sorted_threshold(values, thresholds).to(weight.dtype)

    @property
    def prox_in_metric(self) -> bool:
        """No; it couples its weights through their order."""
        return False
