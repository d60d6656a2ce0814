"""The rows of a path: the best of them, a table, a picture."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

__all__ = ["COLUMNS", "PathFrame", "Row"]

#: One strength: a value for each of ``COLUMNS``, ``layers`` ({name: norm}), ``weights`` ([number] or None).
Row: TypeAlias = "dict[str, Any]"

COLUMNS = (
    "strength",
    "train_loss",
    "validation_loss",
    "validation_error",
    "metric",
    "nonzeros",
    "groups",
    "norm",
    "epochs",
    "best_epoch",
    "steps",
    "gradients",
    "residual",
    "converged",
)


class PathFrame:
    """A path of strengths, from the largest to the smallest.

    Args:
        rows: in any order.

    >>> frame = PathFrame([
    ...     {"strength": s, "validation_loss": v, "validation_error": 0.2, "nonzeros": n}
    ...     for s, v, n in [(1.0, 3.0, 0), (0.1, 1.1, 2), (0.01, 1.0, 9)]
    ... ])
    >>> frame.best()["strength"], frame.best("one_se")["strength"]
    (0.01, 0.1)
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = sorted(rows, key=lambda row: -row["strength"])

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, column: str) -> list[Any]:
        return [row.get(column) for row in self.rows]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PathFrame) and self.rows == other.rows

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        ends = f", strengths {self.rows[0]['strength']:.3g} to {self.rows[-1]['strength']:.3g}"
        return f"PathFrame({len(self.rows)} points{ends if self.rows else ''})"

    def best(self, rule: Literal["min", "one_se"] = "min") -> Row:
        """Return the row with the lowest validation loss.

        Args:
            rule: ``"one_se"`` for the largest strength whose loss is within one standard error of the lowest,
                the sparsest model that is not clearly worse; it needs folds.

        Raises:
            ValueError: no validation data were given, or for ``"one_se"`` no folds.
        """
        if rule not in ("min", "one_se"):
            raise ValueError(f"rule={rule!r} is unknown; use 'min' or 'one_se'")
        known = [row for row in self.rows if row.get("validation_loss") is not None]
        if not known:
            raise ValueError("no point has a validation loss; give regularization_path validation= or folds=")
        lowest = min(known, key=lambda row: row["validation_loss"])
        if rule == "min":
            return lowest
        if lowest.get("validation_error") is None:
            raise ValueError("rule='one_se' needs a standard error; give regularization_path folds=5")
        limit = lowest["validation_loss"] + lowest["validation_error"]
        return next(row for row in known if row["validation_loss"] <= limit)

    def to_csv(self, path: str | Path) -> None:
        """Write the columns, one line a strength, the largest first."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.rows)

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` of the columns.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "to_pandas() needs pandas; install it with: pip install pandas", name="pandas"
            ) from error
        return pandas.DataFrame([{name: row.get(name) for name in COLUMNS} for row in self.rows])

    def plot(self) -> Any:
        """Return a ``matplotlib`` figure: weights or layers against the strength, and the score.

        A notebook shows it after ``%matplotlib inline`` or an import of ``matplotlib.pyplot``.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        from lightning_reg.tune._plot import plot_path

        return plot_path(self)
