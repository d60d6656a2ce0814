"""Structured penalties for any LightningModule, under the names a user would look for."""

from __future__ import annotations

from typing import final

from lightning_reg.apply import Apply, DualAveraging, Metric
from lightning_reg.callbacks.regularizer import _PenaltyCallback
from lightning_reg.groups.forms import Groups
from lightning_reg.penalties import GroupLasso, SparseGroupLasso
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.select.parameters import Select

__all__ = ["GroupLassoPenaltyCallback", "SparseGroupLassoPenaltyCallback"]


@final
class GroupLassoPenaltyCallback(_PenaltyCallback):
    """Penalize with :class:`~lightning_reg.GroupLasso`; ``apply="proximal"`` sets whole groups to zero.

    Args:
        strength: λ, a number, a schedule or a callable ``(step, total_steps) -> float``.
        select: what it applies to, the weights where not given.
        apply: how it acts, as in :class:`PenaltyCallback`.
        log: log its value, as in :class:`PenaltyCallback`.
        groups: which weights make a group, see :mod:`lightning_reg.groups.forms`; a unit's incoming ones
            where not given.
        size_weighted: weigh a group by the root of its size.
        name: its name in logs.
        metric: of ``"proximal"``, as in :class:`PenaltyCallback`.
        dual_averaging: of ``"proximal"``, as in :class:`PenaltyCallback`.
        total_steps: length of the run, as in :class:`PenaltyCallback`.

    >>> GroupLassoPenaltyCallback(1e-3, groups="filters", select="features.*", apply="proximal")
    GroupLassoPenaltyCallback(GroupLasso(strength=0.001, select='features.*', groups='filters',
    size_weighted=True, name=None), apply='proximal')
    """

    def __init__(
        self,
        strength: ScheduleLike,
        select: Select = "weights",
        apply: Apply = "gradient",
        log: bool = True,
        *,
        groups: Groups = "rows",
        size_weighted: bool = True,
        name: str | None = None,
        metric: Metric = "optimizer",
        dual_averaging: DualAveraging = True,
        total_steps: int | None = None,
    ) -> None:
        penalty = GroupLasso(strength, select, groups=groups, size_weighted=size_weighted, name=name)
        super().__init__(penalty, apply, log, metric, total_steps, dual_averaging)


@final
class SparseGroupLassoPenaltyCallback(_PenaltyCallback):
    """Penalize with :class:`~lightning_reg.SparseGroupLasso`: zero groups, and zeros in those that stay.

    Args:
        strength: λ, a number, a schedule or a callable ``(step, total_steps) -> float``.
        select: what it applies to, the weights where not given.
        apply: how it acts, as in :class:`PenaltyCallback`.
        log: log its value, as in :class:`PenaltyCallback`.
        groups: which weights make a group, see :mod:`lightning_reg.groups.forms`.
        l1_ratio: ρ in [0, 1]: 1 is L1, 0 is group lasso.
        size_weighted: weigh a group by the root of its size.
        name: its name in logs.
        metric: of ``"proximal"``, as in :class:`PenaltyCallback`.
        dual_averaging: of ``"proximal"``, as in :class:`PenaltyCallback`.
        total_steps: length of the run, as in :class:`PenaltyCallback`.

    >>> SparseGroupLassoPenaltyCallback(1e-3, l1_ratio=0.2).penalty.l1_ratio
    0.2
    """

    penalty: SparseGroupLasso

    def __init__(
        self,
        strength: ScheduleLike,
        select: Select = "weights",
        apply: Apply = "gradient",
        log: bool = True,
        *,
        groups: Groups = "rows",
        l1_ratio: float = 0.5,
        size_weighted: bool = True,
        name: str | None = None,
        metric: Metric = "optimizer",
        dual_averaging: DualAveraging = True,
        total_steps: int | None = None,
    ) -> None:
        penalty = SparseGroupLasso(
            strength, select, groups=groups, l1_ratio=l1_ratio, size_weighted=size_weighted, name=name
        )
        super().__init__(penalty, apply, log, metric, total_steps, dual_averaging)
