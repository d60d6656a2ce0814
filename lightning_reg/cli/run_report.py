"""What ``lightning-reg run`` attached to a Trainer: what it reaches, what it leaves alone, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lightning_reg.callbacks.dropout_injector import DropoutInjector
from lightning_reg.callbacks.dropout_sites import SiteCallback
from lightning_reg.callbacks.regularizer import RegularizerCallback
from lightning_reg.dropout.inject import modules_after
from lightning_reg.dropout.selection import select_sites
from lightning_reg.dropout.sites import candidates
from lightning_reg.hosts.both_namespaces import shown
from lightning_reg.look.layers import optimizer_state
from lightning_reg.look.reach import Covered, NamedSelect, coverage
from lightning_reg.penalties import Penalty

__all__ = ["report"]

#: Rows that a run shows of a table; a dry run shows them all.
_ROWS = 60

Row = tuple[str, str, str]


def report(
    trainer: Trainer,
    module: LightningModule,
    attached: Sequence[Callback],
    replaced: Mapping[str, tuple[Any, Any]],
    *,
    whole: bool,
    file: TextIO,
) -> None:
    """Print the report of one fit, as tables where rich is installed.

    Args:
        trainer: the Trainer at its fit's start.
        module: what it fits.
        attached: the callbacks that were attached to it.
        replaced: the Trainer's arguments that the command line replaced: the script's and its own.
        whole: show every row, however many.
        file: where to print.
    """
    processes = f"{trainer.world_size} process{'es' if trainer.world_size > 1 else ''}"
    strategy = type(trainer.strategy).__name__
    print(f"lightning-reg run: {type(module).__name__}, {processes}, {strategy}", file=file)
    for name, (before, after) in replaced.items():
        print(f"  Trainer({name}={after!r}) in place of the script's {before!r}", file=file)
    for callback in attached:
        print(f"  attached {shown(callback)}", file=file)
    acting = list(_acting(attached))
    if acting:
        covered = coverage(module, acting, trainer.optimizers)
        rows = [_parameter(row) for row in covered]
        _table(("parameter", "weights", "acted on by"), rows, whole, file)
        print(f"  {_total(covered)}", file=file)
    for callback in attached:
        if isinstance(callback, RegularizerCallback) and (added := callback.added_bytes()):
            print(f"  {callback!r} adds {optimizer_state(added)}", file=file)
    sites = _sites(module, attached)
    if sites:
        _table(("place that drops", "rate as built", "steered by"), sites, whole, file)


def _acting(attached: Sequence[Callback]) -> Iterator[NamedSelect]:
    """The callbacks that act on parameters: penalties and constraints."""
    for callback in attached:
        penalty = getattr(callback, "penalty", None)
        if isinstance(penalty, Penalty):
            yield NamedSelect(f"{penalty.log_name} ({callback.apply})", penalty.select)  # type: ignore[attr-defined]
        elif isinstance(callback, RegularizerCallback):
            yield NamedSelect(type(callback).__name__, callback.acting.select)


def _parameter(row: Covered) -> Row:
    return row.name, f"{row.entries:,}", ", ".join(row.by) or f"nothing: {row.why}"


def _total(rows: Sequence[Covered]) -> str:
    reached = [row for row in rows if row.by]
    left = Counter(row.why for row in rows if not row.by)
    weights = sum(row.entries for row in reached)
    text = f"{len(reached)} of {len(rows)} parameters are acted on, {weights:,} weights"
    return f"{text}; left alone: {', '.join(f'{n} {why}' for why, n in left.items())}" if left else text


def _sites(module: nn.Module, attached: Sequence[Callback]) -> list[Row]:
    steering = [callback for callback in attached if isinstance(callback, SiteCallback)]
    listed = candidates(module) if steering else []
    by: dict[str, list[str]] = {site.name: [] for site in listed}
    for callback in steering:
        for site in select_sites(module, listed, callback.select):
            by[site.name].append(callback.name + ("" if site.known else ", if a forward drops by it"))
    rows = [
        (site.name, f"{site.built:g}", ", ".join(by[site.name]) or "nothing: not selected") for site in listed
    ]
    for injector in (callback for callback in attached if isinstance(callback, DropoutInjector)):
        after = modules_after(module, injector.after)
        rows += [(f"after {name}", "none", injector.name) for name, _ in after]
    return rows


def _table(header: Row, rows: Sequence[Row], whole: bool, file: TextIO) -> None:
    shown = rows if whole else rows[:_ROWS]
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(len(row[column]) for row in (header, *shown)) for column in range(2)]
        for name, number, by in (header, *shown):
            print(f"  {name:<{widths[0]}}  {number:>{widths[1]}}  {by}", file=file)
    else:
        table = Table(header[0], box=box.SIMPLE)
        table.add_column(header[1], justify="right")
        table.add_column(header[2])
        for name, number, by in shown:
            table.add_row(name, number, f"[dim]{by}[/dim]" if by.startswith("nothing") else by)
        console = Console(file=file, soft_wrap=True)
        console.print(table)
    if len(shown) < len(rows):
        print(f"  and {len(rows) - len(shown)} more, which --dry-run lists", file=file)
