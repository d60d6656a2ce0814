"""``lightning-reg path`` and ``lightning-reg find``: choosing a strength by a config.

The config names what is trained, and takes the options of
:func:`~lightning_reg.tune.regularization_path` or :func:`~lightning_reg.tune.find_strength`::

    model: {class_path: my.Net}
    data: {class_path: my.DataModule}
    penalty: {class_path: lightning_reg.L1, init_args: {strength: 0}}
    options: {points: 20, max_epochs: 50}
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lightning_reg.cli.errors import UsageError, one_line
from lightning_reg.penalties import Penalty
from lightning_reg.tune.finder import find_strength
from lightning_reg.tune.frame import PathFrame, Row
from lightning_reg.tune.path import regularization_path

__all__ = ["find", "path"]


def path(config: Path, output: Path) -> int:
    """Train the path of ``config``, and write ``path.csv`` and ``path.png``; finished points are kept.

    Returns:
        The exit status: 130 where it was interrupted; the same command then goes on from there.
    """
    console = Console()
    made, options = _read(config, regularization_path)
    train, validation = _batches(made.data)
    output.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    interrupted = False
    with _progress(console) as progress:
        strengths = options["strengths"]
        total = len(strengths) if strengths is not None else options["points"]
        task = progress.add_task("path", total=total)

        def on_point(row: Row) -> None:
            rows.append(row)
            progress.advance(task)

        try:
            frame = regularization_path(
                made.model,
                made.penalty,
                train,
                validation=validation,
                directory=output / "points",
                on_point=on_point,
                **options,
            )
        except (KeyboardInterrupt, SystemExit):  # Lightning makes the one out of the other
            interrupted = True
            frame = PathFrame(rows)
    if len(frame):
        frame.to_csv(output / "path.csv")
        frame.plot().savefig(output / "path.png", dpi=150)
    if interrupted:
        console.print(f"stopped after {len(frame)} points, which {output} keeps; run it again to go on")
        return 130
    if validation is not None:
        best = frame.best()
        console.print(
            f"best strength {best['strength']:.4g}: validation loss {best['validation_loss']:.4g}, "
            f"{best['nonzeros']} weights that are not zero"
        )
    console.print(f"wrote {output / 'path.csv'} and {output / 'path.png'}")
    return 0


def find(config: Path, output: Path) -> int:
    """Sweep as ``config`` says, and write ``find.csv`` and ``find.png``.

    Returns:
        The exit status.

    Raises:
        ValueError: the data have no validation part.
    """
    console = Console()
    made, options = _read(config, find_strength)
    train, validation = _batches(made.data)
    if validation is None:
        raise ValueError(
            f"{type(made.data).__name__} has no val_dataloader, by which find tells strengths apart"
        )
    output.mkdir(parents=True, exist_ok=True)
    with _progress(console) as progress:
        task = progress.add_task("find", total=1)
        sweep = find_strength(made.model, made.penalty, train, validation, **options)
        progress.advance(task)
    sweep.to_csv(output / "find.csv")
    sweep.plot().savefig(output / "find.png", dpi=150)
    console.print(f"suggested strength: {sweep.suggestion():.4g}")
    console.print(f"wrote {output / 'find.csv'} and {output / 'find.png'}")
    return 0


def _read(config: Path, function: Callable[..., Any]) -> tuple[Any, dict[str, Any]]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model", required=True)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    parser.add_subclass_arguments(Penalty, "penalty", required=True)
    not_options = {"module", "penalty", "data", "validation", "directory", "map", "on_point"}
    skip: set[str | int] = {name for name in signature(function).parameters if name in not_options}
    parser.add_function_arguments(function, "options", skip=skip)
    # its name since jsonargparse 4.49, and the one before
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    try:
        parsed = parser.parse_path(config)
    except Exception as error:
        keys = [action.dest for action in parser._actions]
        raise UsageError(f"{config}: {one_line(error, keys)}") from error
    made = instantiate(parsed)
    return made, vars(made.options)


def _batches(data: LightningDataModule) -> tuple[Any, Any]:
    data.prepare_data()
    data.setup("fit")
    has_validation = type(data).val_dataloader is not LightningDataModule.val_dataloader
    return data.train_dataloader(), data.val_dataloader() if has_validation else None


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)
