"""Many short runs without a Trainer's greetings for each."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning_reg.hosts.requested import nothing_attached

__all__ = ["STILL", "quiet"]

#: Options of a Trainer that writes, draws and validates nothing.
STILL: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "limit_val_batches": 0,
    "log_every_n_steps": 2**31,
}

_LOGGERS = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")
#: Advice about loaders and logging that would come once a point.
_ADVICE = (
    ".*does not have many workers.*",
    ".*number of training batches .* is smaller than the logging interval.*",
    ".*You defined a `validation_step` but have no `val_dataloader`.*",
    ".*`max_epochs` was not set.*",
    ".*GPU available but not used.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's loggers to errors, its advice to itself, and Trainers to their own callbacks."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), nothing_attached():
            for advice in _ADVICE:
                warnings.filterwarnings("ignore", advice)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
