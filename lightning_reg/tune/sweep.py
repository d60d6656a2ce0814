"""What short runs at several values saw: the curve through their losses, and where it is lowest."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

__all__ = ["Sweep"]


@dataclass
class Sweep:
    """The validation loss of short runs, each at one value.

    Attributes:
        kind: what was swept.
        values: of it, from the smallest; the first strength is 0, which is no penalty.
        losses: the validation loss at each; with a score, its negative.
        scored: whether a score was given.

    >>> sweep = Sweep("strength", [1e-4, 1e-3, 1e-2, 1e-1, 1.0], [2.0, 1.5, 1.2, 1.5, 2.0])
    >>> round(sweep.suggestion(), 4)
    0.01
    """

    kind: Literal["strength", "rate"]
    values: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    scored: bool = False

    def __iter__(self) -> Iterator[tuple[float, float]]:
        return zip(self.values, self.losses, strict=True)

    @property
    def without(self) -> float | None:
        """The loss at strength 0, or None where it was not tried."""
        return self.losses[0] if self.kind == "strength" and self.values[:1] == [0.0] else None

    def suggestion(self) -> float:
        """Return where :meth:`curve` is lowest, or 0 if the curve, or every run, does no better.

        Raises:
            ValueError: no finite loss was seen.
        """
        values, losses = self.curve()
        at = _lowest(losses)
        lowest = min(loss for loss in self.losses[1:] or losses if loss == loss)
        none_is_best = self.without is not None and self.without <= max(losses[at], lowest)
        return 0.0 if none_is_best else values[at]

    def choice(self) -> str:
        """Return the suggestion in a sentence, with what was seen there and without."""
        named, sign = ("score", -1.0) if self.scored else ("validation loss", 1.0)
        found = f"{self.kind} {self.suggestion():.3g}"
        if self.without is None:
            return f"{found}, {named} {sign * min(self.curve()[1]):.4g}, of {len(self.values)} tried"
        lowest = self.without if self.suggestion() == 0.0 else min(self.curve()[1])
        without = f"without a penalty {sign * self.without:.4g}"
        return f"{found}, {named} {sign * lowest:.4g} ({without}), of {len(self.values)} tried"

    def remark(self) -> str | None:
        """Return a sentence if the suggestion is an end of the range, beyond which a better one may lie.

        A strength or rate of 0 is an answer, and no finite loss none.
        """
        if not any(map(math.isfinite, self.losses)):
            return None
        if self.suggestion() == 0.0:
            return None
        values, losses = self.curve()
        at = _lowest(losses)
        if at == len(values) - 1:
            what, hint = "highest tried, and a higher one may be better", "raise highest="
        elif at == 0 and values[0] > 0.0:
            what, hint = "lowest tried, and a lower one, or none, may be better", "lower lowest="
        else:
            return None
        return f"the {self.kind} suggested, {values[at]:.4g}, is the {what}; {hint}"

    def curve(self, places: int = 401) -> tuple[list[float], list[float]]:
        r"""Return places and the smooth loss there, whose minimum chance moves less than that of the points.

        At each place a parabola is fitted to all points, which weigh :math:`e^{-d^2/2}` at a distance of
        :math:`d` gaps, on a logarithmic axis for strengths. What is fitted is
        :math:`\log(1 + (L - \min L)/s)`, at most 2, so that a model ruined at one end does not bend the curve
        at its minimum: :math:`s` is how far the median lies above the lowest loss, or a tenth of that for the
        upper quartile. A loss that is not finite counts as the largest.

        Raises:
            ValueError: no finite loss was seen.

        References:
            Cleveland and Devlin, *Locally Weighted Regression*, Journal of the American Statistical
            Association 83(403), 1988.
        """
        first = 0 if self.without is None else 1  # 0 has no place on a logarithmic axis
        values, losses = self.values[first:], self.losses[first:]
        finite = sorted(loss for loss in losses if math.isfinite(loss))
        if not finite:
            raise ValueError("no run had a finite loss; lower highest=, or the learning rate")
        lowest, median, quartile = finite[0], finite[len(finite) // 2], finite[3 * len(finite) // 4]
        # where most of the losses are alike, the median is no measure of what matters
        scale = max(median - lowest, 0.1 * (quartile - lowest)) or 1.0
        seen = [min(loss, finite[-1]) if loss == loss else finite[-1] for loss in losses]
        heights = torch.tensor(
            [min(2.0, math.log1p((loss - lowest) / scale)) for loss in seen], dtype=torch.float64
        )
        axis = [math.log(value) for value in values] if self.kind == "strength" else values
        at = torch.tensor(axis, dtype=torch.float64)
        if len(at) < 3:
            return values, losses
        gap = (at[-1] - at[0]) / (len(at) - 1)
        grid = torch.linspace(float(at[0]), float(at[-1]), places, dtype=torch.float64)
        distance = (at - grid[:, None]) / gap
        weight = (-0.25 * distance.square()).exp()[..., None]  # its square root
        terms = torch.stack([torch.ones_like(distance), distance, distance.square()], dim=-1)
        fitted = torch.linalg.lstsq(terms * weight, heights[:, None] * weight).solution[:, 0, 0]
        where = grid.exp() if self.kind == "strength" else grid
        return where.tolist(), (lowest + scale * fitted.expm1()).tolist()

    def to_csv(self, path: str | Path) -> None:
        """Write a line for each value."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([self.kind, "score" if self.scored else "validation_loss"])
            sign = -1.0 if self.scored else 1.0
            writer.writerows((value, sign * loss) for value, loss in self)

    def plot(self) -> Any:
        """Return a ``matplotlib`` figure of the points, the curve and the suggestion.

        A notebook shows it after ``%matplotlib inline`` or an import of ``matplotlib.pyplot``.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        from lightning_reg.tune._plot import plot_sweep

        return plot_sweep(self)


def _lowest(losses: list[float]) -> int:
    return min(range(len(losses)), key=losses.__getitem__)
