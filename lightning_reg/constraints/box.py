"""Bounds on single weights."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from torch import Tensor

from lightning_reg.constraints.base import Constraint
from lightning_reg.prox.projections import box_
from lightning_reg.select.parameters import Select

__all__ = ["Box"]


@dataclass(frozen=True)
class Box(Constraint):
    r"""Keep every weight in :math:`[a, b]`.

    Args:
        low: a, the least a weight may be; ``-inf`` for no such end.
        high: b, the most; ``inf`` for no such end.
        select: what it applies to, the weights where not given.
        name: its name in checkpoints.

    Raises:
        ValueError: NaN, or an empty box.

    >>> Box(-1.0, 1.0).high
    1.0

    References:
        Bertsekas, *On the Goldstein-Levitin-Polyak Gradient Projection Method*, IEEE TAC 21(2), 1976.
    """

    elementwise: ClassVar[bool] = True
    kind: ClassVar[str] = "interval"
    turn: ClassVar[int] = 50

    low: float
    high: float
    select: Select = "weights"
    _: KW_ONLY
    name: str | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        if not self.low <= self.high:
            raise ValueError(f"Box(low={self.low}, high={self.high}) is empty; give low <= high")

    @property
    def bounds(self) -> tuple[float, float]:  # type: ignore[override]
        """Both ends."""
        return self.low, self.high

    def project_(self, weight: Tensor) -> None:
        """Clip, in place."""
        box_(weight, self.low, self.high)
