"""Averages of weights in two processes, beside the live weights; rank 0 saves them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_reg import L1, GroupLasso, KeepLargest, UnitNorm, attach
from lightning_reg.callbacks import L1PenaltyCallback
from lightning_reg.tensors.shards import whole
from tests.support import Net, batches, fit, network

MOVING = get_ema_multi_avg_fn(0.99)


class Own(Callback):
    """An average that a callback makes itself, of the module that DDP wraps."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.average = AveragedModel(pl_module.net, multi_avg_fn=MOVING)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *given: Any) -> None:
        self.average.update_parameters(pl_module.net)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.net.load_state_dict(self.average.module.state_dict())


class Look(Callback):
    """The live weight after each step."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *given: Any) -> None:
        self.live = pl_module.net[0].weight.detach().clone()


def averages() -> dict[str, Callback]:
    """The averages of a Trainer."""
    found = {"own": Own(), "swa": StochasticWeightAveraging(0.05, swa_epoch_start=2)}
    moving = getattr(callbacks, "EMAWeightAveraging", None)
    return found if moving is None else {**found, "moving": moving(decay=0.99, update_every_n_steps=3)}


def in_a_trainer(average: Callback) -> tuple[Tensor, Tensor]:
    """Fit under DDP: the live weight, and the one that the fit leaves; the same in both processes."""
    net, look = Net(), Look()
    penalty = L1PenaltyCallback(0.1, apply="proximal")
    fit(net, look, average, penalty, steps=-1, max_epochs=6, strategy="ddp", devices=2)
    left = net.net[0].weight.detach()
    mean = left.clone()
    dist.all_reduce(mean)
    assert torch.equal(mean / 2, left), "the processes have one average"
    return look.live, left


def sharded(penalty: Any) -> tuple[Tensor, Tensor]:
    """Train a sharded network beside a sharded average: the live weight and the average, gathered."""
    net = network()
    averaged = AveragedModel(net, multi_avg_fn=MOVING)
    mesh = init_device_mesh("cpu", (2,))
    for one in (net, averaged.module):
        fully_shard(one, mesh=mesh)
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    handle = attach(net, optimizer, penalty, "proximal", total_steps=48)
    for x, y in list(batches()) * 6:
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
        averaged.update_parameters(net)
    handle.remove()
    return tuple(whole(one[0].weight.detach()) for one in (net, averaged.module))  # type: ignore[return-value]


def main(out: str) -> None:
    """Run all, and save the weights by name."""
    results = {f"ddp, {name}": in_a_trainer(average) for name, average in averages().items()}
    for penalty in (L1(0.3), GroupLasso(0.1), KeepLargest(0.5, scope="all"), UnitNorm()):
        results[f"fsdp2, {type(penalty).__name__}"] = sharded(penalty)
    if dist.get_rank() == 0:
        torch.save(results, out)
    dist.barrier()
    dist.destroy_process_group()
