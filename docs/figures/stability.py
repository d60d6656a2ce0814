"""Ten features among 190 of noise: ``stability.png``, which ``make.py`` makes (some minutes)."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LassoCV
from torch.utils.data import TensorDataset

from lightning_reg import L1, LinearRegression
from lightning_reg.tune import Stability, stability_selection


def problem() -> tuple[TensorDataset, list[str]]:
    """The diabetes data with 190 columns of noise, all standardized, and the names of the columns."""
    data = load_diabetes()
    noise = torch.randn(442, 190, generator=torch.Generator().manual_seed(0))
    x = torch.cat([torch.tensor(data.data, dtype=torch.float32), noise], 1)
    y = torch.tensor(data.target, dtype=torch.float32)
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    return TensorDataset(x, y), [*data.feature_names, *(f"noise {i}" for i in range(190))]


def selection(dataset: TensorDataset, names: list[str]) -> Stability:
    """Fifty halves, ten strengths."""
    module = LinearRegression(
        200, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5), lr_schedule=None
    )
    options = {"subsamples": 50, "points": 10, "ratio": 0.15, "max_epochs": 300, "tolerance": 1e-2}
    return stability_selection(
        module, L1(0.0), dataset, names=names, trainer={"accelerator": "cpu"}, **options
    )


def stability() -> Figure:
    """Return the frequencies, and print what is stable and what a cross-validated lasso keeps."""
    dataset, names = problem()
    found = selection(dataset, names)
    x, y = (tensor.numpy() for tensor in dataset.tensors)
    kept = LassoCV(cv=5).fit(x, y).coef_ != 0
    print(found)
    print(f"LassoCV keeps {kept[:10].sum()} features and {kept[10:].sum()} of noise")
    return found.plot()


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    stability().savefig(Path(__file__).parent / "stability.png", dpi=110)
