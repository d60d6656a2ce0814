"""The dropout rates of any module over a run."""

from __future__ import annotations

import math

from typing_extensions import override

from lightning_reg.callbacks.dropout_sites import InEval, SiteCallback
from lightning_reg.dropout.selection import SelectSites
from lightning_reg.dropout.settings import Compiled, RateInEval
from lightning_reg.schedules.base import ScheduleLike, check_schedule, evaluate
from lightning_reg.schedules.dropout import ByDepth, schedule_range

__all__ = ["DropoutScheduler"]


class DropoutScheduler(SiteCallback):
    r"""Sets the rate of every dropout in any module to a number or a schedule.

    At optimizer step t each selected site drops with probability :math:`p(t)`, or, relative, with
    :math:`p(t)\,p_\text{built}`. Under manual optimization the steps are those of the optimizer that moves
    the module around the site. After ``fit``, at an exception and in checkpoints the rates and classes are as
    built. Logs ``dropout/<name>``.

    Known classes (``nn.Dropout`` and its kin, attention, recurrent layers, ``DropPath`` of timm and
    torchvision, layers of transformers) are steered from the first step. Other numbers with "drop" in their
    names are watched in the run's own first forward of the module that holds them, and steered from the one
    after, if they were seen to reach a draw, a dropout or an attention. After the first epoch one message
    says what is steered and what is not; ``report`` holds it.

    Under ``torch.compile`` dropout modules called on a tensor cost at most one extra compilation for a whole
    schedule. Rates that are numbers handed to a function (``MultiheadAttention``, attention through
    ``scaled_dot_product_attention``) are a graph for each value: they are named when the run starts and
    treated as ``compiled`` says. Modules count as compiled where ``torch.compile`` or ``Module.compile`` was
    applied to them or around them within the LightningModule.

    Args:
        rate: a number in [0, 1], a schedule of one, or :class:`~lightning_reg.ByDepth` of either.
        select: ``"built"`` (sites built with a rate above 0), ``"all"``, a glob over site names
            (``"encoder.*"``; with a leading ``!`` in a list, all but), a module class, a predicate of the
            site, or a list of these.
        relative: multiply each site's built rate instead of replacing it. Sites built at 0 stay at 0.
        name: the group's name in logs; the selection by default.
        in_eval: what to do about selected sites whose module is in evaluation mode while training:
            ``"warn"``, ``"train"`` (put it in training mode for the run) or ``"keep"``.
        rate_in_eval: the rate in validation, test and prediction, for dropout that is on in them, too:
            ``"built"``, ``"scheduled"`` (after ``fit``, that of its last step) or a number.
        compile_levels: number of levels for ``compiled="levels"``.
        compiled: what to do with rates that cannot be tensors: ``"levels"`` (a schedule in a few steps),
            ``"hold"`` (the built rate) or ``"refuse"``.

    Raises:
        ValueError: a rate outside [0, 1], when made or, for schedules, at ``fit`` start; no site found.
        TypeError: ``select`` is of another kind.

    >>> from lightning_reg import Cosine
    >>> DropoutScheduler(Cosine(0.0, 0.3))
    DropoutScheduler(Cosine(start=0.0, end=0.3, begin=0, until=1.0), select='built', relative=False)
    """

    def __init__(
        self,
        rate: ScheduleLike | ByDepth,
        select: SelectSites = "built",
        relative: bool = False,
        *,
        name: str | None = None,
        in_eval: InEval = "warn",
        rate_in_eval: RateInEval = "built",
        compile_levels: int = 4,
        compiled: Compiled = "levels",
    ) -> None:
        schedule = rate.rate if isinstance(rate, ByDepth) else rate
        if not callable(schedule):
            evaluate(schedule, 0, name="dropout rate", upper=math.inf if relative else 1.0)
        self.rate = rate
        self._schedule: ScheduleLike = schedule
        self._by_depth = isinstance(rate, ByDepth)
        self._set_up(select, relative, name, in_eval, rate_in_eval, compile_levels, compiled)

    @override
    def _check(self, total: int | None, upper: float) -> None:
        check_schedule(self._schedule, total, name="dropout rate", upper=upper)

    @override
    def _range(self, total: int | None) -> tuple[float, float]:
        return schedule_range(self._schedule, total)

    @override
    def _number(self, step: int, total: int | None) -> float:
        upper = math.inf if self.relative else 1.0
        return evaluate(self._schedule, step, total, name="dropout rate", upper=upper)

    def __repr__(self) -> str:
        return f"DropoutScheduler({self.rate!r}, select={self.select!r}, relative={self.relative})"
