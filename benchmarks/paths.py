"""A path of strengths against scikit-learn's, which has a solver of its own for it."""

from __future__ import annotations

import time

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import lasso_path
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from benchmarks.harness import Row, rows
from benchmarks.steps import quiet
from lightning_reg import L1
from lightning_reg.tune import regularization_path


class Linear(pl.LightningModule):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 1, bias=False)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return 0.5 * F.mse_loss(self.linear(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.2)


def measure(points: int = 10) -> list[Row]:
    quiet()
    torch.set_num_threads(1)
    x, y = load_diabetes(return_X_y=True)
    x, y = StandardScaler().fit_transform(x), (y - y.mean()) / y.std()
    data = TensorDataset(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)[:, None])
    times: dict[str, list[float]] = {"sklearn lasso_path": [], "regularization_path": []}
    for _ in range(3):
        start = time.perf_counter()
        lasso_path(x, y, n_alphas=points, eps=1e-2)
        times["sklearn lasso_path"].append(time.perf_counter() - start)
        start = time.perf_counter()
        regularization_path(Linear(x.shape[1]), L1(1.0), data, points=points, ratio=1e-2)
        times["regularization_path"].append(time.perf_counter() - start)
    return rows(f"diabetes, {points} strengths", times, 1, "sklearn lasso_path")
