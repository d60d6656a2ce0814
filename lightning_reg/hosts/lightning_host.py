"""A run of Lightning's Trainer as a host of the engine."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer

from lightning_reg.apply import Apply
from lightning_reg.hosts.averages import AveragesKeepZeros
from lightning_reg.hosts.clipping import notice_clipping_of, notice_no_more
from lightning_reg.hosts.engine import Engine
from lightning_reg.hosts.host import Host
from lightning_reg.hosts.seems_clipped import BY_VALUE
from lightning_reg.hosts.steps import length_by_progress
from lightning_reg.hosts.strategies import reach_of
from lightning_reg.hosts.trainer import ends_after_step, names_in_shards, run_length, scaler_of
from lightning_reg.hosts.watch import Unheld
from lightning_reg.hosts.wrappers import left_scale
from lightning_reg.penalties.regularizer import Regularizer

__all__ = ["LightningHost", "length_for", "started"]


class LightningHost(Host):
    """The clock and the optimizers of one fit.

    Args:
        trainer: at the start of its fit.
        module: what it fits.
        total_steps: the run's length, where the user has given it.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, total_steps: int | None = None) -> None:
        self._guesses = total_steps is None and not module.automatic_optimization
        self.trainer = trainer
        self.module = module
        self.reach = reach_of(trainer)
        self.scaler = scaler_of(trainer)
        self._saved: list[str] | None = None
        self._unheld: dict[Engine, Unheld] = {}
        self._averages: list[AveragesKeepZeros] = []
        self._adding: list[Engine] = []  # those that add to gradients which the module clips by itself
        self._notices = False

    def step(self) -> int:
        """``global_step``, which counts every optimizer's steps."""
        return self.trainer.global_step

    def length(self, total_steps: int | None) -> int | None:
        """What is known; under manual optimization what the steps so far come to at the end."""
        if not self._guesses or total_steps is None:
            return total_steps
        return length_by_progress(self.trainer, self.step(), total_steps)

    def optimizers(self) -> list[Optimizer] | None:
        """The Trainer's; None where it has none, or the strategy steps copies of the parameters."""
        if not self.reach.steps:
            return None
        # Lightning has one of its own where the module gives none
        return [o for o in self.trainer.optimizers if type(o).__name__ != "_MockOptimizer"] or None

    def toggled(self) -> Mapping[nn.Parameter, bool]:
        """Those that ``toggle_optimizer`` has switched off."""
        states: Any = self.module._param_requires_grad_state
        return states  # type: ignore[no-any-return]

    def acts_inside(self, apply: Apply, optimizer: Optimizer) -> bool:
        """Under a scaler: only in the step is it known that it is not skipped, or gradients are unscaled."""
        if self.scaler is None:
            return False
        return apply == "decoupled" or (
            apply == "gradient" and bool(getattr(optimizer, "_step_supports_amp_scaling", False))
        )

    def announces(self) -> bool:
        """In ``on_before_optimizer_step``."""
        return True

    def check_host(self, penalty: Regularizer, apply: Apply, logs: bool) -> None:
        """Refuse what this run would do wrong.

        Raises:
            ValueError: the sentence says what to use.
        """
        strategy, what = self.reach.strategy, f"apply={apply!r}"
        if not self.module.automatic_optimization and apply == "loss":
            raise ValueError(
                f"{what} adds to the loss that training_step returns, and under manual optimization nobody "
                "reads it; use apply='gradient', or a RegularizedModule with "
                "self.manual_backward(self.regularize(loss))"
            )
        if not self.reach.steps and penalty.is_constraint:
            raise ValueError(
                f"DeepSpeed steps an optimizer of its own, out of reach of {type(penalty).__name__}; use ddp "
                "or ModelParallelStrategy (FSDP2)"
            )
        if not self.reach.steps and apply != "loss":
            raise ValueError(
                f"{strategy} steps an optimizer of its own, out of reach of {what}; use apply='loss'"
            )
        # the engine is tested on torch's FSDP1, this strategy is not: it needs a GPU
        if not self.reach.whole and logs:
            raise ValueError(
                f"{strategy} (FSDP1) leaves each process a part of the weights, so that the value to log is "
                "not known; give log=False, or use ModelParallelStrategy (FSDP2)"
            )

    def is_saved(self, name: str) -> bool:
        """What a checkpoint in shards lacks, torch refuses to load."""
        if self._saved is None:
            self._saved = names_in_shards(self.trainer.ckpt_path)
        return not self._saved or any(found.endswith(f".{name}") for found in self._saved)

    def watch(self, engine: Engine) -> None:
        """Watch, until :meth:`warn_of_unheld`, for weights that are trained by no step in sight."""
        if self.reach.steps and self.reach.whole:
            optimizers = self.trainer.optimizers
            self._unheld[engine] = Unheld(engine.term, optimizers, engine.apply == "loss")

    def look(self, optimizer: Optimizer) -> None:
        """Look whether somebody has taken the gradients of what is watched."""
        for unheld in self._unheld.values():
            unheld.look(optimizer)

    def warn_of_unheld(self, engine: Engine) -> None:
        """Warn of such weights, and watch no more."""
        if engine in self._unheld:
            self._unheld.pop(engine).warn(engine.optimizers())
        for averages in self._averages:
            averages.warn_of_unreached()

    def keep_zeros(self, engine: Engine) -> None:
        """See to it that averages of the run keep the zeros of one that acts on weights."""
        holders = lambda: (*self.trainer.callbacks, self.module)  # type: ignore[attr-defined]  # noqa: E731
        ends = functools.partial(ends_after_step, self.trainer)
        self._averages.append(AveragesKeepZeros(engine.term, holders, ends, engine.optimizers()))

    def check_zeros(self, where: str) -> None:
        """Warn where zeros of the last step are gone."""
        for averages in self._averages:
            averages.check(where)

    def give_zeros(self) -> None:
        """Give averages the zeros of this moment, where a checkpoint is to be saved."""
        for averages in self._averages:
            averages.give()

    def detached(self) -> None:
        """Let the module clip unseen again, and leave its averages alone."""
        if self.trainer.state.status != "interrupted":
            self.check_zeros("what the fit leaves")
        for averages in self._averages:
            averages.remove()
        self._averages = []
        notice_no_more(self.module, self)
        self._adding, self._notices = [], False
        self.watch_no_more()

    def watch_no_more(self) -> None:
        """Leave no hook of a watch."""
        for unheld in self._unheld.values():
            unheld.end()
        self._unheld = {}

    def notice_clipping(self) -> None:
        """See by what factor the run clips gradients, which a proximal step must know."""
        if self.trainer.gradient_clip_val and self.trainer.gradient_clip_algorithm == "value":
            warnings.warn(BY_VALUE, stacklevel=2)
        elif not self._notices:
            self._notices = True
            notice_clipping_of(self.module, self)

    def add_before_clipping(self, engine: Engine) -> None:
        """Let ``engine`` add its gradients before the module clips them, under manual optimization."""
        self._adding.append(engine)
        if not self._notices:
            self._notices = True
            notice_clipping_of(self.module, self)

    def before_clipping(self, optimizer: Optimizer) -> None:
        """Add what counts in the norm."""
        for engine in self._adding:
            engine.add_before_clipping(optimizer, left_scale(self.scaler, optimizer))

    def warn_of_a_longer_run(self, engine: Engine) -> None:
        """Warn where a schedule's run is over, as it was given, and manual steps go on."""
        total_steps = engine.term.total_steps
        over = total_steps is not None and self.step() == total_steps
        if over:
            warnings.warn(
                f"the run takes more optimizer steps than total_steps={total_steps}, so schedules stay at "
                "their ends from here; leave it out, and they end with the run",
                stacklevel=2,
            )


def length_for(penalty: Regularizer, trainer: Trainer, total_steps: int | None = None) -> int | None:
    """Return the run's length for a strength that may need it, the Trainer's own estimate where None."""
    if total_steps is None and callable(penalty.strength):
        return run_length(trainer)
    return total_steps


def started(engine: Engine, host: LightningHost) -> Engine:
    """Let ``engine`` take part in the steps of the Trainer's optimizers."""
    for optimizer in host.optimizers() or ():
        engine.hook(optimizer)
    host.watch(engine)
    if engine.apply == "gradient" and not host.module.automatic_optimization:
        host.add_before_clipping(engine)
    if engine.apply == "proximal":
        host.keep_zeros(engine)
        if not engine.penalty.is_constraint:
            host.notice_clipping()
    return engine
