"""Runs of a sharded network, uninterrupted and resumed; rank 0 saves their weights and averages."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from lightning_reg import L1, Box, GroupLasso, NonNegative
from lightning_reg.apply.dual_averaging import is_average
from lightning_reg.callbacks import PenaltyCallback
from lightning_reg.tensors.shards import whole
from tests.support import QUIET, STRICT, Net, batches, data

BOTH = "L1 and NonNegative"
#: By name: what acts, and the precision.
RUNS: dict[str, tuple[Any, Any]] = {
    BOTH: ([L1(0.2, "net.0.weight"), NonNegative(select="net.2.weight")], "32-true"),
    "L1": (L1(0.2), "32-true"),
    "GroupLasso": (GroupLasso(0.2, groups="rows"), "32-true"),
    "L1 in 16 bits": (L1(0.2), "bf16-true"),
    "Box in 16 bits": (Box(-0.1, 0.1), "bf16-true"),
}
SPLIT, END = 6, 11


def kinds(name: str) -> tuple[str, ...]:
    """The checkpoints that it is resumed from."""
    return {"L1": ("shards", "gathered"), BOTH: ("killed",)}.get(name, ("shards",))


class Sharded(Net):
    """The tutorial's network under FSDP2; the batch goes with the step, since loaders begin anew."""

    def __init__(self) -> None:
        super().__init__(lambda parameters: torch.optim.Adam(parameters, 0.02))

    def configure_model(self) -> None:
        if not hasattr(self, "sharded"):
            self.sharded = True
            for layer in (self.net[0], self.net[2]):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        rows = slice(8 * (self.global_step % 8), None)
        return super().training_step([part[rows][:8].to(self.dtype) for part in data().tensors], batch_idx)


class Look(Callback):
    """Weights and averages at the end of a run, whole."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        for parameter in pl_module.parameters():
            state = trainer.optimizers[0].state[parameter]
            kept = [value for name, value in sorted(state.items()) if is_average(name)]
            self.seen += [whole(torch.as_tensor(v).detach()).clone() for v in (parameter, *kept)]


class Killed(Callback):
    """Save a checkpoint, and two steps later end these processes as the system does where memory runs out."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, *given: Any) -> None:
        if trainer.global_step == SPLIT:
            trainer.save_checkpoint(self.path)
        if trainer.global_step == SPLIT + 2:
            dist.barrier()
            os.kill(os.getpid(), signal.SIGKILL)


def trained(
    name: str, steps: int, checkpoint: Path | None, devices: int, distributed: bool, *extra: Callback
) -> Any:
    """Train from the start, or from what was saved."""
    penalties, precision = RUNS[name]
    look = Look()
    strategy = ModelParallelStrategy(devices, 1, save_distributed_checkpoint=distributed)
    several = penalties if isinstance(penalties, list) else [penalties]
    acts = [PenaltyCallback(penalty, "proximal", log=False) for penalty in several]
    how = {**QUIET, "strategy": strategy, "devices": devices, "precision": precision}
    trainer = pl.Trainer(
        **how, max_steps=steps, use_distributed_sampler=False, callbacks=[*acts, look, *extra]
    )
    trainer.fit(Sharded(), batches(), ckpt_path=checkpoint, **STRICT)
    return trainer, look.seen


def main(folder: str, devices: int, killed: bool = False) -> None:
    """Run all; in one process only what two have saved. Or be killed."""
    if killed:
        trained(BOTH, END, None, 2, True, Killed(Path(folder) / f"{BOTH}, killed.ckpt"))
        raise AssertionError("it lives on")
    results: dict[str, Any] = {}
    for name in RUNS:
        if devices == 2:
            results[name] = trained(name, END, None, 2, True)[1]
        for kind in kinds(name) if devices == 2 else kinds(name)[:1]:
            path = Path(folder) / f"{name}, {kind}.ckpt"
            if devices == 2 and kind != "killed":
                trained(name, SPLIT, None, 2, kind == "shards")[0].save_checkpoint(path)
            results[f"{name}, {kind}"] = trained(name, END, path, devices, kind != "gathered")[1]
    if devices == 1:
        RUNS["another"] = (L1(0.3, name="another"), "32-true")
        _, results["another"] = trained("another", END, Path(folder) / "L1, shards.ckpt", 1, True)
    if dist.get_rank() == 0:
        torch.save(results, Path(folder) / f"{devices}.pt")
    dist.barrier()
    dist.destroy_process_group()
