"""What RegularizationMonitor costs: ``python benchmarks/monitor.py``.

Prints, for a network of 0.9 million weights under one penalty, the time of its hook on a step that does not
log and on one that does, beside the forward, backward and step of that network on a batch of 64.
"""

from __future__ import annotations

import itertools
import time
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import L1, RegularizedClassifier
from lightning_reg.callbacks import PenaltyCallback, RegularizationMonitor

seconds: dict[str, float] = {}


def best(function: Any, repeats: int = 30) -> float:
    def once() -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return min(once() for _ in range(repeats))


class Timing(pl.Callback):
    def __init__(self, monitor: RegularizationMonitor) -> None:
        self.monitor = monitor

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        def hook() -> None:
            self.monitor._logged_at = -1
            self.monitor.on_before_optimizer_step(trainer, pl_module, optimizer)

        name = "lightning_reg.callbacks.regularization_monitor.logs_this_step"
        seconds["hook, step not logged"] = best(hook)
        with mock.patch(name, return_value=True):
            seconds["hook, step logged"] = best(hook)


def main() -> None:
    torch.set_num_threads(1)
    widths = [256, 512, 512, 512, 512, 10]
    layers = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    net = nn.Sequential(*layers[:-1])
    x, y = torch.randn(64, 256), torch.randint(10, (64,))
    optimizer = torch.optim.Adam(net.parameters())

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()

    seconds["forward, backward and Adam, batch of 64"] = best(step)
    monitor = RegularizationMonitor(table=False)
    trainer = pl.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PenaltyCallback(L1(1e-4)), monitor, Timing(monitor)],
    )
    module = RegularizedClassifier(net, 10, ())
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=64))
    print(f"{sum(p.numel() for p in net.parameters()):,} weights, one thread, torch {torch.__version__}")
    for name, value in seconds.items():
        print(f"{name:42s} {value * 1e6:10.1f} µs")


if __name__ == "__main__":
    main()
