"""``lightning-reg demo``: one small network on scikit-learn's digits, plain and regularized four ways."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.callbacks import (
    ElasticNetPenaltyCallback,
    L1PenaltyCallback,
    L2PenaltyCallback,
)

__all__ = ["demo"]

#: The rows of the table: a name, and a function that makes the one line that is added to the Trainer.
METHODS: dict[str, Callable[[], L1PenaltyCallback | L2PenaltyCallback | ElasticNetPenaltyCallback] | None] = {
    "plain": None,
    "L1 (gradient)": lambda: L1PenaltyCallback(5e-4),
    "L1 (proximal)": lambda: L1PenaltyCallback(5e-4, apply="proximal"),
    "L2": lambda: L2PenaltyCallback(3e-3),
    "elastic net (proximal)": lambda: ElasticNetPenaltyCallback(1e-3, apply="proximal"),
}
#: Digits to train on; the others, 897 of 1,797, validate.
TRAINING_SIZE = 900


@dataclass(frozen=True)
class Result:
    """What one run came to: accuracies in percent, and the network's weights without the biases."""

    name: str
    strength: str
    train: float
    validation: float
    seconds: float
    weights: list[Tensor]

    @property
    def gap(self) -> float:
        """Training less validation accuracy, in points."""
        return self.train - self.validation

    @property
    def zeros(self) -> float:
        """Share of weights that are exactly zero, in percent."""
        weights = torch.cat([weight.flatten() for weight in self.weights])
        return 100.0 * float((weights == 0).double().mean())


class _Classifier(LightningModule):
    """64 pixels, two hidden layers of 128, 10 digits: a module that knows of no penalty."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, digits = batch
        return functional.cross_entropy(self.net(images), digits)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class _Bar(Callback):
    """Moves one line of a progress display that all the runs share."""

    def __init__(self, progress: Progress, name: str, epochs: int) -> None:
        self.progress = progress
        self.task = progress.add_task(name, total=epochs)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.progress.advance(self.task)


def demo(output: Path, *, epochs: int = 60, seed: int = 0, console: Console | None = None) -> list[Result]:
    """Train every one of ``METHODS``, print the table and save the figure.

    Args:
        output: where to save the figure; its folder is made if need be.
        epochs: of each run.
        seed: of the split, of the initial weights and of the batches' order.
        console: where to print.
    """
    console = console or Console()
    pixels, digits = load_digits(return_X_y=True)
    split = train_test_split(
        torch.tensor(pixels / 16.0, dtype=torch.float32),
        torch.tensor(digits),
        train_size=TRAINING_SIZE,
        stratify=digits,
        random_state=seed,
    )
    console.print(
        f"digits: {len(split[0])} to train on, {len(split[1])} to validate; network 64-128-128-10; "
        f"Adam; epochs: {epochs}\n"
    )
    progress = Progress(
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeElapsedColumn(),
        console=console,
    )
    with _quiet(), _one_thread(), progress:
        results = [_run(name, split, epochs, seed, progress) for name in METHODS]
    console.print()
    console.print(_table(results))
    console.print(
        "gap: training less validation accuracy. zeros: weights that are exactly 0. "
        "Both L1 rows minimise the same sum; only a proximal step lands on zero.",
        width=min(console.width, 79),
        style="dim",
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    _figure(results).savefig(output, dpi=150)
    console.print(f"\nfigure: {output}", soft_wrap=True, highlight=False)
    return results


def _run(name: str, split: list[Tensor], epochs: int, seed: int, progress: Progress) -> Result:
    train_x, validation_x, train_y, validation_y = split
    torch.manual_seed(seed)
    module, method = _Classifier(), METHODS[name]
    penalty = None if method is None else method()
    bar = _Bar(progress, name, epochs)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=[bar] if penalty is None else [bar, penalty],
    )
    loader = DataLoader(TensorDataset(train_x, train_y), batch_size=64, shuffle=True)
    start = time.perf_counter()
    trainer.fit(module, loader)
    seconds = time.perf_counter() - start

    @torch.no_grad()
    def accuracy(images: Tensor, digits: Tensor) -> float:
        return 100.0 * float((module.net(images).argmax(1) == digits).double().mean())

    return Result(
        name,
        "" if penalty is None else f"{penalty.penalty.strength:g}",
        accuracy(train_x, train_y),
        accuracy(validation_x, validation_y),
        seconds,
        [p.detach().clone() for p in module.parameters() if p.dim() > 1],
    )


def _table(results: list[Result]) -> Table:
    table = Table(title="One network, five ways", title_justify="left", title_style="bold")
    table.add_column("\nmethod", no_wrap=True)
    table.add_column("\nλ", no_wrap=True)
    for column in ("validation\naccuracy", "gap\n(points)", "exact\nzeros", "\nseconds"):
        table.add_column(column, justify="right")
    for result in results:
        table.add_row(
            result.name,
            result.strength,
            f"{result.validation:.1f} %",
            f"{result.gap:.1f}",
            f"{result.zeros:.1f} %",
            f"{result.seconds:.1f}",
        )
    return table


def _figure(results: list[Result]) -> Figure:
    """Above, the pixels that the first layer reads; below, the sizes of all weights, zeros apart."""
    figure = Figure(figsize=(13.5, 6.6), layout="constrained")
    figure.suptitle(
        "One network, five ways to train it: a proximal step removes weights, a gradient only shrinks them",
        fontsize=14,
    )
    axes = figure.subplots(2, len(results), height_ratios=(1.15, 1.0), squeeze=False)
    reading = [(result.weights[0] != 0).double().mean(0).reshape(8, 8) * 100 for result in results]
    for ax, result, pixels in zip(axes[0], results, reading, strict=True):
        image = ax.imshow(pixels.numpy(), cmap="viridis", vmin=0, vmax=100)
        for row, column in (pixels == 0).nonzero().tolist():
            ax.text(column, row, "×", color="white", ha="center", va="center", fontsize=9)
        if pixels.min() == 100:
            ax.text(3.5, 3.5, "every weight in use", ha="center", va="center", fontsize=11)
        ax.set_title(
            f"{result.name}\n{result.validation:.1f} % right, {result.zeros:.0f} % zeros", fontsize=11
        )
        ax.set_xticks([])
        ax.set_yticks([])
    axes[0][0].set_ylabel("first layer, by pixel")
    bar = figure.colorbar(image, ax=list(axes[0]), shrink=0.9, pad=0.01)
    bar.set_label("weights in use, %\n(×: pixel never read)")
    for ax, result in zip(axes[1], results, strict=True):
        _sizes(ax, result)
    axes[1][0].set_ylabel("share of all weights, %")
    figure.supxlabel(
        "size of a weight, |w| (red: exactly 0; the leftmost blue bar takes all other sizes below $10^{-8}$)",
        fontsize=11,
    )
    return figure


def _sizes(ax: Axes, result: Result) -> None:
    """A histogram of log10|w|, with a bar of its own for what is exactly zero."""
    weights = torch.cat([weight.flatten() for weight in result.weights]).abs()
    low, high, bins = -8, 1, 36
    logs = weights[weights > 0].log10().clamp(low, high)
    counts = torch.histc(logs, bins, low, high) * 100 / len(weights)
    width = (high - low) / bins
    ax.bar([low + (i + 0.5) * width for i in range(bins)], counts.tolist(), width, color="tab:blue")
    ax.bar([low - 1.0], [result.zeros], 0.9, color="tab:red")
    ax.text(low - 1.0, result.zeros + 1.5, f"{result.zeros:.0f}", color="tab:red", ha="center", fontsize=10)
    ax.set_ylim(0, 100)
    ax.set_xticks([low - 1.0, -6, -4, -2, 0], ["0", "$10^{-6}$", "$10^{-4}$", "$10^{-2}$", "1"])
    ax.spines[["top", "right"]].set_visible(False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's notes on devices, workers and tips."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextmanager
def _one_thread() -> Iterator[None]:
    """So small a network is fastest on one thread, and then gives the same numbers on any machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
