"""A penalty at work in one run of the Trainer."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

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
    check_optimizer,
    decay_,
    prox_,
    remove_from_training_step,
)
from lightning_reg.hosts.trainer import run_length, scaler_of, values_this_step
from lightning_reg.penalties import Penalty
from lightning_reg.schedules.base import check_schedule

__all__ = ["PenaltyWork"]


class PenaltyWork:
    """A penalty at work in one run of the Trainer: all that must be gone after it.

    Args:
        penalty: which function, on what, how strong.
        apply: how it acts.
        metric: of ``"proximal"``.
        trainer: at the start of its fit.
        module: what it fits.
        total_steps: length of the run, the Trainer's own estimate where None.
        label: tells penalties of one run apart.
        log_name: what the value is logged under, after ``penalty/``; None logs nothing.

    Raises:
        ValueError: a combination that would act wrongly.
    """

    def __init__(
        self,
        penalty: Penalty,
        apply: Apply,
        metric: Metric,
        trainer: Trainer,
        module: LightningModule,
        *,
        total_steps: int | None,
        label: str,
        log_name: str | None,
    ) -> None:
        self.penalty = penalty
        self.apply: Apply = apply
        self.metric: Metric = metric
        self.trainer = trainer
        self.module = module
        self.steps_seen = 0
        self.announced: set[int] = set()  # optimizers that Lightning is about to step
        self.hooks: dict[int, list[Any]] = {}
        self.log_key = f"penalty/{log_name}" if log_name is not None else None
        self.logged_at = -1
        self._check_host()
        if total_steps is None and callable(penalty.strength):
            total_steps = run_length(trainer)
        check_schedule(penalty.strength, total_steps)
        self.term = Term(penalty, module, total_steps, label)
        self.scaler = scaler_of(trainer)
        for optimizer in trainer.optimizers:
            if type(optimizer).__name__ != "_MockOptimizer":  # Lightning's, where the module gives none
                check_optimizer(self.term, apply, optimizer, metric)
        for optimizer in trainer.optimizers:
            self._hook(optimizer)
        if apply == "loss":
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

    def warn_of_no_optimizer(self) -> None:
        """Warn where weights of the selection are trainable, and no optimizer holds any of them."""
        trainable = [s for s in self.term.selected if s.parameter.requires_grad]
        groups = [group for optimizer in self._optimizers() or [] for group in optimizer.param_groups]
        held = {id(parameter) for group in groups for parameter in group["params"]}
        if held and trainable and not any(id(s.parameter) in held for s in trainable):
            warnings.warn(
                f"{self.penalty!r} acts on nothing yet: no optimizer holds {trainable[0].name}, or any other "
                "parameter of its selection; give them to the optimizer, or another select=",
                stacklevel=2,
            )

    def warn_of_repetition(self, me: str, others: Iterable[tuple[str, Penalty]]) -> None:
        """Warn where one of the ``others``, by their owners, penalises the same tensors the same way."""
        mine = {id(selected.parameter) for selected in self.term.selected}
        for owner, penalty in others:
            if type(penalty) is not type(self.penalty):
                continue
            other = Term(penalty, self.module)
            both = [s.name for s in other.selected if id(s.parameter) in mine]
            if both:
                more = f" and {len(both) - 1} more parameters are" if len(both) > 1 else " is"
                warnings.warn(
                    f"{both[0]}{more} penalised twice, by {me} and by {owner}; the strengths add up, so "
                    "leave one out or narrow its select=",
                    stacklevel=2,
                )

    def _strength(self) -> float:
        if not callable(self.penalty.strength):
            return float(self.penalty.strength)
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
        toggled: Any = self.module._param_requires_grad_state  # by toggle_optimizer; else empty
        with torch.no_grad():
            value = self.term.value(strength, self._optimizers(), toggled)
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
