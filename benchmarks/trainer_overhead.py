"""What a penalty adds to a step of the Trainer, on a network so small that nothing else takes time.

    python benchmarks/trainer_overhead.py

The classic tutorial: ``Sequential(Linear(10, 5), ReLU(), Linear(5, 1))``, MSE, SGD with momentum and weight
decay, and a penalty over all parameters; by hand in ``training_step``, or by the callback. Each round fits
every variant once, in turn. The time that one step in ten stays below counts, so that neither a busy moment
of the machine nor the steps that log weigh in.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Callable
from itertools import pairwise

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from lightning_reg import L2Norm
from lightning_reg.callbacks import L1PenaltyCallback, L2PenaltyCallback, PenaltyCallback

STRENGTH = 1e-4


class Idle(Callback):
    """What Lightning itself asks for the hook that a penalty acts in."""

    def on_before_optimizer_step(self, *args: object) -> None:
        pass


class Tutorial(LightningModule):
    def __init__(self, penalty: Callable[[LightningModule], Tensor] | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 5), nn.ReLU(), nn.Linear(5, 1))
        self.penalty = penalty
        self.times: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = functional.mse_loss(self.net(x), y)
        return loss if self.penalty is None else loss + self.penalty(self)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        self.times.append(time.perf_counter())


def norms(order: int) -> Callable[[LightningModule], Tensor]:
    return lambda module: STRENGTH * sum(torch.norm(p, order) for p in module.parameters())


def variants() -> dict[str, Callable[[], tuple[LightningModule, list[Callback]]]]:
    def callback(make: Callable[[], Callback]) -> Callable[[], tuple[LightningModule, list[Callback]]]:
        return lambda: (Tutorial(), [make()])

    everything = {"select": "all"}
    return {
        "no penalty": lambda: (Tutorial(), []),
        "a Callback that does nothing": callback(Idle),
        "tutorial's loop, torch.norm(p, 1)": lambda: (Tutorial(norms(1)), []),
        "tutorial's loop, torch.norm(p, 2)": lambda: (Tutorial(norms(2)), []),
        "L1PenaltyCallback": callback(lambda: L1PenaltyCallback(STRENGTH, **everything)),
        "L2PenaltyCallback": callback(lambda: L2PenaltyCallback(STRENGTH, **everything)),
        "PenaltyCallback(L2Norm)": callback(lambda: PenaltyCallback(L2Norm(STRENGTH, **everything))),
        'L1PenaltyCallback(apply="loss")': callback(
            lambda: L1PenaltyCallback(STRENGTH, apply="loss", **everything)
        ),
        'L2PenaltyCallback(apply="decoupled")': callback(
            lambda: L2PenaltyCallback(STRENGTH, apply="decoupled", **everything)
        ),
        'L1PenaltyCallback(apply="proximal")': callback(
            lambda: L1PenaltyCallback(STRENGTH, apply="proximal", **everything)
        ),
    }


def seconds(make: Callable[[], tuple[LightningModule, list[Callback]]], steps: int) -> list[float]:
    torch.manual_seed(0)
    module, callbacks = make()
    batch = (torch.randn(32, 10), torch.randn(32, 1))
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=callbacks,
    )
    trainer.fit(module, DataLoader([batch] * steps, batch_size=None))
    return [later - earlier for earlier, later in pairwise(module.times)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    taken: dict[str, list[float]] = {name: [] for name in variants()}
    for _ in range(arguments.rounds):
        for name, make in variants().items():
            taken[name] += seconds(make, arguments.steps)
    best = {name: sorted(times)[len(times) // 10] * 1e6 for name, times in taken.items()}
    print(f"torch {torch.__version__}, one thread\n")
    print("| variant | µs a step | added µs | of what the loop adds |\n|---|---:|---:|---:|")
    plain = best["no penalty"]
    loop = {order: best[f"tutorial's loop, torch.norm(p, {order})"] - plain for order in (1, 2)}
    for name, value in best.items():
        share = (value - plain) / loop[2 if "L2Norm" in name or "p, 2" in name else 1]
        print(f"| {name} | {value:.0f} | {value - plain:.0f} | {share:.0%} |")


if __name__ == "__main__":
    main()
