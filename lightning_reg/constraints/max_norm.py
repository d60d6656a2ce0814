"""A limit on the norm of groups."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from torch import Tensor

from lightning_reg.constraints.base import GroupConstraint
from lightning_reg.groups.forms import Groups
from lightning_reg.groups.layout import Layout
from lightning_reg.prox.projections import max_norm_
from lightning_reg.select.parameters import Select

__all__ = ["MaxNorm"]


@dataclass(frozen=True)
class MaxNorm(GroupConstraint):
    r"""Keep the norm of every unit's incoming weights at a limit or below: :math:`\|w_g\|_2 \le c`.

    Args:
        limit: c > 0.
        select: what it applies to, the weights where not given.
        groups: which weights make a group, see :mod:`lightning_reg.groups.forms`.
        name: its name in checkpoints.

    Raises:
        ValueError: a limit that is not positive.

    >>> MaxNorm(3.0).limit
    3.0

    References:
        Srivastava et al., *Dropout*, JMLR 15, 2014.
    """

    kind: ClassVar[str] = "norms"
    by_norms: ClassVar[bool] = True

    limit: float
    select: Select = "weights"
    _: KW_ONLY
    groups: Groups = "rows"
    name: str | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        if not 0.0 < self.limit < float("inf"):
            raise ValueError(f"MaxNorm(limit={self.limit}) is out of range; give a finite number above 0")

    @property
    def longest(self) -> float:
        """The limit."""
        return self.limit

    def project_groups_(self, weight: Tensor, layout: Layout) -> None:
        """Shorten groups that are too long, in place."""
        max_norm_(weight, layout, self.limit)
