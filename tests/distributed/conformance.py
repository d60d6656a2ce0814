"""Run cells of the conformance table in one process group; every rank saves what came of each."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_reg.callbacks import PenaltyCallback
from tests.distributed.cells import (
    BATCH,
    CLIPPING,
    FAMILIES,
    OPTIMIZERS,
    STEPS,
    Cell,
    crossed,
    renamed,
    sharded,
    whole,
)
from tests.support import QUIET, data, network, without_averages
from tests.turns import part_of

#: The columns of the page, by the launch that runs them: Lightning's name and the number of processes.
COLUMNS: dict[str, dict[str, tuple[str, int]]] = {
    "one": {"single device": ("auto", 1), "DDP, 1": ("ddp", 1), "FSDP2, 1": ("fsdp2", 1)},
    "two": {
        "DDP, 2": ("ddp", 2),
        "DDP, unused found, 2": ("ddp_find_unused_parameters_true", 2),
        "FSDP2, 2": ("fsdp2", 2),
    },
    "spawn": {"DDP spawned, 2": ("ddp_spawn", 2)},
}
#: What each spawn runs, all families and applies together: precision, accumulation, clipping.
SPAWNED = [("64-true", 1, "none"), ("bf16-true", 2, "none"), ("16-mixed", 1, "value")]
#: A run of the tests has one of so many parts of the table.
PARTS = 9


class Networks(pl.LightningModule):
    """The tutorial's network, as often as there are penalties on it; each layer sharded by itself."""

    def __init__(self, optimizer: str, count: int = 1) -> None:
        super().__init__()
        self.nets = nn.ModuleList(network() for _ in range(count))
        self.optimizer = optimizer

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            mesh = self.device_mesh["data_parallel"]
            for net in self.nets:
                for layer in (net[0], net[2]):
                    fully_shard(layer, mesh=mesh)
                fully_shard(net, mesh=mesh)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        losses = [nn.functional.mse_loss(net(batch[0]), batch[1]) for net in self.nets]
        return torch.stack(losses).sum()

    def train_dataloader(self) -> DataLoader:
        ranks, rank = self.trainer.world_size, self.trainer.global_rank
        examples = TensorDataset(*(t.to(self.dtype) for t in data(dtype=torch.float64).tensors))
        shares = DistributedSampler(examples, ranks, rank, shuffle=False)
        return DataLoader(examples, batch_size=BATCH // ranks, sampler=shares)

    def configure_optimizers(self) -> Any:
        return OPTIMIZERS[self.optimizer](self.parameters())


def fit(module: Networks, callbacks: list[Any], cell: Cell) -> None:
    """Train as the cell says."""
    launch = next(names for names in COLUMNS.values() if cell.strategy in names)
    name, devices = launch[cell.strategy]
    strategy: Any = name
    if name == "fsdp2":
        strategy = ModelParallelStrategy(data_parallel_size=devices, tensor_parallel_size=1)
    precision: dict[str, Any] = {"precision": cell.precision}
    if cell.precision == "16-mixed" and not sharded(cell.strategy):  # the flag alone is bfloat16 on the CPU
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)  # small enough that no step is left out
        precision = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}
    trainer = pl.Trainer(
        **QUIET,
        **precision,
        **CLIPPING[cell.clip],
        max_steps=STEPS,
        max_epochs=-1,
        strategy=strategy,
        devices=devices,
        accumulate_grad_batches=cell.accumulate,
        callbacks=callbacks,
        use_distributed_sampler=False,
    )
    trainer.fit(module)


def callback(cell: Cell, network: str) -> PenaltyCallback:
    """The cell's penalty on one network; a proximal step as the loop takes it, without averages."""
    penalty = renamed(FAMILIES[cell.family], network)
    return PenaltyCallback(penalty, cell.apply, log=False, **without_averages(cell.apply))


def run(cell: Cell) -> Tensor | str:
    """The weights that the cell ends with, or the sentence that refuses it."""
    module = Networks(cell.optimizer)
    try:
        fit(module, [callback(cell, "nets.0")], cell)
    except ValueError as error:
        return str(error)
    return weights(module)


def run_together(cells: list[Cell]) -> list[Tensor | str]:
    """The same for cells that differ in penalty and ``apply`` alone, each on a network of its own."""
    module = Networks(cells[0].optimizer, len(cells))
    results: list[Tensor | str] = []
    callbacks = []
    for i, cell in enumerate(cells):
        try:
            callbacks.append(callback(cell, f"nets.{i}"))
            results.append("")
        except ValueError as error:
            results.append(str(error))
    if cells[0].precision == "64-true":
        module.double()  # what comes back from the processes that trained is put into this one
    fit(module, callbacks, cells[0])
    return [result or weights(net) for result, net in zip(results, module.nets, strict=True)]


def weights(module: nn.Module) -> Tensor:
    """Every weight, whole."""
    parts: list[Any] = [p.detach() for p in module.parameters()]
    full = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in parts]
    return nn.utils.parameters_to_vector(full).double()


def cells_of(launch: str, turn: int | None = None) -> list[Cell]:
    """All that one launch runs, or its part in this turn; every other day, one setting of those spawned."""
    if launch == "spawn":
        (strategy,) = COLUMNS["spawn"]
        together = [(f, a) for f in FAMILIES for a in ("gradient", "loss", "decoupled", "proximal")]
        return [
            Cell(family, apply, strategy, precision, "SGD", accumulate, clip)
            for precision, accumulate, clip in spawned_in(turn)
            for family, apply in together
        ]
    grids = [[*whole(strategy), *crossed(strategy)] for strategy in COLUMNS[launch]]
    grids += [whole("single device", "Adam")] if launch == "one" else []
    # a grid after the other begins one later, so that they have other families in a turn
    first = list(COLUMNS).index(launch) * len(grids)
    turns = [None if turn is None else turn + first + i for i in range(len(grids))]
    return [cell for i, grid in zip(turns, grids, strict=True) for cell in part_of(grid, PARTS, i)]


def spawned_in(turn: int | None) -> list[tuple[str, int, str]]:
    """All of ``SPAWNED``, or one of them on odd days."""
    return SPAWNED if turn is None else part_of(SPAWNED, len(SPAWNED), turn // 2) if turn % 2 else []


def main(launch: str, turn: int | None, families: Sequence[str], out: str) -> None:
    torch.set_num_threads(1)
    cells = [cell for cell in cells_of(launch, turn) if cell.family in families]
    results: list[Tensor | str] = []
    if launch == "spawn":
        for _, together in itertools.groupby(cells, lambda cell: cell.precision):
            results += run_together(list(together))
    else:
        results = [run(cell) for cell in cells]
    torch.save(results, f"{out}.{os.environ.get('RANK', '0')}")
