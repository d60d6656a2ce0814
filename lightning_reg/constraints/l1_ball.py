"""A bound on the sum of the moduli of each tensor."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from torch import Tensor

from lightning_reg.constraints.base import Constraint
from lightning_reg.prox.projections import l1_ball_
from lightning_reg.select.parameters import Select

__all__ = ["L1Ball"]


@dataclass(frozen=True)
class L1Ball(Constraint):
    r"""Keep :math:`\sum_i |w_i| \le r` in every tensor: the lasso as it was first stated.

    Small weights become exactly zero, as many as the bound asks for. Sharded tensors are gathered.

    Args:
        radius: r, the most that the moduli of a tensor may add up to.
        select: what it applies to, the weights where not given.
        name: its name in checkpoints.

    Raises:
        ValueError: a radius that is not positive and finite.

    >>> L1Ball(2.0).radius
    2.0

    References:
        Tibshirani, *Regression Shrinkage and Selection via the Lasso*, JRSS B 58(1), 1996; Duchi,
        Shalev-Shwartz, Singer and Chandra, *Efficient Projections onto the l1-Ball for Learning in High
        Dimensions*, ICML 2008, for the projection.
    """

    kind: ClassVar[str] = "ball"
    turn: ClassVar[int] = 55

    radius: float
    select: Select = "weights"
    _: KW_ONLY
    name: str | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        if not 0.0 < self.radius < float("inf"):
            raise ValueError(f"L1Ball(radius={self.radius}) is out of range; give a finite radius above 0")

    def project_(self, weight: Tensor) -> None:
        """Move the tensor to the nearest point of the ball, in place."""
        l1_ball_(weight, self.radius)
