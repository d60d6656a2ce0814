"""What a comparison came to: a table, a recommendation that may be "none", a picture, a file."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_reg.tune._jackknife import jackknife_error

__all__ = ["Comparison", "Contender"]


@dataclass
class Contender:
    """One kind at its best value, trained with every seed.

    Attributes:
        kind: its name.
        value: the strength or rate found; None where there is none to find.
        code: what to type to use it.
        scores: on the validation data, one a seed; higher is better.
        losses: the validation loss.
        training_losses: the loss on the training data.
        zeros: share of weights that are exactly zero.
        seconds: of a run.
        searched: ``[value, score]`` of every value tried.
        left_out: the score without each tenth of the validation data, the mean over seeds.
    """

    kind: str
    value: float | None
    code: str
    scores: list[float]
    losses: list[float]
    training_losses: list[float]
    zeros: list[float]
    seconds: list[float]
    searched: list[tuple[float, float]] = field(default_factory=list)
    left_out: list[float] = field(default_factory=list)

    @property
    def score(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.scores)

    @property
    def error(self) -> float:
        """The standard error of the score, from the seeds and the validation samples together."""
        return _error(self.scores, self.left_out)

    def difference(self, other: Contender) -> tuple[float, float]:
        """Return how much higher the score is than another's, and the standard error of this difference.

        Both are scored on the same samples and trained with the same seeds, so what makes a sample easy or a
        seed lucky for both of them is not in the error.
        """
        seeds = [one - two for one, two in zip(self.scores, other.scores, strict=True)]
        samples = [one - two for one, two in zip(self.left_out, other.left_out, strict=True)]
        return self.score - other.score, _error(seeds, samples)

    @property
    def loss(self) -> float:
        """The mean validation loss."""
        return statistics.fmean(self.losses)

    @property
    def gap(self) -> float:
        """The mean validation loss less the training loss."""
        return self.loss - statistics.fmean(self.training_losses)


@dataclass
class Comparison:
    """Kinds of regularization, each at its best strength: print it, or call ``recommendation()``.

    Args:
        contenders: "none" first.
        score_name: what ``scores`` are.
        test_score: of the recommended kind on the test data, the mean over seeds; None without test data.

    >>> plain = Contender("none", None, "", [0.80, 0.82], [0.5, 0.5], [0.1, 0.1], [0.0, 0.0], [1.0, 1.0])
    >>> l2 = Contender("l2", 0.01, "", [0.90, 0.92], [0.3, 0.3], [0.2, 0.2], [0.0, 0.0], [1.1, 1.1])
    >>> Comparison([plain, l2], "accuracy").recommendation().kind
    'l2'
    """

    contenders: list[Contender]
    score_name: str
    test_score: float | None = None

    def __iter__(self) -> Iterator[Contender]:
        return iter(self.contenders)

    def __getitem__(self, kind: str) -> Contender:
        return next(contender for contender in self.contenders if contender.kind == kind)

    def best(self) -> Contender:
        """Return the contender with the highest mean score."""
        return max(self.contenders, key=lambda contender: _ranked(contender.score))

    def recommendation(self) -> Contender:
        """Return none if its score is within one standard error of the best one's, and else the best.

        The standard error is that of their difference, over seeds and validation samples.

        References:
            Breiman, Friedman, Olshen and Stone, *Classification and Regression Trees*, 1984, § 3.4.3.
        """
        near = self.near()
        return next((contender for contender in near if contender.kind == "none"), self.best())

    def near(self) -> list[Contender]:
        """Return the best contender and those whose score is within one standard error of its score."""
        best, near = self.best(), []
        for contender in self.contenders:
            lower, error = best.difference(contender)
            if contender is best or lower <= error:
                near.append(contender)
        return near

    def advice(self) -> str:
        """Return the recommendation, by how much it is better than none, and what to type."""
        best, picked = self.best(), self.recommendation()
        if picked is best and picked.kind == "none":
            text = "Recommended: none (it has the best score)."
        elif picked.kind == "none":
            text = (
                f"Recommended: none ({best.kind} is above it by {_above(best, picked)}, too little to tell)."
            )
        else:
            above = _above(picked, self["none"])
            text = f"Recommended: {picked.kind} (above none by {above}). To use it: {picked.code}"
        if others := [c for c in self.near() if c is not picked and c is not best]:
            names = ", ".join(f"{c.kind} ({statistics.fmean(c.zeros):.0%} zeros)" for c in others)
            text += f"\nWithin one standard error of the best: {names}"
        if self.test_score is not None:
            text += f"\nTest {self.score_name} of it: {self.test_score:.4g}"
        return text

    def table(self) -> str:
        """Return the comparison as text, the best score first."""
        head = ("kind", "found", self.score_name, "loss", "gap", "zeros", "seconds")
        rows = [head]
        for c in sorted(self.contenders, key=lambda c: -_ranked(c.score)):
            rows.append(
                (
                    c.kind,
                    "" if c.value is None else f"{c.value:.3g}",
                    f"{c.score:.4g} ± {c.error:.2g}",
                    f"{c.loss:.4g}",
                    f"{c.gap:.3g}",
                    f"{statistics.fmean(c.zeros):.0%}",
                    f"{statistics.fmean(c.seconds):.2g}",
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
        first = [row[0].ljust(widths[0]) for row in rows]
        return "\n".join("  ".join([name, *line[1:]]) for name, line in zip(first, lines, strict=True))

    def __str__(self) -> str:
        return f"{self.table()}\n{self.advice()}"

    def to_csv(self, path: str | Path) -> None:
        """Write a line for each run: kind, value, seed, score, losses, zeros, seconds."""
        columns = ("scores", "losses", "training_losses", "zeros", "seconds")
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            head = ("score", "validation_loss", "training_loss", "zeros", "seconds")
            writer.writerow(["kind", "value", "seed", *head])
            for c in self.contenders:
                for seed, cells in enumerate(zip(*(getattr(c, name) for name in columns), strict=True)):
                    writer.writerow([c.kind, "" if c.value is None else c.value, seed, *cells])

    def plot(self) -> Any:
        """Return a ``matplotlib`` figure: the scores of all seeds by kind, and the searches.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        from lightning_reg.tune._plot import plot_comparison

        return plot_comparison(self)


def _error(scores: Sequence[float], left_out: Sequence[float]) -> float:
    """Return the standard error of a mean over seeds; of one seed, the samples' part alone."""
    count, mean = len(scores), statistics.fmean(scores)
    squares = sum((score - mean) ** 2 for score in scores)
    seeds = math.sqrt(squares / (count * (count - 1))) if count > 1 else 0.0
    return math.hypot(seeds, jackknife_error(left_out))


def _above(one: Contender, other: Contender) -> str:
    return "{:.2g} ± {:.2g}".format(*one.difference(other))


def _ranked(score: float) -> float:
    return score if math.isfinite(score) else -math.inf
