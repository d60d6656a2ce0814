"""A penalty or a constraint at work in one run of the Trainer, from a callback."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_reg.apply import (
    Apply,
    DualAveraging,
    Metric,
    Term,
    add_to_training_step,
    remove_from_training_step,
)
from lightning_reg.hosts.engine import Engine
from lightning_reg.hosts.lightning_host import LightningHost, length_for, started
from lightning_reg.hosts.trainer import validates_before_next_step
from lightning_reg.penalties.regularizer import Regularizer

__all__ = ["PenaltyWork"]


class PenaltyWork:
    """One engine in one run of the Trainer: what it logs, warns of, and must be gone after it.

    Args:
        penalty: which function or set, on what, how strong.
        apply: how it acts.
        metric: of ``"proximal"``.
        trainer: at the start of its fit.
        module: what it fits.
        total_steps: length of the run, the Trainer's own estimate where None.
        dual_averaging: of ``"proximal"``.
        label: tells penalties of one run apart.
        log_name: what the value is logged under, after ``penalty/``; None logs nothing.

    Raises:
        ValueError: a combination that would act wrongly.
    """

    def __init__(
        self,
        penalty: Regularizer,
        apply: Apply,
        metric: Metric,
        trainer: Trainer,
        module: LightningModule,
        *,
        total_steps: int | None,
        dual_averaging: DualAveraging,
        label: str,
        log_name: str | None,
    ) -> None:
        self.penalty = penalty
        self.trainer = trainer
        self.module = module
        self.log_key = f"penalty/{log_name}" if log_name is not None else None
        self.logged_at = -1
        is_manual = not module.automatic_optimization
        #: whether there may be more steps than the user says, after which a schedule stays at its end
        self.outruns = callable(penalty.strength) and is_manual and total_steps is not None
        self.host = LightningHost(trainer, module, total_steps)
        self.host.check_host(penalty, apply, logs=log_name is not None)
        total_steps = length_for(penalty, trainer, total_steps)
        engine = Engine(
            penalty,
            apply,
            metric,
            module,
            self.host,
            total_steps=total_steps,
            dual_averaging=dual_averaging,
            label=label,
        )
        self.engine = started(engine, self.host)
        if apply == "loss":
            add_to_training_step(module, self._loss_term)

    @property
    def term(self) -> Term:
        """What is at work."""
        return self.engine.term

    def detach(self) -> None:
        """Undo all that :meth:`__init__` did to module and optimizers."""
        self.engine.detach()
        remove_from_training_step(self.module, self._loss_term)

    def check_seen(self) -> None:
        """Warn, once, if an epoch went by without an optimizer step, or with steps that nobody sees."""
        if self.engine.steps_seen == 0 and self.trainer.fit_loop.epoch_loop.total_batch_idx >= 0:
            self.engine.steps_seen = 1
            self.host.watch_no_more()
            warnings.warn(
                f"{self.penalty!r} was not applied: Lightning saw no optimizer step in this epoch; let "
                "Lightning step the optimizer (self.optimizers()), or use lightning_reg.attach on the one "
                "that steps",
                stacklevel=2,
            )
        self.host.warn_of_unheld(self.engine)

    def warn_of_no_optimizer(self) -> None:
        """Warn where weights of the selection are trainable, and no optimizer holds any of them."""
        trainable = [s for s in self.term.selected if s.parameter.requires_grad]
        groups = [group for optimizer in self.host.optimizers() or [] for group in optimizer.param_groups]
        held = {id(parameter) for group in groups for parameter in group["params"]}
        if held and trainable and not any(id(s.parameter) in held for s in trainable):
            warnings.warn(
                f"{self.penalty!r} acts on nothing yet: no optimizer holds {trainable[0].name}, or any other "
                "parameter of its selection; give them to the optimizer, or another select=",
                stacklevel=2,
            )

    def warn_of_repetition(self, me: str, others: Iterable[tuple[str, Regularizer]]) -> None:
        """Warn where one of the ``others``, by their owners, penalizes the same tensors the same way."""
        mine = {id(selected.parameter) for selected in self.term.selected}
        for owner, penalty in others:
            if penalty.is_constraint or type(penalty) is not type(self.penalty):
                continue
            other = Term(penalty, self.module)
            both = [s.name for s in other.selected if id(s.parameter) in mine]
            if both:
                more = f" and {len(both) - 1} more parameters are" if len(both) > 1 else " is"
                warnings.warn(
                    f"{both[0]}{more} penalized twice, by {me} and by {owner}; the strengths add up, so "
                    "leave one out or narrow its select=",
                    stacklevel=2,
                )

    def _loss_term(self, loss: Tensor) -> Tensor:
        # validation_step may call training_step
        if self.trainer.training:
            return self.engine.loss_term(loss)
        return torch.zeros((), device=self.module.device)

    def log_before_first_step(self) -> None:
        """Log where a validation comes before the first step, as it may where gradients accumulate."""
        if self.log_key is not None and validates_before_next_step(self.trainer):
            self.log()
            self.logged_at = -1  # the step has a value of its own

    def log(self) -> None:
        """Log the term's value, once a batch."""
        assert self.log_key is not None
        step = self.trainer.fit_loop.epoch_loop._batches_that_stepped
        if self.logged_at == step:  # another optimizer of the same batch
            return
        self.logged_at = step
        self.module.log(self.log_key, self.engine.value())
        if callable(self.penalty.strength):
            self.module.log(f"{self.log_key}/strength", self.engine.strength())
