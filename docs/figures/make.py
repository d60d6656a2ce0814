"""Make every figure in this folder anew: ``python docs/figures/make.py`` (some minutes, no network)."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import matplotlib.pyplot as plt
import torch
from frontier import frontier  # beside this file
from matplotlib.figure import Figure
from rich.console import Console
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import Lasso
from stability import stability  # beside this file
from strength import sweeps  # beside this file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from zeros import zeros_in_batches  # beside this file

from lightning_reg import (
    L1,
    Cosine,
    Exponential,
    Linear,
    LinearRegression,
    MultiStep,
    RegularizedClassifier,
    attach,
    plot,
)
from lightning_reg.callbacks import RegularizationMonitor

HERE = Path(__file__).parent
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}

LR, STEPS = 0.01, 4000


def digits() -> tuple[Figure, Figure, str]:
    """A small network under proximal L1: its table, its zeros over training, its histograms."""
    pl.seed_everything(0)
    x, y = load_digits(return_X_y=True)
    dataset = TensorDataset(torch.tensor(x / 16.0, dtype=torch.float32), torch.tensor(y))
    net = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10)
    )
    penalty = L1(Cosine(0.0, 1e-3, until=0.5))
    module = RegularizedClassifier(
        net, 10, penalty, apply="proximal", optimizer=lambda p: torch.optim.Adam(p, lr=3e-3)
    )
    monitor = RegularizationMonitor(table=False)
    before = plot.weights_of(module)
    trainer = pl.Trainer(max_epochs=25, callbacks=[monitor], log_every_n_steps=10, **QUIET)
    trainer.fit(module, DataLoader(dataset, batch_size=64, shuffle=True))
    console = Console(record=True, width=110, force_terminal=True)
    console.print(monitor.as_table(trainer, module))
    svg = console.export_svg(title="RegularizationMonitor")
    # no fonts from the network: the viewer's own monospace serves
    table = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S)
    histograms = plot.weight_histograms(before, plot.weights_of(module))
    return plot.sparsity(monitor.history), histograms, table


def path() -> Figure:
    """The lasso path of scikit-learn's diabetes data."""
    data = load_diabetes()
    x = torch.tensor((data.data - data.data.mean(0)) / data.data.std(0))
    y = torch.tensor((data.target - data.target.mean()) / data.target.std())
    strengths = torch.logspace(-2.5, -0.2, 24).tolist()
    coefficients = []
    for strength in strengths:
        module = LinearRegression(
            x.shape[1], l1_strength=strength, optimizer=lambda p: torch.optim.Adam(p, lr=0.3)
        )
        batches = DataLoader([(x, y)] * 300, batch_size=None, collate_fn=lambda batch: batch)
        pl.Trainer(max_steps=300, accelerator="cpu", barebones=True).fit(module.double(), batches)
        coefficients.append(module.linear.weight)
    return plot.regularization_path(strengths, coefficients, data.feature_names)


def lasso() -> Figure:
    """The lasso of scikit-learn's diabetes data, three ways under Adam, against scikit-learn's ``Lasso``."""
    data = load_diabetes()
    x = torch.tensor((data.data - data.data.mean(0)) / data.data.std(0))
    y = torch.tensor((data.target - data.target.mean()) / data.target.std())
    strength = 0.05
    exact = Lasso(strength, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(x.numpy(), y.numpy())
    optimum = torch.tensor(exact.coef_)

    def objective(w: torch.Tensor) -> torch.Tensor:
        return (x @ w - y).square().mean() / 2 + strength * w.abs().sum()

    def train(way: str) -> tuple[float, torch.Tensor]:
        model = nn.Linear(x.shape[1], 1, bias=False).double()
        nn.init.zeros_(model.weight)
        optimizer = torch.optim.Adam(model.parameters(), lr=LR)
        if way == "library":
            attach(model, optimizer, L1(strength), apply="proximal")
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = (model(x)[:, 0] - y).square().mean() / 2
            (loss + strength * model.weight.abs().sum() if way == "loss" else loss).backward()
            optimizer.step()
            if way == "threshold":
                with torch.no_grad():
                    shrunk = (model.weight.abs() - LR * strength).clamp(min=0)
                    model.weight.copy_(model.weight.sign() * shrunk)
        w = model.weight.detach()[0]
        return float(objective(w) - objective(optimum)), w

    ink, zero = "#808080", 1e-5  # where the logarithmic axis shows 0
    figure, axes = plt.subplots(figsize=(6.6, 4.4), layout="constrained")
    figure.patch.set_alpha(0.0)
    axes.patch.set_alpha(0.0)
    ways = {
        "loss": ("λ·|w| added to the loss", "#e07b1a", "s"),
        "threshold": ("soft threshold after Adam's step", "#d04a6a", "^"),
        "library": ('L1(λ), apply="proximal"', "#2a85d0", "o"),
    }
    for way, (label, colour, marker) in ways.items():
        gap, w = train(way)
        told = f"{label}: {int((w == 0).sum())} zeros, {max(gap, 0.0):.1g} above the optimum"
        axes.plot(w.abs().clamp(min=zero), marker, color=colour, markersize=8, label=told)
    told = f"scikit-learn's Lasso: {int((optimum == 0).sum())} zeros, the optimum"
    ring = {"color": ink, "markersize": 14, "markerfacecolor": "none"}
    axes.plot(optimum.abs().clamp(min=zero), "o", label=told, **ring)
    axes.set_yscale("log")
    axes.set_ylim(zero / 3, 1.5)
    axes.set_yticks([zero, 1e-3, 1e-2, 1e-1, 1.0], ["0", "0.001", "0.01", "0.1", "1"])
    axes.minorticks_off()
    axes.set_xticks(range(10), data.feature_names)
    axes.set_title("The lasso of ten features under Adam: |w| after 4,000 steps", color=ink, fontsize=12)
    axes.tick_params(colors=ink, labelsize=11)
    axes.grid(color=ink, alpha=0.2, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_color(ink)
        spine.set_visible(side in ("left", "bottom"))
    figure.legend(loc="outside lower left", frameon=False, labelcolor=ink, fontsize=11)
    return figure


def schedules() -> Figure:
    """A few schedules."""
    named = {
        "Linear(0, 1, until=0.5)": Linear(0.0, 1.0, until=0.5),
        "Cosine(0, 1)": Cosine(0.0, 1.0),
        "Exponential(0.01, 1)": Exponential(0.01, 1.0),
        "MultiStep(1, [0.3, 0.6], 0.5)": MultiStep(1.0, [0.3, 0.6], 0.5),
    }
    return plot.schedule(named)


#: The files, and what makes them, in their order.
FIGURES: dict[tuple[str, ...], Callable[[], object]] = {
    ("frontier.png",): frontier,
    ("lasso.png",): lasso,
    ("schedules.png",): schedules,
    ("sparsity.png", "histograms.png", "table.svg"): digits,
    ("path.png",): path,
    ("stability.png",): stability,
    ("strength.png",): sweeps,
    ("zeros.png",): zeros_in_batches,
}


def main() -> None:
    """Make them, transparent, and report each."""
    for names, make in FIGURES.items():
        made = make()
        for name, one in zip(names, made if isinstance(made, tuple) else (made,), strict=True):
            if isinstance(one, Figure):
                one.savefig(HERE / name, dpi=110)
            else:
                (HERE / name).write_text(str(one), encoding="utf-8")
            print(name, flush=True)


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    main()
