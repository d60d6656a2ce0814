"""L1, the lasso."""

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
from lightning_reg.tensors.precision import norm
from lightning_reg.tensors.steps import StepSize

__all__ = ["L1"]


@dataclass(frozen=True)
class L1(ElementwisePenalty):
    r"""The lasso: :math:`\lambda\sum_i|w_i|`.

    Its gradient is :math:`\lambda\operatorname{sign}(w)`, with the subgradient 0 at 0. A gradient never makes
    an exact zero; the proximal operator, :math:`\operatorname{sign}(w)\max(|w| - \eta\lambda, 0)`, does: use
    ``apply="proximal"`` for zeros. Complex weights count by their modulus.

    ``torch.nn.L1Loss`` is something else: it measures outputs against targets.

    Args:
        strength: λ ≥ 0, in units of loss per unit of weight.
        select: what it applies to.
        factors: what λ is multiplied by for each weight, a tensor, a dict of tensors or numbers by parameter
            name, or a callable ``(name, parameter, module) -> tensor``; 0 leaves a weight alone.
        name: its name in logs.

    Raises:
        ValueError: a negative, NaN or infinite strength.

    >>> float(L1(0.1)(torch.nn.Linear(2, 1)).detach()) > 0
    True
    >>> L1(0.1).prox(torch.tensor([-0.3, 0.05]), strength=0.1, step=1.0)
    tensor([-0.2000, 0.0000])

    References:
        Tibshirani, *Regression Shrinkage and Selection via the Lasso*, JRSS B 58(1), 1996.
    """

    kind: ClassVar[str] = "threshold"
    holds_zeros = True

    strength: ScheduleLike
    select: Select = "weights"
    _: KW_ONLY
    factors: Factors | None = field(default=None, repr=False, compare=False)
    name: str | None = None

    def value(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\lambda\sum_i|w_i|`."""
        return norm(weight, 1) * strength

    def each(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\lambda|w_i|`."""
        return weight.abs() * strength

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\lambda\operatorname{sign}(w)`."""
        return strength * torch.sgn(weight)

    def prox(self, weight: Tensor, strength: float, step: float | Tensor) -> Tensor:
        """Return the weight soft-thresholded at step times strength."""
        return prox.soft_threshold(weight, step * strength)

    def threshold(self, strength: float, step: float | Tensor) -> float | Tensor:
        r"""Return :math:`\eta\lambda`."""
        return step * strength

    def add_gradient_(
        self, targets: Sequence[Tensor], weights: Sequence[Tensor], strength: float, alpha: float = 1.0
    ) -> None:
        """``targets += alpha · λ · sign(weights)`` through a small reused buffer."""
        kernels.add_sign_(targets, weights, alpha * strength)

    def prox_(self, weights: Sequence[Tensor], strength: float, steps: Sequence[StepSize]) -> None:
        """Soft-threshold in place, in each tensor's metric."""
        kernels.soft_threshold_in_metric_(weights, steps, strength)

    def soft(self, strength: float) -> tuple[float, float]:
        """Return λ and 0."""
        return strength, 0.0

    def loop(self, strength: float) -> tuple[str, str, float, float]:
        """The loop that is :meth:`prox`, and its parameters."""
        return "tensors.loops", "soft_threshold", strength, 0.0
