"""Training jobs that any launcher may start; rank 0 saves what came of each."""

from __future__ import annotations

import os
import sys
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_reg import (
    L1,
    L2,
    L2SP,
    ElasticNet,
    GroupLasso,
    L2Norm,
    LInf,
    NuclearNorm,
    RegularizedModule,
    SpectralNorm,
    TargetSparsity,
)
from lightning_reg.callbacks import MaxNorm, NormBudget, PenaltyCallback, RegularizationMonitor
from tests.support import QUIET, data, network, tutorial_sgd

PENALTIES = {
    "l1": L1(1e-2, "all"),
    "l2": L2(1e-2, "all"),
    "elastic_net": ElasticNet(1e-2, "all"),
    "l2_norm": L2Norm(1e-2, "all"),
    "l2_sp": L2SP(0.1, "all"),
    "rows": GroupLasso(1e-2, groups="rows"),
    "columns": GroupLasso(1e-2, groups="columns"),
    "l_inf": LInf(3e-2, groups="columns"),
    "nuclear": NuclearNorm(3e-2),
    "spectral": SpectralNorm(3e-2),
    "target": L1(TargetSparsity(0.5, initial=1e-2, until=15)),
}
CONSTRAINTS: dict[str, Any] = {
    "max_norm": lambda: MaxNorm(0.4),
    "max_norm_columns": lambda: MaxNorm(0.2, groups="columns"),
    "norm_budget": lambda: NormBudget(0.7, rate=0.1),
}
OPTIMIZERS: dict[str, Any] = {
    "sgd": tutorial_sgd,
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
}


class Program(RegularizedModule):
    """Two layers, sharded where the strategy shards; a third that the forward never uses.

    The first ``layers`` are sharded by themselves, and what is left with the whole: after the forward the
    first are sharded again, and the rest are not.
    """

    def __init__(self, optimizer: str, unused: bool, penalties: Any = (), layers: int = 2) -> None:
        super().__init__(penalties)
        self.net = network()
        if unused:
            self.unused = nn.Linear(3, 3)
        self.optimizer = optimizer
        self.layers = layers

    def configure_model(self) -> None:
        if not isinstance(self.trainer.strategy, ModelParallelStrategy) or hasattr(self, "sharded"):
            return
        self.sharded = True
        mesh = self.device_mesh["data_parallel"]
        if mesh.size() == 1:
            split = {"0": ColwiseParallel(use_local_output=False), "2": RowwiseParallel()}
            parallelize_module(self.net, self.device_mesh["tensor_parallel"], split)
            return
        for layer in (self.net[0], self.net[2])[: self.layers]:
            fully_shard(layer, mesh=mesh)
        fully_shard(self.net, mesh=mesh)

    def task_loss(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def train_dataloader(self) -> DataLoader:
        sampling = self.trainer.strategy.distributed_sampler_kwargs if self.trainer.world_size > 1 else {}
        ranks, rank = sampling.get("num_replicas", 1), sampling.get("rank", 0)
        examples = TensorDataset(*(t.to(self.dtype) for t in data(dtype=torch.float64).tensors))
        shares = DistributedSampler(examples, ranks, rank, shuffle=False)
        return DataLoader(examples, batch_size=8 // ranks, sampler=shares)

    def configure_optimizers(self) -> Any:
        return OPTIMIZERS[self.optimizer](self.parameters())


def train(job: dict[str, Any]) -> dict[str, Any]:
    in_module = job["apply"] == "module"
    callbacks: list[Any] = []
    if job["apply"] == "constraint":
        callbacks, name = [CONSTRAINTS[job["penalty"]]()], ""
    else:
        penalty = PENALTIES[job["penalty"]]
        callbacks = [] if in_module or job["apply"] == "none" else [PenaltyCallback(penalty, job["apply"])]
        name = penalty.log_name
    monitor = RegularizationMonitor("all", table=job.get("monitor", False))
    callbacks += [monitor] if job.get("monitor") else []
    strategy: Any = job["strategy"]
    if strategy == "fsdp2":
        strategy = ModelParallelStrategy(data_parallel_size=job["devices"], tensor_parallel_size=1)
    elif strategy == "tensor_parallel":
        strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=job["devices"])
    penalties = penalty if in_module else ()
    module = Program(job["optimizer"], job.get("unused", False), penalties, job.get("layers", 2))
    if job["precision"] == "64-true":
        module = module.double()  # ddp_spawn copies the result back into this process's module
    trainer = pl.Trainer(
        **QUIET,
        max_steps=job["steps"],
        max_epochs=-1,
        strategy=strategy,
        devices=job["devices"],
        precision=job["precision"],
        accumulate_grad_batches=job.get("accumulate", 1),
        gradient_clip_val=job.get("clip"),
        callbacks=callbacks,
        log_every_n_steps=1,
        use_distributed_sampler=False,
    )
    trainer.fit(module)
    full = [getattr(p, "full_tensor", p.detach)() for p in module.parameters()]
    value = trainer.callback_metrics.get(f"penalty/{name}", torch.zeros(()))
    weights = nn.utils.parameters_to_vector(full).detach()
    return {"weights": weights, "value": value, "history": monitor.history}


def main(jobs: list[dict[str, Any]], out: str) -> None:
    torch.set_num_threads(1)
    results = []
    for job in jobs:
        try:
            results.append(train(job))
        except (ValueError, RuntimeError) as error:
            results.append({"error": f"{type(error).__name__}: {error}"})
            print(f"{job}: {error}", file=sys.stderr)
            break  # another rank may be elsewhere; leaving ends it too
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(results, out)
