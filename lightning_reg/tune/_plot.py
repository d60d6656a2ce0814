"""The pictures of a path, as glmnet draws it, and of a sweep; they read on a light page and on a dark one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lightning_reg.look.drawing import COLOURS, INK, legend, style

if TYPE_CHECKING:
    from lightning_reg.tune.comparison import Comparison
    from lightning_reg.tune.frame import PathFrame, Row
    from lightning_reg.tune.stability import Stability
    from lightning_reg.tune.sweep import Sweep

__all__ = ["plot_comparison", "plot_path", "plot_stability", "plot_sweep"]

#: Lines up to which each has a name beside the axes.
MAX_NAMES = 10
#: Lines of what is not stable, the most frequent of it.
MAX_LINES = 300


def plot_path(frame: PathFrame) -> Any:
    """Draw weights or layers against the strength, strongest left, and the score against the nonzeros."""
    figure, (left, right) = _new_figure(2)
    _draw_sizes(left, frame)
    scored = [row for row in frame if _is_number(row.get("validation_loss"))]
    name = "validation_loss" if scored else "train_loss"
    scored = scored or [row for row in frame if _is_number(row.get(name))]
    style(right, "", "weights that are not zero", name.replace("_", " "))
    errors = [row.get("validation_error") for row in scored]
    with_errors = bool(scored) and None not in errors
    right.errorbar(
        [row["nonzeros"] for row in scored],
        [row[name] for row in scored],
        yerr=errors if with_errors else None,
        color=COLOURS[0],
        ecolor=INK,
        marker="o",
        markersize=3.5,
        linewidth=1.2,
        elinewidth=0.7,
    )
    if name == "validation_loss":
        _mark(left, right, frame.best(), "lowest", COLOURS[3])
        if with_errors:
            _mark(left, right, frame.best("one_se"), "within one standard error", COLOURS[2])
        legend(right, 2)
    return figure


def plot_sweep(sweep: Sweep) -> Any:
    """Draw the points of a sweep, the curve through them, the loss without a penalty and the suggestion."""
    figure, axes = _new_figure(1)
    name = "score" if sweep.scored else "validation loss"
    style(axes, "", "strength" if sweep.kind == "strength" else "dropout rate", name)
    sign = -1.0 if sweep.scored else 1.0
    places, curve = sweep.curve()
    seen = [(value, loss) for value, loss in sweep if math.isfinite(loss)]
    shown = [(value, loss) for value, loss in seen if value > 0.0 or sweep.kind == "rate"]
    lowest, reach = min(curve), max(curve) - min(curve)
    top = lowest + reach  # where the curve ends; a run that is worse is drawn there, as a triangle
    near = [(value, sign * loss) for value, loss in shown if loss <= top]
    far = [value for value, loss in shown if loss > top]
    axes.plot(*zip(*near, strict=True), "o", color=COLOURS[0], markersize=4.5, label="a short run each")
    if far:
        marker = "v" if sweep.scored else "^"
        axes.plot(far, [sign * top] * len(far), marker, color=COLOURS[0], markersize=6, label="worse")
    axes.plot(
        places, [sign * loss for loss in curve], color=COLOURS[0], linewidth=1.4, alpha=0.7, label="smooth"
    )
    if sweep.without is not None and math.isfinite(sweep.without):
        label = f"no penalty: {sign * sweep.without:.3g}"
        axes.axhline(sign * min(sweep.without, top), color=INK, linestyle=":", linewidth=1.4, label=label)
    suggestion = sweep.suggestion()
    label = f"suggestion: {suggestion:.3g}"
    if suggestion > 0.0 or sweep.kind == "rate":
        axes.axvline(suggestion, color=COLOURS[3], linestyle="--", linewidth=1.2, label=label)
    else:
        axes.plot([], [], color=COLOURS[3], linestyle="--", label=label)
    if sweep.kind == "strength":
        axes.set_xscale("log")
    if not sweep.scored and lowest > 0.0 and top > 3.0 * lowest:
        axes.set_yscale("log")
        for formatted in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            formatted("{x:g}")
    legend(axes, 4)
    return figure


def plot_comparison(comparison: Comparison) -> Any:
    """Draw the score of every seed by kind, the best on top, and the searches for strengths."""
    figure, (left, right) = _new_figure(2)
    ordered = sorted(comparison, key=lambda contender: contender.score)
    picked = comparison.recommendation()
    style(left, f"recommended: {picked.kind}", comparison.score_name, "")
    for place, contender in enumerate(ordered):
        colour = COLOURS[3] if contender is picked else COLOURS[0]
        left.plot(contender.scores, [place] * len(contender.scores), "o", color=colour, alpha=0.5)
        left.errorbar(
            contender.score, place, xerr=contender.error, fmt="|", color=colour, markersize=16, capsize=3
        )
    labels = [c.kind if c.value is None else f"{c.kind} {c.value:.2g}" for c in ordered]
    left.set_yticks(range(len(ordered)), labels)
    style(right, "searches, by strength or rate", "", comparison.score_name)
    searches = [contender for contender in comparison if contender.value is not None]
    for index, contender in enumerate(searches):
        seen = sorted((value, score) for value, score in contender.searched if math.isfinite(score))
        colour = COLOURS[index % len(COLOURS)]
        right.plot(*zip(*seen, strict=True), "o-", color=colour, markersize=3.5, label=contender.kind)
    right.set_xscale("log")
    none = comparison["none"].scores[0]
    right.axhline(none, color=INK, linestyle="--", linewidth=1.0, label="none")
    scores = [score for contender in comparison for score in contender.scores]
    margin = (max(scores) - min(scores)) or 1.0
    right.set_ylim(min(scores) - margin, max(scores) + 0.3 * margin)  # ruined runs lie below
    legend(right, len(searches) + 1)
    return figure


def plot_stability(found: Stability, threshold: float, false_discoveries: float) -> Any:
    """Draw frequencies against the strength: stable units in colour, others grey, and the path's end."""
    figure, axes = _new_figure(1)
    style(axes, "", "strength", "share of subsamples that select it")
    axes.set_xscale("log")
    axes.invert_xaxis()
    end = found.end(threshold, false_discoveries)
    stable = list(found.stable(threshold, false_discoveries)) if end else []
    places = {name: index for index, name in enumerate(found.names)}
    highest = found.frequencies.amax(0).tolist()
    others = sorted(set(places) - set(stable), key=lambda name: (-highest[places[name]], places[name]))
    for name in others[:MAX_LINES]:
        axes.plot(found.strengths, found.frequencies[:, places[name]], color=INK, linewidth=0.7, alpha=0.45)
    for index, name in enumerate(stable):
        label = name if index < MAX_NAMES else None
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(
            found.strengths, found.frequencies[:, places[name]], color=colour, linewidth=1.8, label=label
        )
    label = f"threshold {threshold:g}"
    axes.axhline(threshold, color=INK, linestyle="--", linewidth=1.0, label=label)
    ticks = found.strengths[:: max(1, len(found.strengths) // 5)]
    axes.set_xticks(ticks, [f"{strength:.2g}" for strength in ticks])
    axes.minorticks_off()
    last = found.strengths[max(end, 1) - 1]
    label = f"bound: {found.bound(threshold, strength=last):.2g} false"
    axes.axvline(last, color=INK, linestyle=":", linewidth=1.4, label=label)
    axes.set_ylim(-0.03, 1.03)
    legend(axes, MAX_NAMES)  # beside the axes: among this many lines there is no best place
    return figure


def _draw_sizes(axes: Any, frame: PathFrame) -> None:
    """Weights where they are few, the layers' norms elsewhere; above, how many are not zero."""
    rows = frame.rows
    by_weight = bool(rows) and all(row.get("weights") is not None for row in rows)
    style(axes, "", "strength", "weight" if by_weight else "norm of each layer")
    axes.set_xscale("log")
    axes.invert_xaxis()
    if by_weight:
        lines = list(zip(*frame["weights"], strict=True))
        axes.axhline(0.0, color=INK, linewidth=0.8)
        for index, line in enumerate(lines):
            axes.plot(frame["strength"], line, color=COLOURS[index % len(COLOURS)], linewidth=1.4)
    else:
        names = list(rows[0]["layers"]) if rows else []
        for index, name in enumerate(names):
            sizes = [row["layers"][name] for row in rows]
            colour = COLOURS[index % len(COLOURS)]
            axes.plot(frame["strength"], sizes, color=colour, linewidth=1.6, label=name)
        if 0 < len(names) <= MAX_NAMES:
            legend(axes, 1)
    for row in rows[:: max(1, len(rows) // 7)]:
        axes.annotate(
            str(row["nonzeros"]),
            (row["strength"], 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=INK,
        )


def _mark(left: Any, right: Any, row: Row, label: str, colour: str) -> None:
    """A ring on the score, and a line at its strength."""
    label = f"{label}: strength {row['strength']:.3g}"
    place = (row["nonzeros"], row["validation_loss"])
    right.plot(*place, "o", markersize=9, mfc="none", mew=1.8, color=colour, label=label)
    left.axvline(row["strength"], color=colour, linestyle="--", linewidth=1.0)


def _new_figure(columns: int) -> tuple[Any, Any]:
    """A transparent figure without pyplot's global state, and its axes."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "plot() needs matplotlib; run: pip install matplotlib", name="matplotlib"
        ) from error
    figure = Figure(figsize=(5.5 * columns, 4.2), layout="constrained")
    figure.patch.set_alpha(0.0)
    return figure, figure.subplots(1, columns)


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
