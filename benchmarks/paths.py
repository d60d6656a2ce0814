"""Paths of strengths against scikit-learn's, which has solvers of their own for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import LassoCV, LogisticRegression, lasso_path
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from benchmarks.harness import Row, rows
from benchmarks.steps import quiet
from lightning_reg import L1
from lightning_reg.tune import regularization_path

#: Columns of noise beside the features of the wide problems.
NOISE = {"diabetes": 200, "breast cancer": 180}


class Linear(pl.LightningModule):
    """A lasso without an intercept, as the targets are centred; or a logistic regression."""

    def __init__(self, features: int, logistic: bool = False) -> None:
        super().__init__()
        self.linear, self.logistic = nn.Linear(features, 1, bias=logistic), logistic

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        output = self.linear(batch[0])
        if self.logistic:
            return F.binary_cross_entropy_with_logits(output, batch[1])
        return 0.5 * F.mse_loss(output, batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.2)


def problem(name: str, wide: bool) -> tuple[Any, Any, TensorDataset]:
    x, y = (load_diabetes if name == "diabetes" else load_breast_cancer)(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    if name == "diabetes":
        y = (y - y.mean()) / y.std()
    if wide:
        x = np.hstack([x, np.random.default_rng(0).normal(size=(len(x), NOISE[name]))])
    data = TensorDataset(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)[:, None])
    return x, y, data


def measure(points: int = 30, rounds: int = 5) -> list[Row]:
    quiet()
    torch.set_num_threads(1)
    found: list[Row] = []
    for wide in (False, True):
        x, y, data = problem("diabetes", wide)
        module = Linear(x.shape[1])

        def ours(folds: int | None = None, module: Any = module, data: Any = data) -> None:
            regularization_path(module, L1(1.0), data, points=points, ratio=1e-2, folds=folds)

        cases: dict[str, Callable[[], object]] = {
            "sklearn lasso_path": lambda x=x, y=y: lasso_path(x, y, n_alphas=points, eps=1e-2),
            "regularization_path": ours,
            "sklearn LassoCV, 5 folds": lambda x=x, y=y: LassoCV(alphas=points, eps=1e-2, cv=5).fit(x, y),
            "regularization_path, 5 folds": lambda ours=ours: ours(5),
        }
        times = _interleaved(cases, rounds)
        title = f"diabetes, {x.shape[1]} features, {points} strengths"
        for pair in (list(times)[:2], list(times)[2:]):
            found += rows(title, {name: times[name] for name in pair}, 1, pair[0], {pair[1]: 5.0})
    x, y, data = problem("breast cancer", wide=True)
    frame = regularization_path(Linear(x.shape[1], True), L1(1.0), data, points=points, ratio=1e-2)

    def saga() -> None:
        model = LogisticRegression(l1_ratio=1.0, solver="saga", warm_start=True, max_iter=10_000)
        for strength in frame["strength"]:
            model.set_params(C=1.0 / (strength * len(y))).fit(x, y)

    cases = {
        "sklearn LogisticRegression, saga, warm": saga,
        "regularization_path": lambda: regularization_path(
            Linear(x.shape[1], True), L1(1.0), data, points=points, ratio=1e-2
        ),
    }
    times = _interleaved(cases, 2)
    title = f"breast cancer, {x.shape[1]} features, {points} strengths"
    return found + rows(title, times, 1, next(iter(times)), {"regularization_path": 5.0})


def _interleaved(cases: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each case in turn, on one thread."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    with threadpool_limits(1):
        for _ in range(rounds):
            for name, case in cases.items():
                start = time.perf_counter()
                case()
                times[name].append(time.perf_counter() - start)
    return times
