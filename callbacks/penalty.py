"""Penalties for any LightningModule, attached to a Trainer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.apply import (
    Apply,
    Metric,
    Term,
    add_gradient_,
    add_to_training_step,
    check_apply,
    check_optimizer,
    decay_,
    prox_,
    remove_from_training_step,
)
from lightning_reg.callbacks._base import BothCallback
from lightning_reg.host import run_length, scaler_of, values_this_step, warn_of_cut_checkpoint
from lightning_reg.penalties import L1, L2, ElasticNet, Penalty
from lightning_reg.schedules import ScheduleLike, check_schedule
from lightning_reg.select import Select

__all__ = [
    "ElasticNetPenaltyCallback",
    "L1PenaltyCallback",
    "L2PenaltyCallback",
    "PenaltyCallback",
]


#: Where a checkpoint holds the state of penalties that have one; Lightning leaves unknown keys alone.
_STATE_KEY = "lightning_reg"


class _PenaltyCallback(BothCallback):
    """The wiring of one penalty into Lightning's hooks; the formulas are the penalty's."""

    def __init__(
        self, penalty: Penalty, apply: Apply, log: bool, metric: Metric, total_steps: int | None
    ) -> None:
        super().__init__()
        check_apply(penalty, apply, metric)
        if not callable(penalty.strength) or total_steps is not None:
            check_schedule(penalty.strength, total_steps)
        self.penalty = penalty
        self.apply: Apply = apply
        self.logs = log  # Lightning sets `log` on every callback: the method
        self.metric: Metric = metric
        self.total_steps = total_steps
        self._work: _Work | None = None
        self._restored: dict[str, Tensor] = {}
        self._left: dict[str, Tensor] = {}  # by a run that has ended, for checkpoints still to be saved

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.penalty!r}, apply={self.apply!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_work": None}  # a copy is not attached to anything

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bind to the module and its optimizers, or say why not."""
        self._detach()
        self._left = {}
        self._work = _Work(self, trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store what the penalty has learned of the module, if anything."""
        state = self._work.term.state_dict() if self._work is not None else self._left
        if state:
            checkpoint.setdefault(_STATE_KEY, {})[_state_name(self, trainer)] = state

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep it until the fit starts."""
        self._restored = checkpoint.get(_STATE_KEY, {}).get(_state_name(self, trainer), {})

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Act, once per optimizer step: after accumulation and unscaling, before clipping."""
        assert self._work is not None
        self._work.before_step(optimizer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if no optimizer step was seen: then nothing was penalised."""
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

    def _detach(self) -> None:
        if self._work is not None:
            self._left = self._work.term.state_dict()
            self._work.detach()
            self._work = None


class _Work:
    """A penalty callback at work in one run: all that must be gone after it."""

    def __init__(self, callback: _PenaltyCallback, trainer: Trainer, module: LightningModule) -> None:
        self.penalty = callback.penalty
        self.apply: Apply = callback.apply
        self.metric: Metric = callback.metric
        self.trainer = trainer
        self.module = module
        self.steps_seen = 0
        self.announced: set[int] = set()  # optimizers that Lightning is about to step
        self.hooks: dict[int, list[Any]] = {}
        self.log_key = f"penalty/{_log_name(callback, trainer)}" if callback.logs else None
        self.logged_at = -1
        self._check_host()
        total_steps = callback.total_steps
        if total_steps is None and callable(self.penalty.strength):
            total_steps = run_length(trainer)
        check_schedule(self.penalty.strength, total_steps)
        self.term = Term(self.penalty, module, total_steps, _state_name(callback, trainer))
        if callback._restored:
            self.term.load_state_dict(callback._restored)
            callback._restored = {}
        self._warn_of_repetition(callback)
        for optimizer in trainer.optimizers:
            if type(optimizer).__name__ != "_MockOptimizer":  # Lightning's, where the module gives none
                check_optimizer(self.term, self.apply, optimizer, self.metric)
        self.scaler = scaler_of(trainer)
        for optimizer in trainer.optimizers:
            self._hook(optimizer)
        if self.apply == "loss":
            add_to_training_step(module, self._loss_term)

    def detach(self) -> None:
        """Undo all that :meth:`__init__` did to module and optimizers."""
        for hooks in self.hooks.values():
            for hook in hooks:
                hook.remove()
        self.hooks = {}
        remove_from_training_step(self.module, self._loss_term)

    def before_step(self, optimizer: Optimizer) -> None:
        """Act in ``on_before_optimizer_step``."""
        self.steps_seen += 1
        self.announced.add(id(optimizer))
        if id(optimizer) not in self.hooks:  # made since the fit started
            check_optimizer(self.term, self.apply, optimizer, self.metric)
            self._hook(optimizer)
        strength = self._strength()
        if self.log_key is not None and values_this_step(self.trainer):
            self._log(strength)
        if self.apply == "gradient" and not self._in_step(optimizer):
            add_gradient_(self.term, optimizer, strength)
        elif self.apply == "decoupled" and self.scaler is None:
            decay_(self.term, optimizer, strength, self.trainer.global_step)

    def check_seen(self) -> None:
        """Warn, once, if an epoch went by without an optimizer step."""
        if self.steps_seen == 0 and self.trainer.fit_loop.epoch_loop.total_batch_idx >= 0:
            self.steps_seen = 1
            warnings.warn(
                f"{self.penalty!r} was not applied: Lightning saw no optimizer step in this epoch; let "
                "Lightning step the optimizer (self.optimizers()), or use lightning_reg.attach on the one "
                "that steps",
                stacklevel=2,
            )

    def _strength(self) -> float:
        step, total_steps = self.trainer.global_step, self.term.total_steps
        if total_steps is not None and step == total_steps and not self.module.automatic_optimization:
            warnings.warn(
                f"the run takes more optimizer steps than the {total_steps} estimated, so schedules stay at "
                "their ends from here; give total_steps= to the callback",
                stacklevel=2,
            )
        return self.term.strength(step)

    def _loss_term(self) -> Tensor:
        # validation_step may call training_step
        strength = self._strength() if self.trainer.training else 0.0
        return self.term.value(strength, self._optimizers())

    def _optimizers(self) -> list[Optimizer] | None:
        """The optimizers whose parameters count; None for all, since DeepSpeed's hold copies of their own."""
        return None if "DeepSpeed" in type(self.trainer.strategy).__name__ else self.trainer.optimizers

    def _in_step(self, optimizer: Optimizer) -> bool:
        """Whether gradients are still scaled in ``on_before_optimizer_step``: act inside the step instead."""
        return self.scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False)

    def _hook(self, optimizer: Optimizer) -> None:
        hooks = self.hooks.setdefault(id(optimizer), [])
        if self.apply == "proximal":
            hooks.append(optimizer.register_step_post_hook(self._prox))
        elif self.scaler is not None and self.apply == "decoupled":
            # only here is it known that the scaler does not skip the step
            hooks.append(optimizer.register_step_pre_hook(self._decay))
        elif self.apply == "gradient" and self._in_step(optimizer):
            hooks.append(optimizer.register_step_pre_hook(self._add_gradient))

    def _prox(self, optimizer: Optimizer, *_: object) -> None:
        if id(optimizer) not in self.announced:  # stepped behind Lightning's back, where no schedule moves on
            return
        self.announced.remove(id(optimizer))
        prox_(self.term, optimizer, self._strength(), self.trainer.global_step, self.metric)

    def _decay(self, optimizer: Optimizer, *_: object) -> None:
        decay_(self.term, optimizer, self._strength(), self.trainer.global_step)

    def _add_gradient(self, optimizer: Optimizer, *_: object) -> None:
        add_gradient_(self.term, optimizer, self._strength())

    def _log(self, strength: float) -> None:
        assert self.log_key is not None
        step = self.trainer.fit_loop.epoch_loop._batches_that_stepped
        if self.logged_at == step:  # another optimizer of the same batch
            return
        self.logged_at = step
        with torch.no_grad():
            value = self.term.value(strength, self._optimizers())
        self.module.log(self.log_key, value)
        if callable(self.penalty.strength):
            self.module.log(f"{self.log_key}/strength", strength)

    def _check_host(self) -> None:
        strategy = type(self.trainer.strategy).__name__
        apply = f"apply={self.apply!r}"
        if not self.module.automatic_optimization and self.apply == "loss":
            raise ValueError(
                f"{apply} adds to the loss that training_step returns, and under manual optimization nobody "
                "reads it; use apply='gradient', or a RegularizedModule with "
                "self.manual_backward(self.regularize(loss))"
            )
        if "DeepSpeed" in strategy and self.apply != "loss":
            raise ValueError(
                f"{strategy} steps an optimizer of its own, out of reach of {apply}; use apply='loss'"
            )
        # the engine is tested on torch's FSDP1, this strategy is not: it needs a GPU
        if "FSDP" in strategy and self.log_key is not None:
            raise ValueError(
                f"{strategy} (FSDP1) leaves each process a part of the weights, so that the value to log is "
                "not known; give log=False, or use ModelParallelStrategy (FSDP2)"
            )

    def _warn_of_repetition(self, callback: _PenaltyCallback) -> None:
        mine = {id(selected.parameter) for selected in self.term.selected}
        for owner, penalty in _other_penalties(callback, self.trainer, self.module):
            if type(penalty) is not type(self.penalty):
                continue
            other = Term(penalty, self.module)
            both = [s.name for s in other.selected if id(s.parameter) in mine]
            if both:
                more = f" and {len(both) - 1} more parameters are" if len(both) > 1 else " is"
                warnings.warn(
                    f"{both[0]}{more} penalised twice, by {callback!r} and "
                    f"by {owner}; the strengths add up, so leave one out or narrow its select=",
                    stacklevel=2,
                )


def _penalty_callbacks(trainer: Trainer) -> Iterator[_PenaltyCallback]:
    return (c for c in trainer.callbacks if isinstance(c, _PenaltyCallback))  # type: ignore[attr-defined]


def _log_name(callback: _PenaltyCallback, trainer: Trainer) -> str:
    """The penalty's name, with a number from the second of that name on."""
    name = callback.penalty.log_name
    before = 1
    for other in _penalty_callbacks(trainer):
        if other is callback:
            break
        before += other.logs and other.penalty.log_name == name
    return name if before == 1 else f"{name}_{before}"


def _state_name(callback: _PenaltyCallback, trainer: Trainer) -> str:
    """The penalty's name and its place among those of that name."""
    name = callback.penalty.log_name
    mine = [other for other in _penalty_callbacks(trainer) if other.penalty.log_name == name]
    return f"{name}_{mine.index(callback) + 1}"


def _other_penalties(
    callback: _PenaltyCallback, trainer: Trainer, module: LightningModule
) -> Iterator[tuple[str, Penalty]]:
    """The penalties that the module and the callbacks before this one apply already."""
    from lightning_reg.modules import RegularizedModule

    if isinstance(module, RegularizedModule):
        for penalty in module.penalties:
            yield f"{type(module).__name__}(penalties=[{penalty!r}])", penalty
    for other in _penalty_callbacks(trainer):
        if other is callback:
            return
        yield repr(other), other.penalty


@final
class PenaltyCallback(_PenaltyCallback):
    """Penalise the parameters of whatever module the Trainer fits.

    It works on one device, under DDP, and under ``ModelParallelStrategy`` (FSDP2 and tensor parallelism).
    Written after their source and untested here, since they need a GPU: ``DeepSpeedStrategy``, stages 1 and 2
    with ``apply="loss"``; and ``FSDPStrategy``, penalties of single weights with names as ``select`` and
    ``log=False``. What else they could not do right is refused.

    Args:
        penalty: which function, on what, how strong.
        apply: how it acts. ``"gradient"`` does exactly what adding the term to the loss does, by adding its
            closed-form gradient once per optimizer step, before clipping. ``"loss"`` adds the term to what
            ``training_step`` returns. ``"decoupled"`` decays the weights apart from the update, as AdamW
            does. ``"proximal"`` applies the proximal operator after the step, and makes exact zeros.
        log: log ``penalty/<name>``, the term's value, and ``penalty/<name>/strength`` where it is scheduled,
            on the steps that the Trainer logs.
        metric: of ``"proximal"``: the optimizer's own, or ``"euclidean"``, the learning rate alone.
        total_steps: length of the run for schedules in fractions of it; the Trainer's own estimate where
            None.

    Raises:
        TypeError: ``penalty`` is not a penalty.
        ValueError: at construction or at fit start, a combination that would act wrongly; the sentence says
            which would not.

    >>> from lightning_reg import L1, Cosine
    >>> PenaltyCallback(L1(Cosine(0.0, 1e-3), select="encoder.*"), apply="proximal")
    PenaltyCallback(L1(strength=Cosine(start=0.0, end=0.001, begin=0, until=1.0), select='encoder.*',
    name=None), apply='proximal')
    """

    def __init__(
        self,
        penalty: Penalty,
        apply: Apply = "gradient",
        log: bool = True,
        *,
        metric: Metric = "optimizer",
        total_steps: int | None = None,
    ) -> None:
        super().__init__(penalty, apply, log, metric, total_steps)


@final
class L1PenaltyCallback(_PenaltyCallback):
    """Penalise with :class:`~lightning_reg.L1`, λ·Σ|w|; ``apply="proximal"`` makes exact zeros.

    Args:
        strength: λ, a number, a schedule or a callable ``(step, total_steps) -> float``.
        select: what it applies to, the weights where not given.
        apply: how it acts, as in :class:`PenaltyCallback`.
        log: log its value, as in :class:`PenaltyCallback`.
        name: its name in logs.
        metric: of ``"proximal"``, as in :class:`PenaltyCallback`.
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
        total_steps: int | None = None,
    ) -> None:
        super().__init__(L1(strength, select, name=name), apply, log, metric, total_steps)


@final
class L2PenaltyCallback(_PenaltyCallback):
    """Penalise with :class:`~lightning_reg.L2`, (λ/2)·Σw²; ``apply="decoupled"`` is AdamW's decay.

    Args:
        strength: λ, a number, a schedule or a callable ``(step, total_steps) -> float``.
        select: what it applies to, the weights where not given.
        apply: how it acts, as in :class:`PenaltyCallback`.
        log: log its value, as in :class:`PenaltyCallback`.
        name: its name in logs.
        metric: of ``"proximal"``, as in :class:`PenaltyCallback`.
        total_steps: length of the run, as in :class:`PenaltyCallback`.

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
        total_steps: int | None = None,
    ) -> None:
        super().__init__(L2(strength, select, name=name), apply, log, metric, total_steps)


@final
class ElasticNetPenaltyCallback(_PenaltyCallback):
    """Penalise with :class:`~lightning_reg.ElasticNet`, λ·(ρ·Σ|w| + (1−ρ)/2·Σw²).

    Args:
        strength: λ, a number, a schedule or a callable ``(step, total_steps) -> float``.
        select: what it applies to, the weights where not given.
        apply: how it acts, as in :class:`PenaltyCallback`.
        log: log its value, as in :class:`PenaltyCallback`.
        l1_ratio: ρ in [0, 1]: 1 is L1, 0 is L2.
        name: its name in logs.
        metric: of ``"proximal"``, as in :class:`PenaltyCallback`.
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
        total_steps: int | None = None,
    ) -> None:
        super().__init__(
            ElasticNet(strength, select, l1_ratio=l1_ratio, name=name), apply, log, metric, total_steps
        )
