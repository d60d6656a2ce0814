"""Elastic net, L1 and L2 together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lightning_reg.penalties._factors import Factors
from lightning_reg.penalties.elementwise import ElementwisePenalty
from lightning_reg.prox import elementwise as prox
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.select.parameters import Select
from lightning_reg.tensors import kernels
from lightning_reg.tensors.precision import norm, sum_of_squares
from lightning_reg.tensors.steps import StepSize

__all__ = ["ElasticNet"]


@dataclass(frozen=True)
class ElasticNet(ElementwisePenalty):
    r"""Elastic net: :math:`\lambda\bigl(\rho\sum_i|w_i| + \tfrac{1-\rho}{2}\sum_i w_i^2\bigr)`.

    This is scikit-learn's convention, with ρ its ``l1_ratio``.

    Args:
        strength: λ ≥ 0.
        select: what it applies to.
        l1_ratio: ρ in [0, 1]: 1 is L1, 0 is L2.
        factors: what λ is multiplied by for each weight, a tensor, a dict of tensors or numbers by parameter
            name, or a callable ``(name, parameter, module) -> tensor``; 0 leaves a weight alone.
        name: its name in logs.

    Raises:
        ValueError: a negative, NaN or infinite strength, or ``l1_ratio`` outside [0, 1].

    >>> ElasticNet(0.1, l1_ratio=0.5).value(torch.tensor([3.0, -4.0]), strength=0.1)
    tensor(0.9750)

    References:
        Zou and Hastie, *Regularization and Variable Selection via the Elastic Net*, JRSS B 67(2), 2005.
    """

    kind: ClassVar[str] = "threshold"
    turn: ClassVar[int] = 7

    strength: ScheduleLike
    select: Select = "weights"
    _: KW_ONLY
    l1_ratio: float = 0.5
    factors: Factors | None = field(default=None, repr=False, compare=False)
    name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.l1_ratio <= 1.0:
            raise ValueError(f"ElasticNet(l1_ratio={self.l1_ratio}) is outside [0, 1]; 1 is L1 and 0 is L2")

    def value(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\lambda(\rho\sum_i|w_i| + \tfrac{1-\rho}{2}\sum_i|w_i|^2)`."""
        absolute = norm(weight, 1) * (strength * self.l1_ratio)
        return absolute + sum_of_squares(weight) * (strength * 0.5 * (1.0 - self.l1_ratio))

    def each(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\lambda(\rho|w_i| + \tfrac{1-\rho}{2}|w_i|^2)`."""
        modulus = weight.abs()
        rest = 0.5 * (1.0 - self.l1_ratio)
        return strength * (self.l1_ratio * modulus + rest * modulus.square())

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\lambda(\rho\operatorname{sign}(w) + (1-\rho)w)`."""
        return strength * (self.l1_ratio * torch.sgn(weight) + (1.0 - self.l1_ratio) * weight)

    def prox(self, weight: Tensor, strength: float, step: float | Tensor) -> Tensor:
        """Return the weight soft-thresholded for L1, then shrunk for L2."""
        thresholded = prox.soft_threshold(weight, step * (strength * self.l1_ratio))
        return prox.shrink(thresholded, step * (strength * (1.0 - self.l1_ratio)))

    def ridge(self, weight: Tensor, strength: float) -> float:
        r"""Return :math:`\lambda(1 - \rho)`."""
        return strength * (1.0 - self.l1_ratio)

    @property
    def makes_zeros(self) -> bool:
        """Whether there is an L1 part."""
        return self.l1_ratio > 0.0

    @property
    def holds_zeros(self) -> bool:
        """Whether there is an L1 part."""
        return self.l1_ratio > 0.0

    def threshold(self, strength: float, step: float | Tensor) -> float | Tensor:
        r"""Return :math:`\eta\lambda\rho`."""
        return step * (strength * self.l1_ratio)

    def add_gradient_(
        self, targets: Sequence[Tensor], weights: Sequence[Tensor], strength: float, alpha: float = 1.0
    ) -> None:
        """``targets += alpha · λ · (ρ · sign(weights) + (1 − ρ) · weights)`` in one pass."""
        alpha = alpha * strength
        kernels.add_sign_(targets, weights, alpha * self.l1_ratio, scaled=alpha * (1.0 - self.l1_ratio))

    def prox_(self, weights: Sequence[Tensor], strength: float, steps: Sequence[StepSize]) -> None:
        """Soft-threshold, then shrink, in place, in each tensor's metric."""
        kernels.soft_threshold_in_metric_(weights, steps, *self.soft(strength))

    def soft(self, strength: float) -> tuple[float, float]:
        """Return λρ and λ(1 − ρ)."""
        return strength * self.l1_ratio, strength * (1.0 - self.l1_ratio)

    def loop(self, strength: float) -> tuple[str, str, float, float]:
        """The loop that is :meth:`prox`, and its parameters."""
        return "tensors.loops", "elastic_net", *self.soft(strength)
