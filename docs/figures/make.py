"""Make the figures and the table in this folder: ``python docs/figures/make.py`` (a minute, no network)."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import lightning.pytorch as pl
import torch
from rich.console import Console
from sklearn.datasets import load_diabetes, load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import (
    L1,
    Cosine,
    Exponential,
    Linear,
    LinearRegression,
    MultiStep,
    RegularizedClassifier,
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


def digits() -> None:
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
    save(plot.sparsity(monitor.history), "sparsity")
    save(plot.weight_histograms(before, plot.weights_of(module)), "histograms")
    console = Console(record=True, width=110, force_terminal=True)
    console.print(monitor.as_table(trainer, module))
    svg = console.export_svg(title="RegularizationMonitor")
    # no fonts from the network: the viewer's own monospace serves
    (HERE / "table.svg").write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S))


def path() -> None:
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
    save(plot.regularization_path(strengths, coefficients, data.feature_names), "path")


def schedules() -> None:
    """A few schedules."""
    named = {
        "Linear(0, 1, until=0.5)": Linear(0.0, 1.0, until=0.5),
        "Cosine(0, 1)": Cosine(0.0, 1.0),
        "Exponential(0.01, 1)": Exponential(0.01, 1.0),
        "MultiStep(1, [0.3, 0.6], 0.5)": MultiStep(1.0, [0.3, 0.6], 0.5),
    }
    save(plot.schedule(named), "schedules")


def save(figure: object, name: str) -> None:
    """Save a figure as it is, transparent."""
    figure.savefig(HERE / f"{name}.png", dpi=110)  # type: ignore[attr-defined]


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    schedules()
    digits()
    path()
