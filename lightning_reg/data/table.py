"""Tables from files: CSV, Parquet, NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor

from lightning_reg.data._base import ArrayDataModule

__all__ = ["TableDataModule"]


@final
class TableDataModule(ArrayDataModule):
    """Any ``.csv``, ``.parquet``, ``.npy`` or ``.npz`` file of numbers, with one column as the target.

    The columns of an ``.npy`` matrix are called ``"0"``, ``"1"``, …; an ``.npz`` archive holds either one
    matrix or the arrays ``x`` and ``y``.

    Args:
        path: the file.
        target: the target's column; the last one where None.
        features: the features' columns; all others where None.
        task: ``"classification"`` encodes the target's values as 0, 1, … in sorted order, and texts too;
            ``"regression"`` takes them as numbers.
        batch_size: rows a batch.
        val_fraction: share of the rows to validate on.
        test_fraction: share of the rows to test on.
        standardize: to mean 0 and deviation 1 of the training rows.
        seed: of the split.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown kind of file, columns that are missing or no numbers, or missing values.
        ImportError: pandas is not installed, for CSV and Parquet.
    """

    def __init__(
        self,
        path: str,
        target: str | None = None,
        features: Sequence[str] | None = None,
        *,
        task: Literal["classification", "regression"] = "classification",
        batch_size: int = 64,
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        standardize: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, val_fraction, test_fraction, standardize, seed)
        if task not in ("classification", "regression"):
            raise ValueError(f"task={task!r} is unknown; it is 'classification' or 'regression'")
        if Path(path).suffix not in (".csv", ".parquet", ".npy", ".npz"):
            raise ValueError(f"path={path!r} is not a .csv, .parquet, .npy or .npz file")
        self.path, self.target, self.features, self.task = path, target, features, task
        self.classes: list[Any] = []

    def _arrays(self) -> tuple[Tensor, Tensor]:
        import numpy as np

        columns = self._columns()
        if not columns:
            raise ValueError(f"{self.path} has no columns")
        target = list(columns)[-1] if self.target is None else self.target
        names = [name for name in columns if name != target] if self.features is None else list(self.features)
        missing = [name for name in [target, *names] if name not in columns]
        if missing:
            raise ValueError(
                f"{self.path} has no column {', '.join(map(repr, missing))}; it has "
                f"{', '.join(map(repr, columns))}"
            )
        if not names:
            raise ValueError(f"{self.path} has no column but the target {target!r}")
        matrix = []
        for name in names:
            try:
                matrix.append(np.asarray(columns[name], dtype=np.float32))
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"column {name!r} of {self.path} holds something else than numbers; leave it out of "
                    "features=, or encode it"
                ) from error
        x = torch.from_numpy(np.stack(matrix, 1))
        values = np.asarray(columns[target])
        if self.task == "regression":
            return x, torch.as_tensor(values.astype(np.float32))
        if values.dtype.kind == "f" and np.isnan(values).any():
            raise ValueError(f"the target {target!r} of {self.path} has missing values; drop those rows")
        classes, labels = np.unique(
            values.astype(str) if values.dtype == object else values, return_inverse=True
        )
        self.classes = classes.tolist()
        return x, torch.from_numpy(labels)

    def _columns(self) -> dict[str, Any]:
        path = Path(self.path)
        if not path.exists():
            raise FileNotFoundError(f"there is no file {self.path}")
        if path.suffix in (".csv", ".parquet"):
            return self._frame(path)
        import numpy as np

        loaded = np.load(path, allow_pickle=False)
        if path.suffix == ".npz":
            if {"x", "y"} <= set(loaded.files):
                return {**_split(loaded["x"]), "y": loaded["y"]}
            if len(loaded.files) != 1:
                raise ValueError(f"{self.path} holds {', '.join(loaded.files)}; give x and y, or one matrix")
            loaded = loaded[loaded.files[0]]
        return _split(loaded)

    def _frame(self, path: Path) -> dict[str, Any]:
        try:
            import pandas
        except ImportError as error:
            raise ImportError("CSV and Parquet files need pandas; run: pip install pandas pyarrow") from error
        try:
            frame = pandas.read_csv(path) if path.suffix == ".csv" else pandas.read_parquet(path)
        except pandas.errors.EmptyDataError as error:
            raise ValueError(f"{self.path} is empty") from error
        return {str(name): frame[name].to_numpy() for name in frame.columns}


def _split(matrix: Any) -> dict[str, Any]:
    if matrix.ndim != 2:
        raise ValueError(f"the array is of shape {matrix.shape}, and a table has two dimensions")
    return {str(column): matrix[:, column] for column in range(matrix.shape[1])}
