"""What we ask of Lightning's Trainer about the run under way."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

__all__ = ["logs_this_step", "run_length", "scaler_of"]


def run_length(trainer: Trainer) -> int | None:
    """Return the run's length in ``trainer.global_step``, or None where it has no known end.

    Under manual optimization every optimizer's steps count, and Lightning cannot know how many a batch
    takes: one of each optimizer is assumed where ``max_steps`` does not say.
    """
    length = trainer.estimated_stepping_batches
    if length == float("inf") or length < 0:
        return None
    if not trainer.lightning_module.automatic_optimization and length != trainer.max_steps:
        length *= max(1, len(trainer.optimizers))
        if trainer.max_steps > 0:
            length = min(length, trainer.max_steps)
    return int(length)


def logs_this_step(trainer: Trainer) -> bool:
    """Whether the optimizer step under way is one that Lightning hands to the loggers."""
    return bool(trainer._logger_connector.should_update_logs)


def scaler_of(trainer: Trainer) -> Any | None:
    """Return the ``GradScaler`` of 16-bit mixed precision, or None."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None
