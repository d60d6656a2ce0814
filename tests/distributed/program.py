"""Training jobs that any launcher may start; rank 0 saves what came of each."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_reg import L1, L2, ElasticNet, L2Norm, RegularizedModule
from lightning_reg.callbacks import PenaltyCallback
from tests.support import QUIET, data, network, tutorial_sgd

PENALTIES = {
    "l1": L1(1e-2, "all"),
    "l2": L2(1e-2, "all"),
    "elastic_net": ElasticNet(1e-2, "all"),
    "l2_norm": L2Norm(1e-2, "all"),
}
OPTIMIZERS: dict[str, Any] = {
    "sgd": tutorial_sgd,
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
}


class Program(RegularizedModule):
    """Two layers, sharded one by one where the strategy shards; a third that the forward never uses."""

    def __init__(self, optimizer: str, unused: bool, penalties: Any = ()) -> None:
        super().__init__(penalties)
        self.net = network()
        if unused:
            self.unused = nn.Linear(3, 3)
        self.optimizer = optimizer

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, ModelParallelStrategy) and not hasattr(self, "sharded"):
            from torch.distributed.fsdp import fully_shard

            mesh = self.device_mesh["data_parallel"]
            for layer in (self.net[0], self.net[2]):
                fully_shard(layer, mesh=mesh)
            fully_shard(self.net, mesh=mesh)
            self.sharded = True

    def task_loss(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def train_dataloader(self) -> DataLoader:
        ranks = self.trainer.world_size
        examples = TensorDataset(*(t.to(self.dtype) for t in data(dtype=torch.float64).tensors))
        shares = DistributedSampler(examples, ranks, self.trainer.global_rank, shuffle=False)
        return DataLoader(examples, batch_size=8 // ranks, sampler=shares)

    def configure_optimizers(self) -> Any:
        return OPTIMIZERS[self.optimizer](self.parameters())


def train(job: dict[str, Any]) -> dict[str, Any]:
    penalty = PENALTIES[job["penalty"]]
    in_module = job["apply"] == "module"
    callbacks = [] if in_module or job["apply"] == "none" else [PenaltyCallback(penalty, job["apply"])]
    strategy: Any = job["strategy"]
    if strategy == "fsdp2":
        strategy = ModelParallelStrategy(data_parallel_size=job["devices"], tensor_parallel_size=1)
    module = Program(job["optimizer"], job.get("unused", False), penalty if in_module else ())
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
    value = trainer.callback_metrics.get(f"penalty/{penalty.log_name}", torch.zeros(()))
    return {"weights": nn.utils.parameters_to_vector(full).detach(), "value": value}


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


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2])
