"""The base of every callback here: a ``Callback`` of both of Lightning's namespaces.

``lightning.pytorch`` and ``pytorch_lightning`` are two sets of classes. A Trainer before 2.6.1, and any
LightningCLI, takes only callbacks of its own; a class that inherits from both is at home in each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch import Callback

__all__ = ["BothCallback", "shown"]

if TYPE_CHECKING:
    BothCallback = Callback
else:
    try:
        from pytorch_lightning import Callback as OtherCallback
    except ImportError:
        BothCallback = Callback
    else:

        class BothCallback(Callback, OtherCallback):
            """A callback for Trainers of both namespaces."""


def shown(callback: object) -> str:
    """Return what a callback says of itself, or its class where that would be an address in memory."""
    silent = type(callback).__repr__ is object.__repr__
    return f"{type(callback).__name__}(...)" if silent else repr(callback)
