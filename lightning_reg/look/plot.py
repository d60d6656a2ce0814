"""Figures of regularization: each function returns a matplotlib ``Figure`` to show or save.

The figures are transparent, with mid-grey text and a palette that reads on white and on black, so that one
picture serves a light page and a dark one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_reg.schedules.base import ScheduleLike, evaluate
from lightning_reg.select.parameters import Select, select_parameters

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["regularization_path", "schedule", "sparsity", "weight_histograms", "weights_of"]

_INK = "#767676"  # contrast 4.5 on white and 4.6 on black: AA for text on either
_COLOURS = ("#2a85d0", "#e07b1a", "#2a9d5c", "#d04a6a", "#8f6fd6", "#a8812c", "#1f9e9e", "#c65bb5")


def sparsity(history: Sequence[Mapping[str, float]], title: str = "Zeros by layer") -> Figure:
    """Draw the fraction of zeros over training, a line a layer.

    Args:
        history: of a :class:`~lightning_reg.callbacks.RegularizationMonitor`, or rows with ``"step"`` and
            ``"sparsity/<layer>"``.
        title: above the axes.

    Raises:
        ValueError: the history is empty.
    """
    if not history:
        raise ValueError("the history is empty; fit with a RegularizationMonitor and a step that logs")
    figure, axes = _figure(title, "optimizer step", "zeros")
    layers = [key for key in history[0] if key.startswith("sparsity/")]
    steps = [row["step"] for row in history]
    for index, key in enumerate(layers):
        values = [row[key] for row in history]
        axes.plot(steps, values, color=_colour(index), label=key.partition("/")[2], linewidth=1.8)
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(_percent())
    _legend(axes, len(layers))
    return figure


def weight_histograms(before: Mapping[str, Tensor], after: Mapping[str, Tensor], bins: int = 60) -> Figure:
    """Draw the weights of each layer before and after training, with the share of exact zeros.

    Args:
        before: weights by layer, as :func:`weights_of` takes them before training.
        after: the same layers after training.
        bins: of each histogram.

    Raises:
        ValueError: the two have no layer in common.
    """
    layers = [name for name in before if name in after]
    if not layers:
        raise ValueError("before and after have no layer in common; take both with weights_of(model)")
    columns = min(len(layers), 3)
    rows = -(-len(layers) // columns)
    plt = _pyplot()
    figure: Figure
    figure, grid = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 2.7 * rows), squeeze=False, layout="constrained"
    )
    plt.close(figure)  # a notebook shows what is returned, once
    figure.patch.set_alpha(0.0)
    for index, axes in enumerate(grid.flat):
        if index >= len(layers):
            axes.set_axis_off()
            continue
        name = layers[index]
        first, last = before[name].flatten().float().cpu(), after[name].flatten().float().cpu()
        limit = float(torch.cat([first, last]).abs().max()) or 1.0
        edges = torch.linspace(-limit, limit, bins + 1).numpy()
        _style(axes, name, "weight", "count" if index % columns == 0 else "")
        axes.hist(first.numpy(), edges, color=_INK, alpha=0.45, label="before")
        axes.hist(last.numpy(), edges, color=_COLOURS[0], histtype="step", linewidth=1.6, label="after")
        axes.set_yscale("symlog", linthresh=1.0)
        zeros = float((last == 0).float().mean())
        axes.text(
            0.03, 0.95, f"{zeros:.0%} zeros", transform=axes.transAxes, va="top", color=_INK, fontsize=9
        )
        if index == 0:
            _legend(axes, 2)
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
        _legend(axes, len(named))
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
        style = ("-", "--", ":")[feature // len(_COLOURS) % 3]
        axes.plot(x, table[order, feature], style, color=_colour(feature), label=label, linewidth=1.6)
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.axhline(0.0, color=_INK, linewidth=0.8)
    if names is not None:
        _legend(axes, table.shape[1])
    return figure


def weights_of(module: nn.Module, select: Select = "weights") -> dict[str, Tensor]:
    """Return copies of the selected weights by name, for :func:`weight_histograms`."""
    return {s.name: s.used().detach().clone() for s in select_parameters(module, select)}


def _figure(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    plt.close(figure)  # a notebook shows what is returned, once
    figure.patch.set_alpha(0.0)
    _style(axes, title, x, y)
    return figure, axes


def _style(axes: Axes, title: str, x: str, y: str) -> None:
    axes.patch.set_alpha(0.0)
    axes.set_title(title, loc="left", color=_INK, fontsize=11)
    axes.set_xlabel(x, color=_INK)
    axes.set_ylabel(y, color=_INK)
    axes.tick_params(colors=_INK, which="both", labelsize=9)
    axes.grid(color=_INK, alpha=0.2, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_INK)


def _legend(axes: Axes, entries: int) -> None:
    outside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if entries > 3 else {}
    axes.legend(frameon=False, labelcolor=_INK, fontsize=9, **outside)


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _percent() -> Any:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1.0, decimals=0)


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("lightning_reg.plot needs matplotlib; run: pip install matplotlib") from error
    return plt
