"""Linear problems whose solutions scikit-learn knows."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset


class Linear(pl.LightningModule):
    """½·mean (Xw + b − y)², or the logistic loss, full batch, SGD with momentum."""

    def __init__(
        self, features: int, *, logistic: bool = False, lr: float = 0.07, momentum: float = 0.9
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 1, dtype=torch.float64)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.logistic, self.lr, self.momentum = logistic, lr, momentum

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        output = self.linear(inputs)
        if self.logistic:
            loss = nn.functional.binary_cross_entropy_with_logits(output, targets)
        else:
            loss = 0.5 * (output - targets).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=self.momentum)


def diabetes() -> TensorDataset:
    datasets = pytest.importorskip("sklearn.datasets")
    inputs, targets = datasets.load_diabetes(return_X_y=True)
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    targets = targets / targets.std()  # not centred: the intercept must be fitted
    return tensors(inputs, targets)


def breast_cancer() -> TensorDataset:
    datasets = pytest.importorskip("sklearn.datasets")
    inputs, targets = datasets.load_breast_cancer(return_X_y=True)
    return tensors((inputs - inputs.mean(0)) / inputs.std(0), targets)


def tensors(inputs: Any, targets: Any) -> TensorDataset:
    return TensorDataset(torch.tensor(inputs), torch.tensor(targets, dtype=torch.float64).view(-1, 1))
