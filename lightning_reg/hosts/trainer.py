"""What we ask of Lightning's Trainer about the run under way."""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

__all__ = [
    "logs_this_step",
    "names_in_shards",
    "run_length",
    "scaler_of",
    "show_number",
    "validates_before_next_step",
    "values_this_step",
    "warn_of_cut_checkpoint",
]


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
    accumulation = _accumulation_schedule(trainer)
    if accumulation is not None and trainer.num_training_batches != float("inf"):
        # Lightning's estimate takes the first epoch's factor for all
        length = sum(
            math.ceil(trainer.num_training_batches / accumulation(epoch))
            for epoch in range(trainer.max_epochs or 0)
        )
        if trainer.max_steps > 0:
            length = min(length, trainer.max_steps)
    return int(length)


def names_in_shards(path: Any) -> list[str]:
    """Return the names of the entries of a checkpoint; none where it is not in shards."""
    if path is None or not (Path(path) / ".metadata").is_file():
        return []
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    return list(FileSystemReader(path).read_metadata().state_dict_metadata)


def warn_of_cut_checkpoint(trainer: Trainer) -> None:
    """Warn if the local checkpoint that a fit was to resume from was cut short.

    What torch says of one depends on where the cut is: ``[Errno 22] Invalid argument``, or nothing at all.
    """
    path = trainer.ckpt_path
    if path is None or not Path(path).is_file():
        return
    with Path(path).open("rb") as file:
        start = file.read(2)
    if not start or (start == b"PK" and not zipfile.is_zipfile(path)):
        warnings.warn(f"the checkpoint {path} is cut short; resume from an earlier one", stacklevel=2)


def logs_this_step(trainer: Trainer) -> bool:
    """Whether the optimizer step under way is one that Lightning hands to the loggers."""
    return bool(trainer._logger_connector.should_update_logs)


def show_number(trainer: Trainer, name: str, number: float) -> None:
    """Put a number into ``trainer.callback_metrics``, whose property computes all that the module logs."""
    trainer._logger_connector._callback_metrics[name] = torch.tensor(number)


def values_this_step(trainer: Trainer) -> bool:
    """Whether to compute what is logged: on logged steps, on an epoch's last, and before each validation.

    So EarlyStopping and ModelCheckpoint find the key whenever they look.
    """
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    if not every:
        return False
    loop = trainer.fit_loop.epoch_loop  # asked for directly: this is called at every step
    on_log = (loop._batches_that_stepped + 1) % every == 0
    last = trainer.should_stop or loop.batch_progress.is_last_batch
    return on_log or last or validates_before_next_step(trainer)


def validates_before_next_step(trainer: Trainer) -> bool:
    """Whether a validation inside the epoch comes before the next optimizer step."""
    every = trainer.val_check_batch
    if getattr(trainer, "_val_check_time_interval", None) is not None:  # nobody knows when
        return bool(trainer.enable_validation)
    if not isinstance(every, int) or every < 1:
        return False
    loop = trainer.fit_loop.epoch_loop
    at = loop.total_batch_idx if trainer.check_val_every_n_epoch is None else loop.batch_idx
    # the batches from this one to the one before the next step; the property takes longer than they do
    comes = (at + trainer.accumulate_grad_batches) // every > at // every
    return comes and bool(trainer.enable_validation)


def ends_after_step(trainer: Trainer) -> bool:
    """Whether a validation, or the end of the epoch or the run, may come before the next step."""
    last = trainer.is_last_batch or trainer.should_stop or trainer.global_step + 1 == trainer.max_steps
    return last or validates_before_next_step(trainer)


def scaler_of(trainer: Trainer) -> Any | None:
    """Return the ``GradScaler`` of 16-bit mixed precision, or None."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None


def _accumulation_schedule(trainer: Trainer) -> Callable[[int], int] | None:
    """The accumulation factor by epoch, where a callback of either namespace schedules it."""
    if trainer.max_epochs == -1:
        return None
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if any(base.__name__ == "GradientAccumulationScheduler" for base in type(callback).__mro__):
            factor: Callable[[int], int] = callback.get_accumulate_grad_batches
            return factor
    return None
