"""Early stopping as a baseline: the weights of the epoch with the lowest validation loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_reg.hosts.both_namespaces import BothCallback

__all__ = ["BestEpoch"]


class BestEpoch(BothCallback):
    """Keeps the weights of the best epoch by each of several losses, and goes back to the first's at the end.

    Args:
        measures: each the loss of the module as it is, on some of the data.

    Attributes:
        states: the weights of the best epochs, one for each loss.
    """

    def __init__(self, measures: Sequence[Callable[[], float]]) -> None:
        super().__init__()
        self.measures = measures
        self.lowest = [math.inf] * len(measures)
        self.states: list[dict[str, Any]] = [{}] * len(measures)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights where they are the best so far."""
        for index, measure in enumerate(self.measures):
            loss = measure()
            if loss < self.lowest[index] or not self.states[index]:
                self.lowest[index] = loss
                self.states[index] = {name: part.clone() for name, part in pl_module.state_dict().items()}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the best weights back."""
        pl_module.load_state_dict(self.states[0])
