"""The base of every callback here: a ``Callback`` of both of Lightning's namespaces.

``lightning.pytorch`` and ``pytorch_lightning`` are two sets of classes. A Trainer before 2.6.1, and any
LightningCLI, takes only callbacks of its own; a class that inherits from both is at home in each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch import Callback

__all__ = ["BothCallback"]

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
