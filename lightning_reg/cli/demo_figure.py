"""What the demo's runs came to, and its picture: the learning curves and the zeros."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

__all__ = ["Result", "figure", "listed"]

_COLOURS = ("#444444", "#1f6fb4", "#b8560a", "#1d7a46", "#6f4fb0", "#b02f52")


@dataclass(frozen=True)
class Result:
    """One method over the seeds: losses after each epoch; accuracies and zero weights in percent."""

    name: str
    curves: list[list[float]]
    accuracies: list[float]
    zero_shares: list[float]

    @property
    def losses(self) -> list[float]:
        """The last validation loss of each seed."""
        return [curve[-1] for curve in self.curves]

    @property
    def loss(self) -> float:
        """Their mean."""
        return statistics.mean(self.losses)

    @property
    def loss_deviation(self) -> float:
        """Their standard deviation."""
        return deviation(self.losses)

    @property
    def accuracy(self) -> float:
        """The mean validation accuracy."""
        return statistics.mean(self.accuracies)

    @property
    def accuracy_deviation(self) -> float:
        """Its standard deviation over seeds."""
        return deviation(self.accuracies)

    @property
    def zeros(self) -> float:
        """The mean share of weights that are exactly 0, in percent."""
        return statistics.mean(self.zero_shares)


def deviation(values: Sequence[float]) -> float:
    """The standard deviation of a sample; 0 for one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def listed(results: Sequence[Result]) -> str:
    """Their names, in a sentence."""
    names = [result.name for result in results]
    return ", ".join(names) or "none"


def figure(results: Sequence[Result]) -> Figure:
    """Draw the mean validation loss after each epoch with its deviation, and each method's zeros."""
    drawn = Figure(figsize=(10.0, 4.6), layout="constrained")
    drawn.patch.set_facecolor("white")
    left, right = drawn.subplots(1, 2, width_ratios=(1.6, 1.0))
    for result, colour in zip(results, _COLOURS, strict=True):
        steps = list(range(1, len(result.curves[0]) + 1))
        columns = list(zip(*result.curves, strict=True))
        mean = [statistics.mean(column) for column in columns]
        spread = [deviation(column) for column in columns]
        left.plot(steps, mean, color=colour, linewidth=2.2, label=result.name)
        low = [m - s for m, s in zip(mean, spread, strict=True)]
        high = [m + s for m, s in zip(mean, spread, strict=True)]
        left.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
    left.set_title("validation loss: lower is better", loc="left", fontsize=13)
    left.set_xlabel("epoch", fontsize=12)
    left.set_yscale("log")
    left.minorticks_off()
    top = max(max(map(max, result.curves)) for result in results)
    ticks = [tick for tick in (0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0) if tick <= top]
    left.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    left.legend(frameon=False, fontsize=11, ncols=2)
    names = [result.name for result in results]
    places = range(len(results))
    right.barh(places, [result.zeros for result in results], color=_COLOURS[: len(results)])
    for place, result in zip(places, results, strict=True):
        text = f"{result.zeros:.0f} %  ({result.accuracy:.1f} % right)"
        inside = result.zeros > 50
        right.text(
            result.zeros - 2 if inside else result.zeros + 2,
            place,
            text,
            va="center",
            ha="right" if inside else "left",
            color="white" if inside else "black",
            fontsize=11,
        )
    right.set_yticks(places, names, fontsize=12)
    right.invert_yaxis()
    right.set_xlim(0, 100)
    right.set_xlabel("% of weights", fontsize=12)
    right.set_title("weights that are exactly zero", loc="left", fontsize=13)
    for axes in (left, right):
        axes.tick_params(labelsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    return drawn
