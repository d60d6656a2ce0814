"""The picture of a path, as glmnet draws it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_reg.tune.frame import PathFrame

__all__ = ["new_figure", "plot_path"]


def new_figure(columns: int) -> tuple[Any, Any]:
    """Return a figure without pyplot's global state, and its axes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "plot() needs matplotlib; install it with: pip install 'lightning-reg[plot]'", name="matplotlib"
        ) from error
    figure = Figure(figsize=(5.5 * columns, 4.2), layout="constrained")
    return figure, figure.subplots(1, columns)


def plot_path(frame: PathFrame) -> Any:
    """Draw weights or layers against the strength, and the score against the nonzeros."""
    figure, (left, right) = new_figure(2)
    rows = frame.rows
    strengths = frame["strength"]
    if rows and all(row.get("weights") is not None for row in rows):
        for lines in zip(*frame["weights"], strict=True):
            left.plot(strengths, lines, linewidth=1.2)
        left.set_ylabel("weights")
        left.axhline(0.0, color="0.8", linewidth=0.8, zorder=0)
    else:
        for name in rows[0]["layers"] if rows else ():
            left.plot(strengths, [row["layers"][name] for row in rows], label=name)
        left.set_ylabel("norm of each layer")
        left.legend(frameon=False, fontsize=8)
    left.set_xscale("log")
    left.set_xlabel("strength λ")
    _nonzeros_above(left, frame)

    scored = [row for row in rows if row.get("validation_loss") is not None]
    name = "validation_loss" if scored else "train_loss"
    scored = scored or rows
    nonzeros, losses = [row["nonzeros"] for row in scored], [row[name] for row in scored]
    errors = [row.get("validation_error") for row in scored]
    bars = None if None in errors or not scored else errors
    right.errorbar(nonzeros, losses, yerr=bars, marker="o", markersize=3.5, linewidth=1.0, elinewidth=0.7)
    right.set_xlabel("weights that are not zero")
    right.set_ylabel(name.replace("_", " "))
    if name == "validation_loss" and scored:
        for rule, label, colour in (("min", "lowest", "C3"), ("one_se", "one standard error", "C2")):
            if rule == "one_se" and bars is None:
                continue
            row = frame.best(rule)  # type: ignore[arg-type]
            text = f"{label}: λ = {row['strength']:.3g}"
            right.plot(
                row["nonzeros"], row[name], "o", markersize=9, mfc="none", mew=1.8, color=colour, label=text
            )
            left.axvline(row["strength"], color=colour, linestyle="--", linewidth=1.0)
        right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _nonzeros_above(axes: Any, frame: PathFrame) -> None:
    """Write the number of nonzeros above the axis, as glmnet does."""
    rows = frame.rows
    shown = rows[:: max(1, len(rows) // 7)]
    for row in shown:
        axes.annotate(
            str(row["nonzeros"]),
            (row["strength"], 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color="0.35",
        )
