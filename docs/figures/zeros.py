"""Zeros over training in mini-batches, four ways to L1: ``python docs/figures/zeros.py`` (a minute)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from sklearn.linear_model import Lasso
from torch import Tensor, nn

from lightning_reg import L1, attach
from lightning_reg.look.drawing import COLOURS, INK, legend, style

STRENGTH, BATCH, EPOCHS = 0.1, 16, 50
WAYS: dict[str, dict[str, Any]] = {
    "subgradient, |w| < 0.001": {"apply": "gradient"},
    "proximal, Euclidean": {"apply": "proximal", "metric": "euclidean", "dual_averaging": False},
    "proximal, Adam's metric": {"apply": "proximal", "dual_averaging": False},
    "dual averaged (the default)": {"apply": "proximal"},
}


def problem() -> tuple[Tensor, Tensor]:
    """800 samples of 60 features, 8 of which count."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(800, 60, generator=generator, dtype=torch.float64)
    return x, x[:, :8] @ torch.linspace(0.3, 1.2, 8).double() + torch.randn(800, generator=generator).double()


def train(x: Tensor, y: Tensor, **how: Any) -> tuple[list[int], Tensor]:
    """Adam to a learning rate of 0: the zeros after each epoch, and the weights at the end."""
    torch.manual_seed(0)
    model = nn.Linear(x.shape[1], 1, bias=False, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    attach(model, optimizer, L1(STRENGTH), **how)
    zeros, near, steps = [], 1e-3 if how["apply"] == "gradient" else 0.0, EPOCHS * len(y) // BATCH
    for step in range(steps):
        if step % (len(y) // BATCH) == 0:
            order = torch.randperm(len(y)).split(BATCH)
        some = order[step % (len(y) // BATCH)]
        optimizer.param_groups[0]["lr"] = 0.0025 * (1.0 + math.cos(math.pi * step / steps))
        weight = model.weight.detach()[0]
        model.weight.grad = (x[some].T @ (x[some] @ weight - y[some]) / BATCH)[None]
        optimizer.step()
        if (step + 1) % (len(y) // BATCH) == 0:
            zeros.append(int((model.weight.abs() <= near).sum()))
    return zeros, model.weight.detach()[0]


def zeros_in_batches() -> Figure:
    """The four ways, beside scikit-learn's answer."""
    x, y = problem()
    lasso = Lasso(alpha=STRENGTH, fit_intercept=False, tol=1e-12).fit(x.numpy(), y.numpy())
    wanted = torch.tensor(lasso.coef_) == 0
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.subplots()
    style(axes, "", "epoch", "zeros of 60")
    for colour, (name, how) in zip(COLOURS, WAYS.items(), strict=False):
        zeros, weight = train(x, y, **how)
        found = weight.abs() <= (1e-3 if how["apply"] == "gradient" else 0.0)
        right = 2 * int((~found & ~wanted).sum()) / int((~found).sum() + (~wanted).sum())
        print(f"{name:<30} zeros {zeros[-1]:>3} of {int(wanted.sum())}, F1 of the support {right:.2f}")
        axes.plot(range(1, EPOCHS + 1), zeros, color=colour, label=name)
    axes.axhline(int(wanted.sum()), color=INK, linestyle="dashed", label="the lasso (scikit-learn)")
    axes.set_ylim(0, 60)
    legend(axes, 5)
    return figure


if __name__ == "__main__":
    zeros_in_batches().savefig(Path(__file__).parent / "zeros.png", dpi=120)
