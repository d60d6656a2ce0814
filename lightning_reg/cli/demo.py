"""``lightning-reg demo``: one small network that overfits, plain and regularized in five ways, over seeds."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.callbacks import DropoutInjector, L1PenaltyCallback, L2PenaltyCallback
from lightning_reg.cli.demo_figure import Result, figure, listed
from lightning_reg.schedules.dropout import EarlyDropout

__all__ = ["METHODS", "claims", "demo"]

#: Digits to train on; the others, 1,497 of 1,797, validate, with their true labels.
TRAINING_SIZE = 300
#: Share of the training labels that are drawn at random, which a network can only learn by heart.
WRONG_LABELS = 0.2


@dataclass(frozen=True)
class Method:
    """One line that is added to the Trainer: what to type, and the same as a function."""

    code: str
    make: Callable[[], Callback]


#: The rows of the table. The strengths were chosen on seeds 0 to 2, before any other seed was looked at.
METHODS: dict[str, Method | None] = {
    "plain": None,
    "L1": Method("L1PenaltyCallback(1e-3)", lambda: L1PenaltyCallback(1e-3)),
    "L2": Method("L2PenaltyCallback(1e-2)", lambda: L2PenaltyCallback(1e-2)),
    "dropout": Method("DropoutInjector(0.5, after=nn.ReLU)", lambda: DropoutInjector(0.5, after=nn.ReLU)),
    "early dropout": Method(
        "DropoutInjector(EarlyDropout(0.5, until=0.5), after=nn.ReLU)",
        lambda: DropoutInjector(EarlyDropout(0.5, until=0.5), after=nn.ReLU),
    ),
    "proximal L1": Method(
        'L1PenaltyCallback(1e-3, apply="proximal")', lambda: L1PenaltyCallback(1e-3, apply="proximal")
    ),
}


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


class _Watch(Callback):
    """Measures the validation loss after each epoch, and moves the line of the run's method."""

    def __init__(self, images: Tensor, digits: Tensor, advance: Callable[[], None]) -> None:
        self.images, self.digits, self.advance = images, digits, advance
        self.losses: list[float] = []
        self.accuracy = 0.0

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        net = pl_module.get_submodule("net")
        pl_module.eval()
        scores = net(self.images)
        pl_module.train()
        self.losses.append(float(functional.cross_entropy(scores, self.digits)))
        self.accuracy = 100.0 * float((scores.argmax(1) == self.digits).double().mean())
        self.advance()


def demo(
    output: Path, *, epochs: int = 60, seed: int = 0, seeds: int = 3, console: Console | None = None
) -> list[Result]:
    """Train with each of ``METHODS``, print the table and what it says, and save the figure.

    Args:
        output: where to save the figure; its folder is made if need be.
        epochs: of each run.
        seed: the first; a seed draws the split, the wrong labels, the initial weights and the batches' order.
        seeds: how many.
        console: where to print.
    """
    console = console or Console()
    console.print(
        f"digits: {TRAINING_SIZE} to train on, of which {WRONG_LABELS:.0%} get a label at random; "
        f"{1797 - TRAINING_SIZE} to validate\nnetwork 64-128-128-10, Adam, {epochs} epochs, seeds {seed} to "
        f"{seed + seeds - 1}\n",
        highlight=False,
        soft_wrap=True,
    )
    progress = Progress(
        TextColumn("{task.description:<14}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeElapsedColumn(),
        console=console,
    )
    with _quiet(), _one_thread(), progress:
        tasks = {name: progress.add_task(name, total=epochs * seeds, start=False) for name in METHODS}
        runs = {}
        for name, method in METHODS.items():
            progress.start_task(tasks[name])
            advance = partial(progress.advance, tasks[name])
            runs[name] = [_run(method, number, epochs, advance) for number in range(seed, seed + seeds)]
    results = [Result(name, *map(list, zip(*found, strict=True))) for name, found in runs.items()]
    console.print()
    console.print(_table(results))
    for line in claims(results):
        console.print(line, width=None if "Trainer(" in line else min(console.width, 79), highlight=False)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure(results).savefig(output, dpi=150)
    console.print(f"\nfigure: {output}", soft_wrap=True, highlight=False)
    return results


def claims(results: Sequence[Result]) -> list[str]:
    """Return what the table says, computed from it: who beats plain beyond one deviation, and what to type.

    A method beats plain where their means differ by more than the larger of their two deviations over seeds.
    """
    plain, *others = results
    if len(plain.losses) < 2:
        return ["One seed has no deviation, so nothing is claimed here; take --seeds 3."]
    by_loss = [r for r in others if plain.loss - r.loss > max(plain.loss_deviation, r.loss_deviation)]
    by_accuracy = [
        r for r in others if r.accuracy - plain.accuracy > max(plain.accuracy_deviation, r.accuracy_deviation)
    ]
    lines = [
        f"Better than plain by more than one deviation: in loss {listed(by_loss)}; in accuracy "
        f"{listed(by_accuracy)}."
    ]
    best = min(results, key=lambda r: r.loss)
    method = METHODS[best.name]
    if best not in by_loss or method is None:
        return [*lines, "No regularizer won here."]
    sparse = max(results, key=lambda r: r.zeros)
    if sparse.zeros > 0.0:
        lines.append(
            f"{sparse.name} has {sparse.zeros:.0f} % exact zeros, at {sparse.accuracy - plain.accuracy:+.1f} "
            "points of accuracy beside plain."
        )
    return [*lines, f"Lowest loss: {best.name}. To use it:", f"  Trainer(callbacks=[{method.code}])"]


def _run(
    method: Method | None, seed: int, epochs: int, advance: Callable[[], None]
) -> tuple[list[float], float, float]:
    """Train once; return the validation loss after each epoch, the accuracy and the zeros in percent."""
    pixels, digits = load_digits(return_X_y=True)
    train_x, validation_x, train_y, validation_y = train_test_split(
        torch.tensor(pixels / 16.0, dtype=torch.float32),
        torch.tensor(digits),
        train_size=TRAINING_SIZE,
        stratify=digits,
        random_state=seed,
    )
    torch.manual_seed(seed)
    wrong = torch.rand(TRAINING_SIZE) < WRONG_LABELS
    train_y = torch.where(wrong, torch.randint(10, (TRAINING_SIZE,)), train_y)
    module, watch = _Classifier(), _Watch(validation_x, validation_y, advance)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=[watch] if method is None else [watch, method.make()],
    )
    trainer.fit(module, DataLoader(TensorDataset(train_x, train_y), batch_size=50, shuffle=True))
    weights = torch.cat([p.detach().flatten() for p in module.parameters() if p.dim() > 1])
    return watch.losses, watch.accuracy, 100.0 * float((weights == 0).double().mean())


def _table(results: Sequence[Result]) -> Table:
    seeds = len(results[0].losses)
    table = Table(
        title=f"One network, six ways: mean ± deviation over {seeds} seed{'s' if seeds > 1 else ''}",
        title_justify="left",
        title_style="bold",
    )
    for column in ("method", "validation loss", "accuracy", "exact zeros"):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for r in results:
        table.add_row(
            r.name,
            f"{r.loss:.3f} ± {r.loss_deviation:.3f}",
            f"{r.accuracy:.1f} ± {r.accuracy_deviation:.1f} %",
            f"{r.zeros:.1f} %",
        )
    return table


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
