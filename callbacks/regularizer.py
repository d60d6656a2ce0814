"""The base of the callbacks that apply a penalty or a constraint: its wiring into Lightning's hooks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from itertools import takewhile
from types import MappingProxyType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.apply import (
    Apply,
    DualAveraging,
    Metric,
    Term,
    added_bytes,
    check_apply,
    check_dual_averaging,
)
from lightning_reg.groups.partition import look_ahead
from lightning_reg.hosts.both_namespaces import BothCallback
from lightning_reg.hosts.lightning_host import length_for
from lightning_reg.hosts.log_names import numbered
from lightning_reg.hosts.penalty_work import PenaltyWork
from lightning_reg.hosts.strategies import reach_of
from lightning_reg.hosts.trainer import values_this_step, warn_of_cut_checkpoint
from lightning_reg.penalties import ForwardPenalty
from lightning_reg.penalties.regularizer import Regularizer
from lightning_reg.schedules.base import check_schedule

#: Where a checkpoint holds the state of penalties that have one; Lightning leaves unknown keys alone.
_STATE_KEY = "lightning_reg"


#: What must not change while the callback is at work.
_FIXED = frozenset({"penalty", "apply", "metric", "dual_averaging", "logs", "total_steps"})


class RegularizerCallback(BothCallback):
    """The wiring of one penalty or constraint into Lightning's hooks; the formulas are its own."""

    apply: Apply = "proximal"
    logs = False  # Lightning sets `log` on every callback: the method
    metric: Metric = "optimizer"
    dual_averaging: DualAveraging = True
    total_steps: int | None = None
    _work: PenaltyWork | None = None
    _restored: Mapping[str, Tensor] = MappingProxyType({})
    _left: Mapping[str, Tensor] = MappingProxyType({})  # by a run that has ended, for checkpoints to come

    @property
    @abstractmethod
    def acting(self) -> Regularizer:
        """The penalty or the constraint."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED and self._work is not None:
            raise RuntimeError(
                f"{name} of {self!r} cannot change while a fit is under way; change it between fits, or give "
                "a schedule as strength"
            )
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_work": None}  # a copy is not attached to anything
        return {name: dict(v) if isinstance(v, MappingProxyType) else v for name, v in state.items()}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget what an earlier run has learned: Lightning restores a checkpoint after this."""
        if stage == "fit":
            self._detach()
            self._restored, self._left = {}, {}
            if reach_of(trainer).shares:
                look_ahead(getattr(self.acting, "groups", None), pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bind to the module and its optimizers, or say why not."""
        if sum(callback is self for callback in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise ValueError(f"{self!r} is given to the Trainer twice, and would act twice; give it once")
        self._detach()  # where another callback calls this one, and not its setup
        self._left = {}
        self._work = PenaltyWork(
            self.acting,
            self.apply,
            self.metric,
            trainer,
            pl_module,
            total_steps=self.total_steps,
            dual_averaging=self.dual_averaging,
            label=_state_name(self, trainer),
            log_name=log_name_of(self, trainer, pl_module) if self.logs else None,
        )
        if self._restored:
            self._work.engine.load_state_dict(self._restored)
            self._restored = {}
        self._work.warn_of_no_optimizer()
        self._work.warn_of_repetition(repr(self), _other_penalties(self, trainer, pl_module))

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store what the penalty has learned of the module, if anything."""
        if self._work is not None:
            self._work.host.give_zeros()
        state = self.learned()
        if state:
            checkpoint.setdefault(_STATE_KEY, {})[_state_name(self, trainer)] = state

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take it up, or keep it until the fit starts."""
        restored = checkpoint.get(_STATE_KEY, {}).get(_state_name(self, trainer), {})
        if self._work is None:
            self._restored = restored
        elif restored:  # strategies that shard restore after the fit's start, and so do searches in it
            self._work.engine.load_state_dict(restored)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Act, once per optimizer step: after accumulation and unscaling, before clipping."""
        work = self._work
        assert work is not None
        if work.outruns:
            work.host.warn_of_a_longer_run(work.engine)
        work.engine.look(optimizer)
        if work.log_key is not None and values_this_step(trainer):
            work.log()
        work.engine.announce(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Have a value logged before the first validation."""
        work = self._work
        if work is not None and work.logged_at < 0 and trainer.accumulate_grad_batches > 1:
            work.log_before_first_step()

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look whether what is validated has the zeros of the weights that train."""
        if self._work is not None and batch_idx == 0 and not trainer.sanity_checking:
            self._work.host.check_zeros("the validation")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if no optimizer step was seen: then nothing was penalized."""
        if self._work is not None:
            self._work.check_seen()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no trace; and say so where the reason is a checkpoint that was cut short."""
        self._detach()
        warn_of_cut_checkpoint(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave no trace."""
        if stage == "fit":
            self._detach()

    def added_bytes(self) -> int:
        """Return what it adds to the optimizer's state in the fit under way, in this process."""
        return added_bytes(self._work.term, self.apply) if self._work is not None else 0

    def learned(self) -> dict[str, Tensor]:
        """Return what has been learned of the module in this run, or in the last one."""
        return self._work.engine.state_dict() if self._work is not None else dict(self._left)

    def _detach(self) -> None:
        if self._work is not None:
            self._left = self._work.term.state_dict()
            self._work.detach()
            self._work = None


class _PenaltyCallback(RegularizerCallback):
    """The wiring of one penalty, whose formula is an attribute."""

    penalty: Regularizer

    def __init__(
        self,
        penalty: Regularizer,
        apply: Apply,
        log: bool,
        metric: Metric,
        total_steps: int | None,
        dual_averaging: DualAveraging = True,
    ) -> None:
        super().__init__()
        check_apply(penalty, apply, metric)
        check_dual_averaging(dual_averaging, apply)
        if callable(penalty.strength) and total_steps is not None:
            check_schedule(penalty.strength, total_steps)
        self.penalty = penalty
        self.apply = apply
        self.logs = log and not penalty.is_constraint
        self.metric = metric
        self.dual_averaging = dual_averaging
        self.total_steps = total_steps

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.penalty!r}, apply={self.apply!r})"

    @property
    def acting(self) -> Regularizer:
        """The penalty."""
        return self.penalty


def _at_work(trainer: Trainer) -> Iterator[RegularizerCallback]:
    return (c for c in trainer.callbacks if isinstance(c, RegularizerCallback))  # type: ignore[attr-defined]


def term_of(callback: _PenaltyCallback, trainer: Trainer, module: LightningModule) -> Term:
    """Return the run's own term; outside a run, one that goes on from what the last has learned."""
    if callback._work is not None:
        return callback._work.term
    term = Term(callback.penalty, module, length_for(callback.penalty, trainer, callback.total_steps))
    if callback._left:
        term.load_state_dict(callback._left)
    return term


def log_name_of(callback: Any, trainer: Trainer, module: LightningModule) -> str:
    """Return the penalty's name, with a number from the second of that name on.

    The module's penalties come first, then the callbacks that log, those on the forward pass among them.
    """
    from lightning_reg.modules import RegularizedModule

    names: list[str] = []
    if isinstance(module, RegularizedModule):
        names += [penalty.log_name for penalty in module.penalties]
        names += [penalty.log_name for penalty in module.forward_penalties]
    for other in takewhile(lambda other: other is not callback, trainer.callbacks):  # type: ignore[attr-defined]
        penalty = getattr(other, "penalty", None)
        if isinstance(penalty, (Regularizer, ForwardPenalty)) and getattr(other, "logs", False):
            names.append(penalty.log_name)
    return numbered([*names, callback.penalty.log_name])[-1]


def _state_name(callback: RegularizerCallback, trainer: Trainer) -> str:
    """The penalty's name and its place among those of that name."""
    name = callback.acting.log_name
    mine = [other for other in _at_work(trainer) if other.acting.log_name == name]
    # a callback that another one calls is not among the Trainer's
    place = next((i for i, other in enumerate(mine) if other is callback), len(mine))
    return f"{name}_{place + 1}"


def _other_penalties(
    callback: RegularizerCallback, trainer: Trainer, module: LightningModule
) -> Iterator[tuple[str, Regularizer]]:
    """The penalties that the module and the callbacks before this one apply already."""
    from lightning_reg.modules import RegularizedModule

    if isinstance(module, RegularizedModule):
        for penalty in module.penalties:
            yield f"{type(module).__name__}(penalties=[{penalty!r}])", penalty
    for other in _at_work(trainer):
        if other is callback:
            return
        yield repr(other), other.acting
