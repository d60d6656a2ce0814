"""Hyper-parameters in checkpoints: which classes load with ``weights_only=True``."""

from __future__ import annotations

import torch

__all__ = ["allow_in_checkpoints"]


def allow_in_checkpoints(cls: type) -> None:
    """Let ``torch.load(..., weights_only=True)`` rebuild ``cls``, if it is one of this library's.

    Penalties and schedules call it for each subclass as it is defined, so that it holds however they are
    imported. Subclasses of other packages are for their authors to allow.
    """
    ours = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
    if ours and hasattr(torch.serialization, "add_safe_globals"):  # torch 2.4
        torch.serialization.add_safe_globals([cls])
