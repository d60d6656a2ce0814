"""The weights that evaluation uses, where an optimizer keeps others for training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.optim import Optimizer

__all__ = ["evaluated"]


@contextmanager
def evaluated(optimizers: Optimizer | Iterable[Optimizer]) -> Iterator[None]:
    """Look at a model with the weights of evaluation, its training weights being put back bit for bit.

    Schedule-free optimizers train at a point between two averages, and ``optimizer.eval()`` puts the average
    in its place. Those that are in evaluation mode already, and all other optimizers, are left as they are.
    A look between a forward and its backward pass is allowed.

    Args:
        optimizers: one or several.

    >>> model = torch.nn.Linear(2, 1)
    >>> with evaluated(torch.optim.SGD(model.parameters(), lr=0.1)):
    ...     norm = model.weight.norm()
    """
    given = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
    swapping: list[Any] = [
        optimizer
        for optimizer in given
        if callable(getattr(optimizer, "eval", None))
        and callable(getattr(optimizer, "train", None))
        and all(group.get("train_mode", False) for group in optimizer.param_groups)
    ]
    held = [p for o in swapping for group in o.param_groups for p in group["params"]]
    kept = [(p, p.detach().clone()) for p in held]
    with ExitStack() as counters:
        for parameter in held:  # what a graph has saved is there again when it is asked for
            counters.enter_context(_unsafe_preserve_version_counter(parameter))
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
