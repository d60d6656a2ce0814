"""Runs for the tests of faults: every way of acting at once, in one process or in two."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_reg import L1, L2, L2SP, Cosine, ElasticNet, Linear, TargetSparsity
from lightning_reg.callbacks import Box, DropoutScheduler, MaxNorm, PenaltyCallback
from tests.support import QUIET, STRICT, Net, data, weights

EPOCHS = 4
#: In the third epoch of eight batches, so that the last checkpoint is the second epoch's.
FAULT_AT = 21


class DropNet(Net):
    def __init__(self) -> None:
        super().__init__(lambda parameters: torch.optim.Adam(parameters, lr=1e-2))
        self.net.insert(2, nn.Dropout(0.5))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(data(64 * self.trainer.world_size), batch_size=8)


class Seed(pl.Callback):
    """Dropout's masks from the step's number: Lightning does not bring the generator back."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        torch.manual_seed(trainer.global_step)


class Signal(pl.Callback):
    """Send this process a signal in the middle of an epoch."""

    def __init__(self, number: int, rank: int = 0) -> None:
        self.number, self.rank = number, rank

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == FAULT_AT and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.number)


def regularization() -> list[pl.Callback]:
    return [
        PenaltyCallback(L1(Cosine(0.0, 0.05), "*.bias"), apply="gradient"),
        PenaltyCallback(L2(Linear(0.1, 0.0, until=30)), apply="loss"),
        PenaltyCallback(ElasticNet(0.01, "all"), apply="decoupled"),
        PenaltyCallback(L1(TargetSparsity(0.5, until=0.8), "net.0.weight"), apply="proximal"),
        PenaltyCallback(L2SP(0.1, "net.3.weight")),
        DropoutScheduler(Linear(0.1, 0.5)),
        MaxNorm(1.0, select="net.0.weight"),
        Box(-0.1, 0.3, select="net.3.weight"),
    ]


def run(
    folder: Path,
    *extra: pl.Callback,
    module: pl.LightningModule | None = None,
    ckpt: Any = None,
    **options: Any,
) -> Tensor:
    module = module if module is not None else DropNet()
    # Lightning 2.4 has no such argument
    on_exception = {"save_on_exception": True} if options.pop("save_on_exception", False) else {}
    checkpoint = ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}", **on_exception)
    regularizing = regularization() if options.pop("regularized", True) else []
    options = {**QUIET, "enable_checkpointing": True, "max_epochs": EPOCHS, **options}
    trainer = pl.Trainer(callbacks=[*regularizing, Seed(), checkpoint, *extra], **options)
    trainer.fit(module, ckpt_path=ckpt, **STRICT)
    return weights(module)


def main(jobs: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    for job in jobs:
        extra = [Signal(signal.SIGKILL, job["kills"])] if "kills" in job else []
        folder = Path(job["folder"])
        result = run(folder, *extra, ckpt=job.get("ckpt"), strategy="ddp", devices=2)
        if os.environ["RANK"] == "0":
            torch.save(result, folder / "weights.pt")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
