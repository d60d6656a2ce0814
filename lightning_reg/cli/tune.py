"""``lightning-reg path``, ``find`` and ``stability``: choosing strengths, or weights, by a config.

The config names what is trained, and takes the options of
:func:`~lightning_reg.tune.regularization_path`, :func:`~lightning_reg.tune.stability_selection`,
:func:`~lightning_reg.tune.find_strength` or, with no need of a penalty,
:func:`~lightning_reg.tune.find_dropout`::

    model: {class_path: my.Net}
    data: {class_path: my.DataModule}
    penalty: {class_path: lightning_reg.L1, init_args: {strength: 0}}
    options: {points: 20, max_epochs: 50}
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lightning_reg.cli.errors import UsageError, one_line
from lightning_reg.penalties import Penalty
from lightning_reg.tune.finder import check_rates, check_strengths, find_dropout, find_strength
from lightning_reg.tune.frame import PathFrame, Row
from lightning_reg.tune.path import check_path, regularization_path
from lightning_reg.tune.stability import check_stability, stability_selection
from lightning_reg.tune.sweep import Sweep

__all__ = [
    "NOT_OPTIONS",
    "batches_of_data",
    "find",
    "has_validation",
    "path",
    "progress_on",
    "read_config",
    "stability",
]


#: Arguments of the functions that a config's ``options`` do not hold.
NOT_OPTIONS = frozenset(
    [
        "module",
        "kinds",
        "penalty",
        "data",
        "train",
        "validation",
        "test",
        "directory",
        "map",
        "on_point",
        "on_run",
        "on_kind",
        "on_subsample",
    ]
)


def path(config: Path, output: Path) -> int:
    """Train the path of ``config``, and write ``path.csv`` and ``path.png``; finished points are kept.

    Returns:
        The exit status: 130 where it was interrupted; the same command then goes on from there.
    """
    console = Console()
    made, options = read_config(config, regularization_path)
    asked = {name: options[name] for name in signature(check_path).parameters if name in options}
    check_path(has_validation=has_validation(made.data), **asked)
    train, validation = batches_of_data(made.data)
    output.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    interrupted = False
    strengths, folds = options["strengths"], options["folds"]
    points = len(strengths) if strengths is not None else options["points"]
    with progress_on(console) as progress:
        chains = ["path", *(f"fold{k}" for k in range(1, (folds or 0) + 1))]
        tasks = {chain: progress.add_task(chain, total=points) for chain in chains}

        def on_point(chain: str, row: Row) -> None:
            if chain == "path":
                rows.append(row)
            progress.advance(tasks[chain])

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
    if validation is not None or folds is not None:
        _say(console, "best strength", frame.best())
    if folds is not None:
        _say(console, "within one standard error of it", frame.best("one_se"))
    console.print(f"wrote {output / 'path.csv'} and {output / 'path.png'}")
    return 0


def find(config: Path, output: Path, dropout: bool = False) -> int:
    """Try strengths, or dropout rates, as ``config`` says, and write ``find.csv`` and ``find.png``.

    Returns:
        The exit status: 130 where it was interrupted; what was seen until then is written.

    Raises:
        ValueError: the data have no validation part.
    """
    console = Console()
    made, options = read_config(config, find_dropout if dropout else find_strength)
    check = check_rates if dropout else check_strengths
    check(**{name: options[name] for name in signature(check).parameters})
    if not has_validation(made.data):
        raise ValueError(
            f"{type(made.data).__name__} has no val_dataloader, by which find tells strengths apart"
        )
    train, validation = batches_of_data(made.data)
    output.mkdir(parents=True, exist_ok=True)
    sweep = Sweep("rate" if dropout else "strength", scored=options["score"] is not None)
    interrupted = False
    with progress_on(console) as progress, warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"the (strength|rate) suggested")  # said below
        task = progress.add_task("find", total=options["points"] + (0 if dropout else 1))

        def on_point(value: float, loss: float) -> None:
            sweep.values.append(value)
            sweep.losses.append(loss)
            progress.advance(task)

        try:
            if dropout:
                find_dropout(made.model, train, validation, on_point=on_point, **options)
            else:
                find_strength(made.model, made.penalty, train, validation, on_point=on_point, **options)
        except (KeyboardInterrupt, SystemExit):
            interrupted = True
    if sweep.values:
        sweep.to_csv(output / "find.csv")
        sweep.plot().savefig(output / "find.png", dpi=150)
    if interrupted:
        console.print(f"stopped after {len(sweep.values)} points, which {output} keeps")
        return 130
    console.print(f"suggested: {'dropout ' if dropout else ''}{sweep.choice()}", soft_wrap=True)
    if remark := sweep.remark():
        console.print(remark, soft_wrap=True)
    console.print(f"wrote {output / 'find.csv'} and {output / 'find.png'}")
    return 0


def stability(config: Path, output: Path) -> int:
    """Select what is stable as ``config`` says, and write ``stability.csv`` and ``stability.png``.

    Returns:
        The exit status: 130 where it was interrupted; the same command then goes on from there.
    """
    console = Console()
    made, options = read_config(config, stability_selection)
    check_stability(**{name: options[name] for name in signature(check_stability).parameters})
    train, _ = batches_of_data(made.data)
    output.mkdir(parents=True, exist_ok=True)
    with progress_on(console) as progress:
        task = progress.add_task("stability", total=options["subsamples"])
        try:
            found = stability_selection(
                made.model,
                made.penalty,
                train,
                directory=output / "subsamples",
                on_subsample=lambda _: progress.advance(task),
                **options,
            )
        except (KeyboardInterrupt, SystemExit):  # Lightning makes the one out of the other
            console.print(f"stopped; {output} keeps the finished subsamples; run it again to go on")
            return 130
    found.to_csv(output / "stability.csv")
    found.plot().savefig(output / "stability.png", dpi=150)
    console.print(str(found), soft_wrap=True, highlight=False, markup=False)
    console.print(f"wrote {output / 'stability.csv'} and {output / 'stability.png'}")
    return 0


def _say(console: Console, what: str, row: Row) -> None:
    error = row["validation_error"]
    console.print(
        f"{what}: {row['strength']:.4g}, validation loss {row['validation_loss']:.4g}"
        f"{'' if error is None else f' ± {error:.2g}'}, {row['nonzeros']} weights that are not zero"
    )


def read_config(config: Path, function: Callable[..., Any]) -> tuple[Any, dict[str, Any]]:
    """Return what a config describes, made, and the options of ``function`` in it.

    Raises:
        UsageError: the config describes something else.
    """
    takes = signature(function).parameters
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model", required=True)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    parser.add_subclass_arguments(Penalty, "penalty", required="penalty" in takes)
    if "kinds" in takes:
        parser.add_argument("kinds", type=list[str | Penalty | Callback] | None)
    skip: set[str | int] = {name for name in takes if name in NOT_OPTIONS}
    parser.add_function_arguments(function, "options", skip=skip)
    try:
        parsed = parser.parse_path(config)
    except Exception as error:
        keys = [action.dest for action in parser._actions]
        raise UsageError(f"{config}: {one_line(error, keys)}") from error
    made = parser.instantiate(parsed)
    return made, vars(made.options)


def batches_of_data(data: LightningDataModule) -> tuple[Any, Any]:
    """Return the loaders to train on and to validate on, or None."""
    data.prepare_data()
    data.setup("fit")
    return data.train_dataloader(), data.val_dataloader() if has_validation(data) else None


def has_validation(data: LightningDataModule) -> bool:
    """Whether there are data to validate on."""
    return type(data).val_dataloader is not LightningDataModule.val_dataloader


def progress_on(console: Console) -> Progress:
    """Return bars for the console."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)
