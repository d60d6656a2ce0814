"""The callbacks of ``lightning-reg run`` for one Trainer, and the one that reports on them."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_reg.cli.config import make_callbacks
from lightning_reg.cli.plan import Plan
from lightning_reg.cli.run_report import report
from lightning_reg.cli.trainer_options import replaced
from lightning_reg.hosts.both_namespaces import BothCallback

__all__ = ["attached"]

_SETS = itertools.count()


def attached(plan: Plan) -> list[Callback]:
    """Return new callbacks for one Trainer, of this plan."""
    made = make_callbacks(plan.callbacks)
    mark = f"{os.getpid()}-{next(_SETS)}"
    for callback in made:
        callback.__dict__["_attached"] = mark
    plan.note("trainer")
    return [*made, RunReport(mark, plan)]


class DryRunEnd(Exception):
    """Ends a dry run in a spawned process, whose parent would wait for ever after a ``SystemExit``."""


@final
class RunReport(BothCallback):
    """Reports what one Trainer was given, when its fit starts, and ends a dry run there."""

    def __init__(self, mark: str, plan: Plan) -> None:
        super().__init__()
        self._attached = mark
        self.plan = plan

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Drop the callbacks of other Trainers.

        Lightning adds to the very list that the script gave: one list for two Trainers, and the second
        holds the first's callbacks too.
        """
        last = [callback for callback in trainer.callbacks if isinstance(callback, RunReport)][-1]  # type: ignore[attr-defined]
        trainer.callbacks = [  # type: ignore[attr-defined]
            callback
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if getattr(callback, "_attached", last._attached) == last._attached
        ]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report; the callbacks reported on come before this one, and have refused what they cannot do."""
        self.plan.note("fit")
        if trainer.is_global_zero:
            mine = self._mine(trainer)
            whole = self.plan.dry_run
            report(trainer, pl_module, mine, replaced(trainer), whole=whole, file=sys.stderr)
        if self.plan.dry_run:
            self.plan.note("end")
            spawned = hasattr(trainer.strategy.launcher, "_start_method")
            raise DryRunEnd if spawned else SystemExit(0)

    def _mine(self, trainer: Trainer) -> Sequence[Any]:
        return [
            callback
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if callback is not self and getattr(callback, "_attached", None) == self._attached
        ]
