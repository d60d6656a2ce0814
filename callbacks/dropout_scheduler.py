"""The dropout rates of any module over a run."""

from __future__ import annotations

import math
from typing import Any

from typing_extensions import override

from lightning_reg.callbacks._dropout import Hold
from lightning_reg.callbacks._dropout_sites import Compiled, SiteCallback
from lightning_reg.dropout.sites import SelectSites
from lightning_reg.schedules.base import ScheduleLike, check_schedule, evaluate
from lightning_reg.schedules.dropout import ByDepth

__all__ = ["DropoutScheduler"]


class DropoutScheduler(SiteCallback):
    r"""Steers every place that drops by a number or a schedule, for any module.

    At optimizer step t each selected site drops with probability :math:`p(t)`, or, relative, with
    :math:`p(t)\,p_\text{built}`. The first training batch is run once more beforehand, the module's
    ``on_train_batch_start`` included, with its effects undone, to see which rates are used; after ``fit``, at
    an exception, in evaluation and in checkpoints the rates and classes are as built. Logs
    ``dropout/<name>``.

    Under ``torch.compile`` dropout modules called on a tensor cost at most one extra compilation for a whole
    schedule. Rates that are numbers handed to a function (``MultiheadAttention``, attention through
    ``scaled_dot_product_attention``) are a graph for each value: they are named when the run starts and
    treated as ``compiled`` says. Modules count as compiled where ``torch.compile`` or ``Module.compile`` was
    applied to them or around them within the LightningModule.

    Args:
        rate: a number in [0, 1], a schedule of one, or :class:`~lightning_reg.ByDepth` of either.
        select: ``"*"``, a glob over site names (``"encoder.*"``; with a leading ``!`` in a list, all but), a
            module class, a predicate of the site, or a list of these.
        relative: multiply each site's built rate instead of replacing it. Sites built at 0 stay at 0.
        name: the group's name in logs; the selection by default.
        audit: False to steer every known site without looking which of them are used. The look moves on a
            Python iterator that the module holds, which cannot be wound back, and weights that the module
            itself changes, such as a teacher's moving average, stay changed.
        compile_levels: number of levels for ``compiled="levels"``.
        compiled: what to do with rates that cannot be tensors: ``"levels"`` (a schedule in a few steps),
            ``"hold"`` (the built rate) or ``"refuse"``.

    Raises:
        ValueError: a rate outside [0, 1], when made or, for schedules, at ``fit`` start; no site found.
        TypeError: ``select`` is of another kind.

    >>> from lightning_reg import Cosine
    >>> DropoutScheduler(Cosine(0.0, 0.3))
    DropoutScheduler(Cosine(start=0.0, end=0.3, begin=0, until=1.0), select='*', relative=False)
    """

    def __init__(
        self,
        rate: ScheduleLike | ByDepth,
        select: SelectSites = "*",
        relative: bool = False,
        *,
        name: str | None = None,
        audit: bool = True,
        compile_levels: int = 4,
        compiled: Compiled = "levels",
    ) -> None:
        schedule = rate.rate if isinstance(rate, ByDepth) else rate
        if not callable(schedule):
            evaluate(schedule, 0, name="dropout rate", upper=math.inf if relative else 1.0)
        self.rate = rate
        self._schedule: ScheduleLike = schedule
        self._by_depth = isinstance(rate, ByDepth)
        self._audits = audit
        self._set_up(select, relative, name, compile_levels, compiled)

    @override
    def _check(self, total: int | None, upper: float) -> None:
        check_schedule(self._schedule, total, name="dropout rate", upper=upper)

    @override
    def _range(self, hold: Hold) -> tuple[float, float]:
        if not callable(self._schedule):
            value = float(self._schedule)
            return value, value
        last = hold.total or 1_000
        steps = {*range(0, last, max(1, last // 1_000)), max(0, last - 1)}
        values = [evaluate(self._schedule, step, hold.total, name="dropout rate") for step in steps]
        return min(values), max(values)

    @override
    def _number(self, trainer: Any, hold: Hold) -> float:
        return evaluate(
            self._schedule,
            trainer.global_step,
            hold.total,
            name="dropout rate",
            upper=math.inf if self.relative else 1.0,
        )

    def __repr__(self) -> str:
        return f"DropoutScheduler({self.rate!r}, select={self.select!r}, relative={self.relative})"
