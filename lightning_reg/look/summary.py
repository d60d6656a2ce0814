"""A run's regularization as one table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning_reg.look.layers import Acting, LayerState

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["regularization_table", "require_rich"]


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
    dropout: Mapping[str, float],
    step: int,
) -> Table:
    """Return what was regularized, how strongly, and what came of it, as a ``rich`` table.

    Args:
        before: the layers when the run began.
        after: the same layers now.
        acting: the penalties.
        ratios: ‖∇penalty‖/‖∇loss‖ by penalty.
        dropout: the rates of the dropout layers.
        step: optimizer steps taken, for scheduled strengths.
    """
    require_rich()
    from rich.table import Table

    table = Table(title=f"Regularization after {step:,} steps", title_justify="left", show_footer=True)
    weights = sum(state.entries for state in after)
    zeros = sum(state.entries * state.sparsity for state in after)
    table.add_column("layer", "all")
    table.add_column("weights", f"{weights:,}", justify="right")
    table.add_column("penalised by", ", ".join(_describe(one, step) for one in acting) or "nothing")
    table.add_column("norm", _change(_total(before), _total(after)), justify="right")
    table.add_column("zeros", f"{zeros / max(weights, 1):.1%}", justify="right")
    started = {state.name: state for state in before}
    for state in after:
        names = [
            one.name for one in acting if any(selected.name == state.name for selected in one.term.selected)
        ]
        first = started.get(state.name, state)
        zero = f"{state.sparsity:.1%}"
        table.add_row(
            state.name,
            f"{state.entries:,}",
            ", ".join(names) or "[dim]nothing[/dim]",
            _change(first.norm, state.norm),
            f"[bold green]{zero}[/bold green]" if state.sparsity else f"[dim]{zero}[/dim]",
        )
    notes = [f"‖∇{name}‖/‖∇loss‖ {ratio:.2g}" for name, ratio in ratios.items()]
    notes += [f"dropout {name} {rate:g}" for name, rate in dropout.items()]
    table.caption = "   ".join(notes) or None
    table.caption_justify = "left"
    return table


def _describe(one: Acting, step: int) -> str:
    return f"{one.name} {one.term.strength(step):.3g} ({one.apply})"


def _total(states: Sequence[LayerState]) -> float:
    return float(sum(state.norm**2 for state in states) ** 0.5)


def _change(first: float, last: float) -> str:
    return f"{first:.3g} → {last:.3g}"
