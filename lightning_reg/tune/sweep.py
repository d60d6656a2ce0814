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
        values: of it, from the smallest.
        losses: the validation loss at each.

    >>> sweep = Sweep("strength", [1e-4, 1e-3, 1e-2, 1e-1, 1.0], [2.0, 1.5, 1.2, 1.5, 2.0])
    >>> round(sweep.suggestion(), 4)
    0.01
    """

    kind: Literal["strength", "rate"]
    values: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[float, float]]:
        return zip(self.values, self.losses, strict=True)

    def suggestion(self) -> float:
        """Return where :meth:`curve` is lowest.

        Raises:
            ValueError: no finite loss was seen.
        """
        values, losses = self.curve()
        return values[_lowest(losses)]

    def remark(self) -> str | None:
        """Return a sentence if the suggestion is an end of the range, beyond which a better one may lie.

        A dropout rate of 0 is an answer, and no finite loss none.
        """
        if not any(map(math.isfinite, self.losses)):
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
        finite = sorted(loss for loss in self.losses if math.isfinite(loss))
        if not finite:
            raise ValueError("no run had a finite loss; lower highest=, or the learning rate")
        lowest, median, quartile = finite[0], finite[len(finite) // 2], finite[3 * len(finite) // 4]
        # where most of the losses are alike, the median is no measure of what matters
        scale = max(median - lowest, 0.1 * (quartile - lowest)) or 1.0
        seen = [min(loss, finite[-1]) if loss == loss else finite[-1] for loss in self.losses]
        heights = torch.tensor(
            [min(2.0, math.log1p((loss - lowest) / scale)) for loss in seen], dtype=torch.float64
        )
        axis = [math.log(value) for value in self.values] if self.kind == "strength" else self.values
        at = torch.tensor(axis, dtype=torch.float64)
        if len(at) < 3:
            return list(self.values), list(self.losses)
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
            writer.writerow([self.kind, "validation_loss"])
            writer.writerows(self)

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
