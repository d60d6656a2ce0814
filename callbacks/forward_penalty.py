"""Penalties on the forward pass, attached to a Trainer."""

from __future__ import annotations

from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_reg.apply import add_to_training_step, remove_from_training_step
from lightning_reg.callbacks.regularizer import log_name_of
from lightning_reg.hosts.both_namespaces import BothCallback
from lightning_reg.hosts.trainer import run_length, values_this_step
from lightning_reg.penalties import ForwardPenalty
from lightning_reg.penalties.forward import Recorder
from lightning_reg.schedules.base import check_schedule

__all__ = ["ForwardPenaltyCallback"]


@final
class ForwardPenaltyCallback(BothCallback):
    """Penalize what the modules of a LightningModule compute, without touching it.

    The term is added to what ``training_step`` returns.

    Args:
        penalty: an :class:`~lightning_reg.ActivityPenalty`, :class:`~lightning_reg.JacobianPenalty`,
            :class:`~lightning_reg.ConfidencePenalty` or :class:`~lightning_reg.RDrop`.
        log: log ``penalty/<name>``, and ``penalty/<name>/strength`` where it is scheduled, on the steps that
            the Trainer logs.

    Raises:
        TypeError: ``penalty`` is not one on the forward pass.
        ValueError: at fit start, manual optimization, or modules that match nothing.

    >>> from lightning_reg import L1, ActivityPenalty
    >>> ForwardPenaltyCallback(ActivityPenalty(L1(1e-4), modules="encoder.*")).penalty.log_name
    'activity_l1'
    """

    def __init__(self, penalty: ForwardPenalty, log: bool = True) -> None:
        super().__init__()
        if not isinstance(penalty, ForwardPenalty):
            raise TypeError(
                f"{penalty!r} is not a penalty on the forward pass; give an ActivityPenalty and the like, or "
                "use PenaltyCallback for one on the weights"
            )
        self.penalty = penalty
        self.logs = log  # Lightning sets `log` on every callback: the method
        self._work: tuple[Trainer, LightningModule, Recorder, int | None, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_work": None}  # a copy is not attached to anything

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the modules."""
        self._detach()
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"{self.penalty!r} adds to the loss that training_step returns, and under manual "
                "optimization nobody reads it; use penalty.record(self) in your own step"
            )
        total_steps = run_length(trainer) if callable(self.penalty.schedule) else None
        check_schedule(self.penalty.schedule, total_steps)
        key = f"penalty/{log_name_of(self, trainer, pl_module)}"
        self._work = (trainer, pl_module, Recorder(self.penalty, pl_module), total_steps, key)
        add_to_training_step(pl_module, self._value)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Forget calls made outside a training step."""
        if self._work is not None:
            self._work[2].clear()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no trace."""
        self._detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave no trace."""
        if stage == "fit":
            self._detach()

    def _value(self, loss: Tensor) -> Tensor:
        assert self._work is not None
        trainer, module, recorder, total_steps, key = self._work
        if not trainer.training:  # validation_step may call training_step
            recorder.clear()
            return torch.zeros((), device=module.device)
        value = recorder.value(trainer.global_step, total_steps)
        if self.logs and values_this_step(trainer):
            module.log(key, value.detach())
            if callable(self.penalty.schedule):
                module.log(f"{key}/strength", self.penalty.schedule(trainer.global_step, total_steps))
        return value

    def _detach(self) -> None:
        if self._work is not None:
            _, module, recorder, _, _ = self._work
            recorder.remove()
            remove_from_training_step(module, self._value)
            self._work = None
