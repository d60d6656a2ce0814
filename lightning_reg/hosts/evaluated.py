"""The weights that evaluation uses, where an optimizer keeps others for training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import Optimizer

__all__ = ["evaluated"]


@contextmanager
def evaluated(optimizers: Iterable[Optimizer]) -> Iterator[None]:
    """Look at a model with the weights of evaluation, its training weights being put back bit for bit.

    Schedule-free optimizers train at a point between two averages, and ``optimizer.eval()`` puts the average
    in its place. Those that are in evaluation mode already are left as they are.
    """
    swapping: list[Any] = [
        optimizer
        for optimizer in optimizers
        if callable(getattr(optimizer, "eval", None))
        and callable(getattr(optimizer, "train", None))
        and all(group.get("train_mode", False) for group in optimizer.param_groups)
    ]
    kept = [(p, p.detach().clone()) for o in swapping for group in o.param_groups for p in group["params"]]
    for optimizer in swapping:
        optimizer.eval()
    try:
        yield
    finally:
        for optimizer in swapping:
            optimizer.train()
        with torch.no_grad():
            for parameter, before in kept:  # there and back again is not exact
                parameter.copy_(before)
