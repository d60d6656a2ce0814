"""Weights of one sign."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from torch import Tensor

from lightning_reg.constraints.base import Constraint
from lightning_reg.prox.projections import box_
from lightning_reg.select.parameters import Select

__all__ = ["NonNegative"]


@dataclass(frozen=True)
class NonNegative(Constraint):
    r"""Keep every weight at 0 or above: :math:`w \ge 0`.

    Args:
        select: what it applies to, the weights where not given.
        name: its name in checkpoints.

    >>> NonNegative().select
    'weights'

    References:
        Lawson and Hanson, *Solving Least Squares Problems*, 1974, for the problem with a squared loss.
    """

    elementwise: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, float("inf"))
    # what comes later scales, and keeps signs: of a cone and a norm, the operator takes the cone first
    turn: ClassVar[int] = 20

    select: Select = "weights"
    _: KW_ONLY
    name: str | None = None

    def project_(self, weight: Tensor) -> None:
        """Set negative weights to 0, in place."""
        box_(weight, 0.0, float("inf"))
