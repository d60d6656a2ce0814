"""Fabric in two processes, as torchrun would start it; rank 0 saves what came of each job."""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.optim import SGD

from lightning_reg import L1, attach
from tests.hosts.test_attach_fabric import (
    CLIPS,
    LR,
    STEPS,
    STRENGTH,
    default_dtype,
    micro_batches,
    seen_by,
)
from tests.support import network, without_averages

MODES = ["gradient", "decoupled", "proximal"]
JOBS: list[dict[str, Any]] = [
    {"strategy": strategy, "apply": apply, "accumulate": accumulate, "clip": clip, "when": when}
    for strategy in ("ddp", "fsdp2")
    for apply in MODES
    for accumulate, clip, when in ((1, "unclipped", "after"), (3, "norm", "after"), (3, "norm", "before"))
]


def shard(model: nn.Module, mesh: Any) -> nn.Module:
    for layer in (model[0], model[2]):  # type: ignore[index]
        fully_shard(layer, mesh=mesh["data_parallel"])
    return fully_shard(model, mesh=mesh["data_parallel"])


def train(strategy: str, apply: Any, accumulate: int, clip: str, when: str) -> Tensor:
    sharded = strategy == "fsdp2"
    fabric = Fabric(
        accelerator="cpu",
        devices=2,
        strategy=ModelParallelStrategy(shard, 2, 1) if sharded else "ddp",
        precision="32-true" if sharded else "64-true",
    )
    fabric.launch()
    dtype = torch.float32 if sharded else torch.float64
    bare = network().to(dtype)
    if sharded:  # the parameters are exchanged in setup, so the optimizer comes after
        model = fabric.setup(bare)
        optimizer = SGD(model.parameters(), lr=LR)
    else:
        model, optimizer = bare, SGD(bare.parameters(), lr=LR)
    if when == "before":
        handle = attach(model, optimizer, L1(STRENGTH), apply, **without_averages(apply))
    if sharded:
        optimizer = fabric.setup_optimizers(optimizer)
    else:
        model, optimizer = fabric.setup(model, optimizer)
    if when == "after":
        handle = attach(model, optimizer, L1(STRENGTH), apply, **without_averages(apply))
    for i, (x, y) in enumerate(micro_batches(STEPS * accumulate, dtype)):
        mine = slice(4 * fabric.global_rank, 4 * fabric.global_rank + 4)
        steps = (i + 1) % accumulate == 0
        with fabric.no_backward_sync(model, enabled=not steps), default_dtype(dtype):
            fabric.backward(nn.functional.mse_loss(model(x[mine]), y[mine]) / accumulate)
        if steps:
            if clip != "unclipped":
                if apply == "gradient":
                    handle.add_gradient()
                with seen_by(handle, apply, clip):
                    fabric.clip_gradients(model, optimizer, **CLIPS[clip])
            optimizer.step()
            optimizer.zero_grad()
    full = [getattr(p, "full_tensor", p.detach)() for p in bare.parameters()]
    return nn.utils.parameters_to_vector(full).detach()


def main(out: str) -> None:
    torch.set_num_threads(1)
    results = [train(**job) for job in JOBS]
    if torch.distributed.get_rank() == 0:
        torch.save(results, out)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
