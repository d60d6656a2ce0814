"""Both ends of a strength and of a rate: ``strength.png``, which ``make.py`` makes."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from lightning_reg import L2, RegularizedClassifier
from lightning_reg.look.drawing import COLOURS, INK, legend, style
from lightning_reg.tune import Sweep, find_dropout, find_strength

CPU = {"accelerator": "cpu"}


def module(rate: float) -> RegularizedClassifier:
    """A small network that overfits two hundred digits."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(rate), nn.Linear(64, 10))
    return RegularizedClassifier(net, 10, [], optimizer=lambda p: torch.optim.Adam(p, lr=1e-2))


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Two hundred to train on, the others to validate on."""
    pixels, labels = load_digits(return_X_y=True)
    pixels, labels = torch.tensor(pixels / 16.0, dtype=torch.float32), torch.tensor(labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(6))
    return tuple(TensorDataset(pixels[part], labels[part]) for part in (order[:200], order[200:]))  # type: ignore


def draw(axes: object, sweep: Sweep, title: str, name: str) -> None:
    """Points, curve and suggestion of one sweep, with both ends named."""
    style(axes, title, name, "validation loss")
    seen = [(value, loss) for value, loss in sweep if value > 0.0 or sweep.kind == "rate"]
    axes.plot(*zip(*seen, strict=True), "o", color=COLOURS[0], markersize=4.5, label="a short run each")
    values, losses = sweep.curve()
    reach = max(value for value, loss in seen if loss < 1.5 * min(losses))  # ruined runs lie beyond
    shown = [(value, loss) for value, loss in zip(values, losses, strict=True) if value <= reach]
    axes.plot(*zip(*shown, strict=True), color=COLOURS[0], linewidth=1.4, alpha=0.7, label="smooth")
    found = sweep.suggestion()
    axes.axvline(found, color=COLOURS[3], linestyle="--", linewidth=1.2, label=f"suggestion: {found:.2g}")
    if sweep.kind == "strength":
        axes.set_xscale("log")
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set_yticks([0.2, 0.3, 0.5, 1.0, 2.0], ["0.2", "0.3", "0.5", "1", "2"])
    axes.text(0.03, 0.55, "too small:\ndoes nothing", transform=axes.transAxes, color=INK, fontsize=9)
    axes.text(0.97, 0.55, "too large:\nruins it", transform=axes.transAxes, color=INK, fontsize=9, ha="right")
    legend(axes, 3)


def sweeps() -> Figure:
    """Return the validation loss of short runs at many strengths, and at many dropout rates."""
    train, validation = digits()
    options = {"batch_size": 50, "trainer": CPU}
    figure = Figure(figsize=(5.6, 6.4), layout="constrained")
    figure.patch.set_alpha(0.0)
    upper, lower = figure.subplots(2, 1)
    strengths = find_strength(module(0.0), L2(0.0), train, validation, lowest=1e-6, points=11, **options)
    draw(upper, strengths, "L2", "strength")
    rates = find_dropout(module(0.5), train, validation, highest=0.96, points=9, **options)
    draw(lower, rates, "Dropout", "rate")
    return figure
