"""Early stopping as a baseline: the weights of the epoch with the lowest validation loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_reg.hosts.both_namespaces import BothCallback

__all__ = ["BestEpoch"]


class BestEpoch(BothCallback):
    """Goes back to the best epoch at the end of a run.

    Args:
        measure: the loss as the module is.
    """

    def __init__(self, measure: Callable[[], float]) -> None:
        super().__init__()
        self.measure = measure
        self.lowest = math.inf
        self.state: dict[str, Any] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights if they are the best so far."""
        loss = self.measure()
        if loss < self.lowest or not self.state:
            self.lowest = loss
            self.state = {name: part.clone() for name, part in pl_module.state_dict().items()}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the best weights back."""
        pl_module.load_state_dict(self.state)
