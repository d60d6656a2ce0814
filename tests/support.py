"""What many tests share: the tutorial's network, its data, a quiet Trainer, a loop written by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from inspect import signature
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import RegularizedModule

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
#: What ``Trainer.fit`` takes from Lightning 2.6 on.
STRICT = {"weights_only": True} if "weights_only" in signature(pl.Trainer.fit).parameters else {}


def l1_logistic() -> dict[str, Any]:
    """What asks scikit-learn's ``LogisticRegression`` for L1: ``l1_ratio`` since 1.8, ``penalty`` before."""
    from sklearn.linear_model import LogisticRegression

    penalty = signature(LogisticRegression).parameters.get("penalty")
    return {"penalty": "l1"} if penalty is not None and penalty.default == "l2" else {"l1_ratio": 1.0}


def tutorial_sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=0.01)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(10, 5), nn.ReLU(), nn.Linear(5, 1))


def data(size: int = 64, dtype: torch.dtype = torch.float32) -> TensorDataset:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(size, 10, generator=generator, dtype=dtype)
    noise = torch.randn(size, 1, generator=generator, dtype=dtype)
    return TensorDataset(inputs, inputs[:, :3].sum(1, keepdim=True) + 0.1 * noise)


def batches(batch_size: int = 8, dtype: torch.dtype = torch.float32) -> DataLoader:
    return DataLoader(data(dtype=dtype), batch_size=batch_size)


class Net(pl.LightningModule):
    def __init__(self, optimizer: MakeOptimizer = tutorial_sgd) -> None:
        super().__init__()
        self.net = network()
        self.make_optimizer = optimizer

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters())


class RegularizedNet(RegularizedModule):
    def __init__(
        self, penalties: Any, optimizer: MakeOptimizer = tutorial_sgd, apply: Any = "loss", **how: Any
    ) -> None:
        super().__init__(penalties, apply, **how)
        self.net = network()
        self.make_optimizer = optimizer

    def task_loss(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters())


def fit(
    module: pl.LightningModule,
    *callbacks: pl.Callback,
    steps: int = 20,
    loader: Any = None,
    **options: Any,
) -> pl.Trainer:
    options = {**QUIET, "max_steps": steps, **options}
    trainer = pl.Trainer(callbacks=list(callbacks), **options)
    trainer.fit(module, loader if loader is not None else batches())
    return trainer


def weights(module: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(p.detach() for p in module.parameters())


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def without_averages(apply: str | None) -> dict[str, bool]:
    """The arguments with which ``apply`` is a loop by hand that remembers nothing."""
    return {"dual_averaging": False} if apply == "proximal" else {}


def at_each(function: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """A function of one point, at a hundred of them in the time of three."""
    return torch.vmap(function)(points)
