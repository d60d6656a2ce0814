"""A run's regularization as one table in the terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning_reg.apply import added_bytes
from lightning_reg.look.layers import Acting, LayerState, Rate, optimizer_state

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["regularization_table", "require_rich"]

#: The most layers that have a row each.
_ROWS = 12
# the number of a block: "3" in "blocks.3.mlp.0.weight", and not "0", which tells its layers apart
_BLOCK = re.compile(r"(?<![^.])\d+(?=\.[^.]+\.)")


def require_rich() -> None:
    """Raise at once, and not at the end of a run, where rich is missing.

    Raises:
        ImportError: rich is not installed.
    """
    try:
        import rich  # noqa: F401
    except ImportError as error:
        raise ImportError("the table needs rich; run pip install rich, or give table=False") from error


def regularization_table(
    before: Sequence[LayerState],
    after: Sequence[LayerState],
    acting: Sequence[Acting],
    ratios: Mapping[str, float],
    dropout: Sequence[Rate],
    step: int,
) -> Table:
    """Return what was regularized, how strongly, and what came of it, as a ``rich`` table for 80 columns.

    Of many layers, those that only a block's number tells apart share a row, ``"blocks.0-11.mlp.0.weight"``,
    where the same penalties reach them.

    Args:
        before: the layers when the run began.
        after: the same layers now.
        acting: the penalties.
        ratios: ‖∇penalty‖/‖∇loss‖ by penalty.
        dropout: the rates of the places that drop.
        step: optimizer steps taken, for scheduled strengths.
    """
    require_rich()
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"Regularization after {step:,} steps",
        title_justify="left",
        box=box.SIMPLE,
        pad_edge=False,
        collapse_padding=True,
        show_footer=True,
    )
    started = {state.name: state for state in before}
    rows = _rows(after, acting)
    table.add_column("layer", "all", overflow="fold", ratio=1)
    table.add_column("weights", f"{_entries(after):,}", justify="right", no_wrap=True)
    table.add_column("penalized by", overflow="fold")
    table.add_column("norm", _change(started, after), justify="right", no_wrap=True)
    table.add_column("zeros", f"{_zeros(after):.1%}", justify="right", no_wrap=True)
    for (name, names), states in rows.items():
        zero = f"{_zeros(states):.1%}"
        table.add_row(
            name,
            f"{_entries(states):,}",
            ", ".join(names) or "[dim]nothing[/dim]",
            _change(started, states),
            f"[bold green]{zero}[/bold green]" if _zeros(states) else f"[dim]{zero}[/dim]",
        )
    notes = [_describe(one, ratios, step) for one in acting] + _rates(dropout)
    table.caption = "\n".join(notes) or None
    table.caption_justify = "left"
    return table


def _rows(
    states: Sequence[LayerState], acting: Sequence[Acting]
) -> dict[tuple[str, tuple[str, ...]], list[LayerState]]:
    """The layers of each row, by its name and the penalties that reach it."""
    reached = [{selected.name for selected in one.term.selected} for one in acting]
    together: dict[tuple[str, tuple[str, ...]], list[LayerState]] = {}
    for state in states:
        by = tuple(one.name for one, names in zip(acting, reached, strict=True) if state.name in names)
        name = re.sub(_BLOCK, "*", state.name) if len(states) > _ROWS else state.name
        together.setdefault((name, by), []).append(state)
    return {(_range(of), by): of for (_, by), of in together.items()}


def _range(states: Sequence[LayerState]) -> str:
    """One name for layers that numbers tell apart: ``"blocks.0-11.mlp.0.weight"``."""
    parts = zip(*(state.name.split(".") for state in states), strict=True)
    return ".".join(_span(list(dict.fromkeys(part))) for part in parts)


def _span(parts: list[str]) -> str:
    if len(parts) == 1:
        return parts[0]
    numbers = sorted(map(int, parts))
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}"
    return ",".join(map(str, numbers))


def _rates(dropout: Sequence[Rate]) -> list[str]:
    """A line for each kind of dropout: its rates, and where or at how many places."""
    lines = []
    for kind in dict.fromkeys(one.kind for one in dropout):
        places = [one for one in dropout if one.kind == kind]
        low, high = min(one.rate for one in places), max(one.rate for one in places)
        rate = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
        where = places[0].name if len(places) == 1 else f"{len(places)} places"
        lines.append(f"dropout ({kind}) {rate} at {where}")
    return lines


def _describe(one: Acting, ratios: Mapping[str, float], step: int) -> str:
    text = f"{one.name} {one.term.strength(step):.3g} ({one.apply})"
    if added := added_bytes(one.term, one.apply):
        text += f", {optimizer_state(added)}"
    return f"{text}, ‖∇{one.name}‖/‖∇loss‖ {ratios[one.name]:.2g}" if one.name in ratios else text


def _entries(states: Sequence[LayerState]) -> int:
    return sum(state.entries for state in states)


def _zeros(states: Sequence[LayerState]) -> float:
    return sum(state.entries * state.sparsity for state in states) / max(_entries(states), 1)


def _change(started: Mapping[str, LayerState], states: Sequence[LayerState]) -> str:
    before = [started.get(state.name, state) for state in states]
    first, last = (sum(state.norm**2 for state in some) ** 0.5 for some in (before, states))
    return f"{first:.3g} → {last:.3g}"
