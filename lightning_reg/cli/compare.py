"""``lightning-reg compare``: which kind of regularization, on the data of a config.

The config names what is trained, what is compared (every kind that ``compare`` knows, if it does not say),
and options of :func:`~lightning_reg.tune.compare`::

    model: {class_path: my.Net}
    data: {class_path: my.DataModule}
    kinds: [l2, l1, {class_path: lightning_reg.GroupLasso, init_args: {strength: 0}}]
    options: {epochs: 50, seeds: 3, score: lightning_reg.tune.accuracy}
"""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from rich.console import Console

from lightning_reg.cli.tune import batches_of_data, has_validation, progress_on, read_config
from lightning_reg.tune.compare import check_compare, compare
from lightning_reg.tune.comparison import Comparison, Contender
from lightning_reg.tune.kinds import NAMES

__all__ = ["compare_config"]


def compare_config(config: Path, output: Path) -> int:
    """Compare as ``config`` says, and write ``compare.csv`` and ``compare.png``; finished runs are kept.

    Returns:
        The exit status: 130 where it was interrupted; the same command then goes on from there.

    Raises:
        ValueError: the data have no validation part.
    """
    console = Console()
    made, options = read_config(config, compare)
    check_compare(**{name: options[name] for name in signature(check_compare).parameters})
    if not has_validation(made.data):
        raise ValueError(
            f"{type(made.data).__name__} has no val_dataloader, by which compare tells kinds apart"
        )
    train, validation = batches_of_data(made.data)
    output.mkdir(parents=True, exist_ok=True)
    finished: list[Contender] = []
    interrupted = False
    kinds = len(made.kinds or NAMES)
    with progress_on(console) as progress:
        bar = progress.add_task("compare", total=kinds * (options["budget"] // options["epochs"]))
        try:
            comparison = compare(
                made.model,
                made.kinds,
                train,
                validation,
                _test(made.data),
                directory=output / "runs",
                on_run=lambda *_: progress.advance(bar),
                on_kind=finished.append,
                **options,
            )
        except (KeyboardInterrupt, SystemExit):  # Lightning makes the one out of the other
            interrupted = True
            comparison = Comparison(finished, "score")
        progress.update(bar, total=progress.tasks[0].completed)
    if finished:
        comparison.to_csv(output / "compare.csv")
    if interrupted:
        console.print(f"stopped after {len(finished)} kinds, which {output} keeps; run it again to go on")
        return 130
    comparison.plot().savefig(output / "compare.png", dpi=150)
    console.print(str(comparison), soft_wrap=True, highlight=False, markup=False)
    console.print(f"wrote {output / 'compare.csv'} and {output / 'compare.png'}")
    return 0


def _test(data: LightningDataModule) -> Any:
    """The batches to test on, if there are any."""
    if type(data).test_dataloader is LightningDataModule.test_dataloader:
        return None
    data.setup("test")
    return data.test_dataloader()
