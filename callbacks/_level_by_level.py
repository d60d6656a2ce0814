"""A run in levels: a value is set for some epochs, and the loss is measured at their end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightning.pytorch import LightningModule, Trainer

from lightning_reg.callbacks._base import BothCallback

__all__ = ["LevelByLevel"]


class LevelByLevel(BothCallback):
    """Sets one value after another while a model trains.

    Args:
        values: in order.
        set_value: called with each.
        measure: the loss at a level's end.
        warmup: epochs at the first value before its own level begins.
        epochs: of each level.

    Attributes:
        losses: one for each finished level.
    """

    def __init__(
        self,
        values: Sequence[float],
        set_value: Callable[[float], None],
        measure: Callable[[], float],
        *,
        warmup: int,
        epochs: int,
    ) -> None:
        super().__init__()
        self.values = list(values)
        self.set_value = set_value
        self.measure = measure
        self.warmup = warmup
        self.epochs = epochs
        self.losses: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the level's value."""
        level = max(0, trainer.current_epoch - self.warmup) // self.epochs
        self.set_value(self.values[min(level, len(self.values) - 1)])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure at the level's last epoch."""
        done = trainer.current_epoch + 1 - self.warmup
        if done > 0 and done % self.epochs == 0:
            self.losses.append(self.measure())
