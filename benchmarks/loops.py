"""A plain loop that trains a small network with one kind of regularization, for grids beside ``tune``.

It takes a sixth of the Trainer's time, and shares nothing with ``tune`` but the penalties.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import TensorDataset

from lightning_reg import Penalty, attach
from lightning_reg.apply import Apply

CPU = {"accelerator": "cpu"}


class Net(LightningModule):
    """A network with one hidden layer, and Adam; nothing is logged, which would double the time."""

    def __init__(self, inputs: int, outputs: int, lr: float, rate: float = 0.0) -> None:
        super().__init__()
        drop = [nn.Dropout(rate)] if rate else []
        self.net = nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), *drop, nn.Linear(64, outputs))
        self.loss = nn.functional.mse_loss if outputs == 1 else nn.functional.cross_entropy
        self.lr = lr

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the outputs of the network."""
        return self.net(inputs)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        """Return the loss of a batch."""
        return self.loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.lr, fused=True)

    @torch.no_grad()
    def by_sample(self, data: TensorDataset) -> torch.Tensor:
        """Return the loss of each sample."""
        outputs = self.eval()(data.tensors[0])
        self.train()
        if outputs.shape[1] == 1:
            return (outputs - data.tensors[1]).square().flatten()
        return nn.functional.cross_entropy(outputs, data.tensors[1], reduction="none")


def train_(
    module: Net,
    train: TensorDataset,
    epochs: int,
    batch: int,
    penalty: Penalty | None = None,
    apply: Apply = "gradient",
    strength: float = 0.0,
    best_on: TensorDataset | None = None,
) -> Net:
    """Train in place.

    Args:
        module: to train.
        train: all of its data.
        epochs: over them.
        batch: samples in a batch; those of an epoch are shuffled, and the last batch may be smaller.
        penalty: added at ``strength``, unless that is 0.
        apply: how it acts.
        strength: of the penalty.
        best_on: data whose lowest loss, after an epoch, tells which weights to keep; the last where None.
    """
    optimizer = module.configure_optimizers()
    if penalty is not None and strength:
        attach(module, optimizer, replace(penalty, strength=strength), apply=apply)  # type: ignore[type-var]
    lowest, kept = float("inf"), None
    for _ in range(epochs):
        for chosen in torch.randperm(len(train)).split(batch):
            optimizer.zero_grad()
            module.training_step([tensor[chosen] for tensor in train.tensors], 0).backward()
            optimizer.step()
        if best_on is not None and (loss := float(module.by_sample(best_on).mean())) < lowest:
            lowest, kept = loss, copy.deepcopy(module.state_dict())
    if kept is not None:
        module.load_state_dict(kept)
    return module
