"""A bound on the rank of each weight."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from torch import Tensor

from lightning_reg.constraints.base import Constraint
from lightning_reg.prox.projections import max_rank_
from lightning_reg.select.parameters import Select

__all__ = ["MaxRank"]


@dataclass(frozen=True)
class MaxRank(Constraint):
    r"""Keep the rank of each weight, as ``(out, rest)``, at a limit or below.

    The projection keeps the largest singular values (Eckart and Young), by a singular value decomposition
    after each step; where several are equal at the limit, any of them. Not a convex set. Sharded tensors are
    gathered.

    Args:
        rank: r ≥ 1.
        select: what it applies to, the weights where not given; real tensors.
        name: its name in checkpoints.

    Raises:
        ValueError: a rank that is not a whole number above 0.

    >>> MaxRank(8).rank
    8

    References:
        Eckart and Young, *The Approximation of One Matrix by Another of Lower Rank*, Psychometrika 1(3),
        1936; Jain, Meka and Dhillon, *Guaranteed Rank Minimization via Singular Value Projection*, NIPS 2010.
    """

    kind: ClassVar[str] = "spectrum"
    turn: ClassVar[int] = 55
    takes_complex: ClassVar[bool] = False

    rank: int
    select: Select = "weights"
    _: KW_ONLY
    name: str | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"MaxRank(rank={self.rank!r}) is out of range; give a whole number above 0")

    def project_(self, weight: Tensor) -> None:
        """Set all but the largest singular values to zero, in place."""
        max_rank_(weight, self.rank)
