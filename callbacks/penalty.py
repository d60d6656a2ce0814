"""Penalties for any LightningModule, attached to a Trainer."""

from __future__ import annotations

from typing import final

from lightning_reg.apply import Apply, DualAveraging, Metric, default_apply
from lightning_reg.callbacks.regularizer import _PenaltyCallback
from lightning_reg.groups.forms import Groups
from lightning_reg.penalties import L1, L2, ElasticNet, GroupLasso, SparseGroupLasso
from lightning_reg.penalties.l2 import Decay
from lightning_reg.penalties.regularizer import Regularizer
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.select.parameters import Select

__all__ = [
    "ElasticNetPenaltyCallback",
    "GroupLassoPenaltyCallback",
    "L1PenaltyCallback",
    "L2PenaltyCallback",
    "PenaltyCallback",
    "SparseGroupLassoPenaltyCallback",
]


@final
class PenaltyCallback(_PenaltyCallback):
    """Penalize the parameters of whatever module the Trainer fits.

    It works on one device, under DDP, and under ``ModelParallelStrategy`` (FSDP2 and tensor parallelism).
    Written after their source and untested here, since they need a GPU: ``DeepSpeedStrategy``, stages 1 and 2
    with ``apply="loss"``; and ``FSDPStrategy``, penalties of single weights with names as ``select`` and
    ``log=False``. What else they could not do right is refused.

    Args:
        penalty: which function, on what, how strong; or a constraint, which projects after the step.
        apply: how a penalty acts. ``"gradient"``, where not given, does exactly what adding the term to the
            loss does, by adding its closed-form gradient once per optimizer step, before clipping. ``"loss"``
            adds the term to what ``training_step`` returns, over the tensors that this trains.
            ``"decoupled"`` decays the weights apart from the update, as AdamW does. ``"proximal"`` applies
            the proximal operator after the step, and makes exact zeros.
        log: log ``penalty/<name>``, the term's value, and ``penalty/<name>/strength`` where it is scheduled,
            on the steps that the Trainer logs.
        metric: of ``"proximal"``: the optimizer's own, or ``"euclidean"``, the learning rate alone.
        dual_averaging: of ``"proximal"``: True for zeros that the noise of mini-batches does not undo, at
            the price of one state tensor a penalized weight; False for the plain proximal step. A number k
            averages over about the last t/k of t steps; True is 4.
        total_steps: length of the run for schedules in fractions of it; the Trainer's own estimate where
            None.

    Raises:
        TypeError: ``penalty`` is neither a penalty nor a constraint.
        ValueError: at construction or at fit start, a combination that would act wrongly; the sentence says
            which would not.

    >>> from lightning_reg import L1, Cosine
    >>> PenaltyCallback(L1(Cosine(0.0, 1e-3), select="encoder.*"), apply="proximal")
    PenaltyCallback(L1(strength=Cosine(start=0.0, end=0.001, begin=0, until=1.0), select='encoder.*',
    name=None), apply='proximal')
    """

    def __init__(
        self,
        penalty: Regularizer,
        apply: Apply | None = None,
        log: bool = True,
        *,
        metric: Metric = "optimizer",
        dual_averaging: DualAveraging = True,
        total_steps: int | None = None,
    ) -> None:
        super().__init__(penalty, default_apply(penalty, apply), log, metric, total_steps, dual_averaging)


@final
class L1PenaltyCallback(_PenaltyCallback):
    """Penalize with :class:`~lightning_reg.L1`, λ·Σ|w|; ``apply="proximal"`` makes exact zeros.

    Args:
        strength: λ, a number, a schedule or a callable ``(step, total_steps) -> float``.
        select: what it applies to, the weights where not given.
        apply: how it acts, as in :class:`PenaltyCallback`.
        log: log its value, as in :class:`PenaltyCallback`.
        name: its name in logs.
        metric: of ``"proximal"``, as in :class:`PenaltyCallback`.
        dual_averaging: of ``"proximal"``, as in :class:`PenaltyCallback`.
        total_steps: length of the run, as in :class:`PenaltyCallback`.

    >>> L1PenaltyCallback(1e-4)
    L1PenaltyCallback(L1(strength=0.0001, select='weights', name=None), apply='gradient')
    """

    def __init__(
        self,
        strength: ScheduleLike,
        select: Select = "weights",
        apply: Apply = "gradient",
        log: bool = True,
        *,
        name: str | None = None,
        metric: Metric = "optimizer",
        dual_averaging: DualAveraging = True,
        total_steps: int | None = None,
    ) -> None:
        super().__init__(L1(strength, select, name=name), apply, log, metric, total_steps, dual_averaging)


@final
class L2PenaltyCallback(_PenaltyCallback):
    """Penalize with :class:`~lightning_reg.L2`, (λ/2)·Σw²; ``apply="decoupled"`` is AdamW's decay.

    Args:
        strength: λ, a number, a schedule or a callable ``(step, total_steps) -> float``.
        select: what it applies to, the weights where not given.
        apply: how it acts, as in :class:`PenaltyCallback`.
        log: log its value, as in :class:`PenaltyCallback`.
        name: its name in logs.
        metric: of ``"proximal"``, as in :class:`PenaltyCallback`.
        dual_averaging: of ``"proximal"``, as in :class:`PenaltyCallback`.
        total_steps: length of the run, as in :class:`PenaltyCallback`.
        decay: of ``"decoupled"``: ``"lr"``, ``"independent"`` or ``"corrected"``, as in
            :class:`~lightning_reg.L2`.
        cautious: of ``"decoupled"``: only where the update agrees, as in :class:`~lightning_reg.L2`.

    >>> L2PenaltyCallback(1e-2, apply="decoupled")
    L2PenaltyCallback(L2(strength=0.01, select='weights', name=None), apply='decoupled')
    """

    def __init__(
        self,
        strength: ScheduleLike,
        select: Select = "weights",
        apply: Apply = "gradient",
        log: bool = True,
        *,
        name: str | None = None,
        metric: Metric = "optimizer",
        dual_averaging: DualAveraging = True,
        total_steps: int | None = None,
        decay: Decay = "lr",
        cautious: bool = False,
    ) -> None:
        penalty = L2(strength, select, name=name, decay=decay, cautious=cautious)
        super().__init__(penalty, apply, log, metric, total_steps, dual_averaging)


@final
class ElasticNetPenaltyCallback(_PenaltyCallback):
    """Penalize with :class:`~lightning_reg.ElasticNet`, λ·(ρ·Σ|w| + (1−ρ)/2·Σw²).

    Args:
        strength: λ, a number, a schedule or a callable ``(step, total_steps) -> float``.
        select: what it applies to, the weights where not given.
        apply: how it acts, as in :class:`PenaltyCallback`.
        log: log its value, as in :class:`PenaltyCallback`.
        l1_ratio: ρ in [0, 1]: 1 is L1, 0 is L2.
        name: its name in logs.
        metric: of ``"proximal"``, as in :class:`PenaltyCallback`.
        dual_averaging: of ``"proximal"``, as in :class:`PenaltyCallback`.
        total_steps: length of the run, as in :class:`PenaltyCallback`.

    >>> ElasticNetPenaltyCallback(1e-3, l1_ratio=0.9).penalty.l1_ratio
    0.9
    """

    penalty: ElasticNet

    def __init__(
        self,
        strength: ScheduleLike,
        select: Select = "weights",
        apply: Apply = "gradient",
        log: bool = True,
        *,
        l1_ratio: float = 0.5,
        name: str | None = None,
        metric: Metric = "optimizer",
        dual_averaging: DualAveraging = True,
        total_steps: int | None = None,
    ) -> None:
        super().__init__(
            ElasticNet(strength, select, l1_ratio=l1_ratio, name=name),
            apply,
            log,
            metric,
            total_steps,
            dual_averaging,
        )


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
