"""Figures of regularization: each function returns a matplotlib ``Figure`` to show or save.

The figures are transparent, with mid-grey text and a palette that reads on white and on black, so that one
picture serves a light page and a dark one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_reg.look.drawing import COLOURS, INK, legend, style
from lightning_reg.schedules.base import ScheduleLike, evaluate
from lightning_reg.select.parameters import Select, select_parameters

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["regularization_path", "schedule", "sparsity", "weight_histograms", "weights_of"]

#: Layers up to which each has a line, names beside rows of colours, and histograms in one figure.
MAX_LINES, MAX_ROW_NAMES, MAX_HISTOGRAMS = 10, 30, 24


def sparsity(history: Sequence[Mapping[str, float]], title: str = "Zeros by layer") -> Figure:
    """Draw the fraction of zeros over training: a line a layer, or a row a layer where there are many.

    Args:
        history: of a :class:`~lightning_reg.callbacks.RegularizationMonitor`, or rows with ``"step"`` and
            ``"sparsity/<layer>"``.
        title: above the axes.

    Raises:
        TypeError: it is no history.
        ValueError: the history is empty.
    """
    if not isinstance(history, Sequence) or not all(isinstance(row, Mapping) for row in history):
        raise TypeError(
            f"sparsity draws a history, and got {type(history).__name__}; give the .history of a "
            "RegularizationMonitor"
        )
    if not history:
        raise ValueError("the history is empty; fit with a RegularizationMonitor and a step that logs")
    layers = [key for key in history[0] if key.startswith("sparsity/")]
    steps = [row["step"] for row in history]
    if len(layers) > MAX_LINES:
        return _sparsity_rows(history, layers, title)
    figure, axes = _figure(title, "optimizer step", "zeros")
    for index, key in enumerate(layers):
        values = [row[key] for row in history]
        axes.plot(steps, values, color=_colour(index), label=key.partition("/")[2], linewidth=1.8)
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(_percent())
    legend(axes, len(layers))
    return figure


def _sparsity_rows(history: Sequence[Mapping[str, float]], layers: Sequence[str], title: str) -> Figure:
    """Draw a row of colours a layer, from the input down; names stand beside every n-th."""
    every = -(-len(layers) // MAX_ROW_NAMES)
    figure, axes = _figure(title, "optimizer step", "", height=min(2.0 + 0.18 * len(layers), 7.5))
    axes.grid(False)
    steps = [row["step"] for row in history]
    zeros = torch.tensor([[row[key] for row in history] for key in layers])
    ends = (steps[0] - 0.5, steps[-1] + 0.5, len(layers) - 0.5, -0.5)
    image = axes.imshow(
        zeros.numpy(), aspect="auto", vmin=0.0, vmax=1.0, extent=ends, interpolation="nearest", cmap="viridis"
    )
    names = [key.partition("/")[2] for key in layers[::every]]
    axes.set_yticks(range(0, len(layers), every), names, fontsize=8)
    bar = figure.colorbar(image, ax=axes, format=_percent(), pad=0.02)
    bar.set_label("zeros", color=INK)
    bar.ax.tick_params(colors=INK, labelsize=9)
    bar.outline.set_visible(False)
    return figure


def weight_histograms(before: Mapping[str, Tensor], after: Mapping[str, Tensor], bins: int = 60) -> Figure:
    """Draw the weights of each layer before and after training, with the share of exact zeros.

    More layers than 24 are drawn together by the beginning of their names, such as ``blocks.0``.

    Args:
        before: weights by layer, as :func:`weights_of` takes them before training.
        after: the same layers after training.
        bins: of each histogram.

    Raises:
        TypeError: they are not weights by layer.
        ValueError: the two have no layer in common.
    """
    for given in (before, after):
        if not isinstance(given, Mapping):
            raise TypeError(
                f"weight_histograms draws weights by layer, and got {type(given).__name__}; give "
                "weights_of(module), taken before training and after it"
            )
    layers = [name for name in before if name in after]
    if not layers:
        raise ValueError("before and after have no layer in common; take both with weights_of(model)")
    groups = _together(layers, MAX_HISTOGRAMS)
    columns = min(len(groups), 3 if len(groups) <= 9 else 4)
    rows = -(-len(groups) // columns)
    plt = _pyplot()
    figure: Figure
    figure, grid = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 2.7 * rows), squeeze=False, layout="constrained"
    )
    plt.close(figure)  # a notebook shows what is returned, once
    figure.patch.set_alpha(0.0)
    for index, axes in enumerate(grid.flat):
        if index >= len(groups):
            axes.set_axis_off()
            continue
        name, members = list(groups.items())[index]
        first, last = (
            torch.cat([weights[member].flatten().float().cpu() for member in members])
            for weights in (before, after)
        )
        limit = float(torch.cat([first, last]).abs().max()) or 1.0
        edges = torch.linspace(-limit, limit, bins + 1).numpy()
        many = f" ({len(members)})" if len(members) > 1 else ""
        style(axes, name + many, "weight", "count" if index % columns == 0 else "")
        axes.hist(first.numpy(), edges, color=INK, alpha=0.45, label="before")
        axes.hist(last.numpy(), edges, color=COLOURS[0], histtype="step", linewidth=1.6, label="after")
        axes.set_yscale("symlog", linthresh=1.0)
        zeros = float((last == 0).float().mean())
        axes.text(0.03, 0.95, f"{zeros:.0%} zeros", transform=axes.transAxes, va="top", color=INK, fontsize=9)
        if index == 0:
            legend(axes, 2)
    return figure


def schedule(
    schedules: ScheduleLike | Mapping[str, ScheduleLike], total_steps: int = 1000, label: str = "strength"
) -> Figure:
    """Draw a schedule over a run, or several by name.

    Args:
        schedules: one, or a dict of them.
        total_steps: length of the run.
        label: of the vertical axis.
    """
    named = schedules if isinstance(schedules, Mapping) else {"": schedules}
    figure, axes = _figure("", "optimizer step", label)
    steps = sorted({round(i * total_steps / 500) for i in range(501)})
    for index, (name, one) in enumerate(named.items()):
        values = [evaluate(one, step, total_steps) for step in steps]
        axes.plot(steps, values, color=_colour(index), label=name, linewidth=1.8)
    if any(named):
        legend(axes, len(named))
    return figure


def regularization_path(
    strengths: Sequence[float], coefficients: Any, names: Sequence[str] | None = None
) -> Figure:
    """Draw coefficients against the strength that gave them, strongest on the left.

    Args:
        strengths: positive, one a fit.
        coefficients: ``(fits, features)``, a tensor, an array or rows.
        names: of the features.

    Raises:
        ValueError: the numbers of strengths, rows and names do not fit.
    """
    table = torch.stack([torch.as_tensor(row).detach().float().flatten() for row in coefficients]).cpu()
    if len(table) != len(strengths) or (names is not None and len(names) != table.shape[1]):
        raise ValueError(
            f"there are {len(strengths)} strengths, {len(table)} rows of {table.shape[1]} coefficients and "
            f"{'no' if names is None else len(names)} names; they must fit"
        )
    figure, axes = _figure("", "strength", "coefficient")
    order = torch.tensor(strengths).argsort().tolist()
    x = [strengths[i] for i in order]
    for feature in range(table.shape[1]):
        label = names[feature] if names is not None else f"{feature}"
        style = ("-", "--", ":")[feature // len(COLOURS) % 3]
        axes.plot(x, table[order, feature], style, color=_colour(feature), label=label, linewidth=1.6)
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.axhline(0.0, color=INK, linewidth=0.8)
    if names is not None:
        legend(axes, table.shape[1])
    return figure


def weights_of(module: nn.Module, select: Select = "weights") -> dict[str, Tensor]:
    """Return copies of the selected weights by name, for ``weight_histograms``."""
    return {s.name: s.used().detach().clone() for s in select_parameters(module, select)}


def _together(layers: Sequence[str], most: int) -> dict[str, list[str]]:
    """Group layers by as much of the beginning of their names as leaves ``most`` groups, or by runs of them.

    >>> _together(["a.0.weight", "a.1.weight", "b.weight"], 2)
    {'a': ['a.0.weight', 'a.1.weight'], 'b': ['b.weight']}
    """
    parts = [name.split(".") for name in layers]
    for depth in range(max(map(len, parts)), 0, -1):
        groups: dict[str, list[str]] = {}
        for name, part in zip(layers, parts, strict=True):
            groups.setdefault(".".join(part[:depth]), []).append(name)
        if len(groups) <= most:
            return groups
    size = -(-len(layers) // most)
    runs = [list(layers[start : start + size]) for start in range(0, len(layers), size)]
    return {f"{run[0]} …": run for run in runs}


def _figure(title: str, x: str, y: str, height: float = 3.8) -> tuple[Figure, Axes]:
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(6.4, height), layout="constrained")
    plt.close(figure)  # a notebook shows what is returned, once
    figure.patch.set_alpha(0.0)
    style(axes, title, x, y)
    return figure, axes


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _percent() -> Any:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1.0, decimals=0)


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("lightning_reg.plot needs matplotlib; run: pip install matplotlib") from error
    return plt
