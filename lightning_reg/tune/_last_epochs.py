"""A measurement at the end of each of a run's last epochs."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch import LightningModule, Trainer

from lightning_reg.hosts.both_namespaces import BothCallback

__all__ = ["LastEpochs"]


class LastEpochs(BothCallback):
    """Measures after the last epochs, whose mean wavers less than the last alone.

    Args:
        measure: the loss as the module is.
        count: of epochs.

    Attributes:
        losses: one for each of them.
    """

    def __init__(self, measure: Callable[[], float], count: int) -> None:
        super().__init__()
        self.measure = measure
        self.count = count
        self.losses: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, if this is one of the last."""
        assert trainer.max_epochs is not None
        if trainer.current_epoch >= trainer.max_epochs - self.count:
            self.losses.append(self.measure())
