"""A norm of 1 for every group."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from torch import Tensor

from lightning_reg.constraints.base import GroupConstraint
from lightning_reg.groups.forms import Groups
from lightning_reg.groups.layout import Layout
from lightning_reg.prox.projections import unit_norm_
from lightning_reg.select.parameters import Select

__all__ = ["UnitNorm"]


@dataclass(frozen=True)
class UnitNorm(GroupConstraint):
    r"""Keep the norm of every unit's incoming weights at 1: :math:`\|w_g\|_2 = 1`.

    A unit whose weights are all zero stays zero.

    Args:
        select: what it applies to, the weights where not given.
        groups: which weights make a group, see :mod:`lightning_reg.groups.forms`.
        name: its name in checkpoints.

    >>> UnitNorm("head.*").select
    'head.*'

    References:
        Salimans and Kingma, *Weight Normalization*, NeurIPS 2016, for the set; the projection is exact.
    """

    kind: ClassVar[str] = "norms"
    by_norms: ClassVar[bool] = True

    select: Select = "weights"
    _: KW_ONLY
    groups: Groups = "rows"
    name: str | None = None

    def project_groups_(self, weight: Tensor, layout: Layout) -> None:
        """Divide every group by its norm, in place."""
        unit_norm_(weight, layout)
