"""What a dropout schedule adds to a training step of Lightning: the time of DropoutScheduler's own hook.

Run ``python benchmarks/dropout_step.py``; with ``PYTHONPATH`` at another checkout it times that one. In the
middle of a run the hook is called again and again, with a new rate each time and with one rate. Beside it,
``module.p = rate`` for each place, by hand. The least of sixty times is printed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_reg.callbacks import DropoutScheduler

CALLS, REPEATS, AT = 100, 60, 14


class Net(LightningModule):
    """Linear layers with a dropout after each; logs its loss."""

    def __init__(self, places: int) -> None:
        super().__init__()
        layers = (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)) for _ in range(places))
        self.body = nn.Sequential(*layers)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.body(batch).pow(2).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def least(call: Callable[[], object]) -> float:
    """The least mean time of a call, in microseconds."""
    spent = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        spent.append((time.perf_counter() - start) / CALLS)
    return 1e6 * min(spent)


class Time(Callback):
    """Times the scheduler's hook at one step of the run."""

    def __init__(self, rates: Callable[[], float]) -> None:
        self.rates, self.spent = rates, {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == AT:
            scheduler = trainer.callbacks[0]
            self.spent["hook"] = least(lambda: scheduler.on_train_batch_start(trainer, pl_module, batch, AT))
            dropouts = [module for module in pl_module.modules() if isinstance(module, nn.Dropout)]

            def by_hand() -> None:
                rate = self.rates()
                for module in dropouts:
                    module.p = rate

            self.spent["by hand"] = least(by_hand)


def timed(places: int, rates: Callable[[], float]) -> dict[str, float]:
    """What the hook takes, and writing the rates by hand, in microseconds."""
    look = Time(rates)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[DropoutScheduler(lambda step, total: rates()), look],
    )
    trainer.fit(Net(places), DataLoader(torch.randn(AT + 2, 4)))
    return look.spent


def main() -> None:
    """Print a table."""
    moving = count()
    print("| places | rate | hook, µs | module.p = rate by hand, µs |\n|---:|---|---:|---:|")
    for places in (3, 30, 100):
        for name, rates in (
            ("a new one a step", lambda: 0.1 + next(moving) % 1000 * 1e-4),
            ("one", lambda: 0.3),
        ):
            spent = timed(places, rates)
            print(f"| {places} | {name} | {spent['hook']:.1f} | {spent['by hand']:.1f} |", flush=True)


if __name__ == "__main__":
    main()
