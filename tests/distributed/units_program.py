"""Runs whose groups are units, in one process or several; each rank saves what it found and came to."""

from __future__ import annotations

import os
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler

from lightning_reg import GroupLasso, Penalty, TargetSparsity, Units, attach
from lightning_reg.callbacks import PenaltyCallback
from lightning_reg.metrics import group_sparsity
from tests.support import QUIET, data

#: Of 7 and 5 units, which two processes cannot share out evenly; each rank is given an example of its own.
PENALTIES: dict[str, Any] = {
    "number": lambda units: GroupLasso(0.05, groups=units),
    "share": lambda units: GroupLasso(TargetSparsity(0.5, until=0.5, initial=0.02), groups=units),
}


def made() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(10, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 1))


def units_of_rank() -> Units:
    rank = int(os.environ.get("RANK", 0))
    return Units(torch.randn(2 + rank, 10, generator=torch.Generator().manual_seed(rank)))


class Net(pl.LightningModule):
    """Sharded by layers where the strategy shards."""

    def __init__(self) -> None:
        super().__init__()
        self.net = made()

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, ModelParallelStrategy) and not hasattr(self, "sharded"):
            self.sharded = True  # Lightning asks twice
            for layer in (self.net[0], self.net[2]):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.02)


def loader(ranks: int, rank: int) -> DataLoader:
    share = DistributedSampler(data(), ranks, rank, shuffle=False)
    return DataLoader(data(), batch_size=16 // ranks, sampler=share)


def told(model: nn.Module, units: Units) -> dict[str, Any]:
    full = [getattr(p, "full_tensor", p.detach)().detach() for p in model.parameters()]
    return {
        "sets": [{name: layout.count for name, layout in forms.items()} for forms in units.find(model)],
        "share": float(group_sparsity(model, units)),
        "weights": nn.utils.parameters_to_vector(full),
    }


def trained(strategy: str, penalty: Penalty, units: Units) -> dict[str, Any]:
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    sharding = ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1)
    module = Net()
    trainer = pl.Trainer(
        **QUIET,
        max_epochs=20 if callable(penalty.strength) else 3,  # a share is steered to in more than 12 steps
        strategy=sharding if strategy == "fsdp2" else strategy,
        devices=world,
        callbacks=[PenaltyCallback(penalty, apply="proximal")],
        use_distributed_sampler=False,
    )
    trainer.fit(module, loader(world, rank))
    return told(module, units)


def in_a_loop(penalty: Penalty, units: Units) -> dict[str, Any]:
    """Plain PyTorch: the units are found before FSDP2 shares out the model."""
    model = made()
    units.find(model)
    if dist.is_initialized():
        fully_shard(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    attach(model, optimizer, penalty, apply="proximal", total_steps=12)
    for _ in range(3):
        for x, y in loader(*((dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0))):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
    return told(model, units)


def main(strategies: list[str], folder: str) -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    world, rank = os.environ.get("WORLD_SIZE", "1"), os.environ.get("RANK", "0")
    for name, make in PENALTIES.items():
        for strategy in strategies if name == "number" or world == "2" else []:
            units = units_of_rank()
            results[f"{strategy}, {name}"] = trained(strategy, make(units), units)
    units = units_of_rank()
    results["loop, number"] = in_a_loop(PENALTIES["number"](units), units)
    torch.save(results, f"{folder}/{world}-{rank}.pt")
