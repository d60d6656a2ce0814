"""What the data modules share: a split, standardised features, loaders."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

__all__ = ["ArrayDataModule"]


class ArrayDataModule(LightningDataModule):
    """A table in memory, split in training, validation and test rows by a seed.

    The features are standardised with the training rows' mean and deviation.
    """

    def __init__(
        self, batch_size: int, val_fraction: float, test_fraction: float, standardize: bool, seed: int
    ) -> None:
        super().__init__()
        if isinstance(batch_size, bool) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size}; give a whole number of 1 or more")
        if not (
            0.0 <= val_fraction < 1.0 and 0.0 <= test_fraction < 1.0 and val_fraction + test_fraction < 1.0
        ):
            raise ValueError(
                f"val_fraction={val_fraction} and test_fraction={test_fraction} must be 0 or more, and leave "
                "some rows to train on"
            )
        self.batch_size = batch_size
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.standardize, self.seed = standardize, seed
        self._parts: dict[str, TensorDataset] = {}

    @abstractmethod
    def _arrays(self) -> tuple[Tensor, Tensor]:
        """Return features ``(rows, features)`` and targets ``(rows, ...)``."""

    @property
    def num_features(self) -> int:
        """The number of features, once set up."""
        self.setup()
        return int(self._parts["train"].tensors[0].shape[1])

    def setup(self, stage: str | None = None) -> None:
        """Load, check, split and standardise, once.

        Raises:
            ValueError: no rows, values that are NaN or infinite, or a part without rows.
        """
        if self._parts:
            return
        x, y = self._arrays()
        if len(x) == 0:
            raise ValueError("the data set is empty: it has no rows")
        for what, values in (("features", x), ("targets", y)):
            if values.is_floating_point() and not torch.isfinite(values).all():
                bad = (~torch.isfinite(values)).reshape(len(values), -1).any(1)
                row = int(bad.nonzero()[0])
                raise ValueError(
                    f"the {what} of {int(bad.sum())} of {len(x)} rows are missing or infinite, first in row "
                    f"{row}; fill or drop them"
                )
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.seed))
        n_test, n_val = round(len(x) * self.test_fraction), round(len(x) * self.val_fraction)
        rows = {
            "test": order[:n_test],
            "val": order[n_test : n_test + n_val],
            "train": order[n_test + n_val :],
        }
        if len(rows["train"]) == 0:
            raise ValueError(
                f"of {len(x)} rows none is left to train on; lower val_fraction or test_fraction"
            )
        if self.standardize:
            train = x[rows["train"]]
            deviation = train.std(0, correction=0)
            x = (x - train.mean(0)) / torch.where(deviation > 0, deviation, 1.0)
        self._parts = {part: TensorDataset(x[index], y[index]) for part, index in rows.items()}

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training rows, in a new order every epoch."""
        return DataLoader(self._parts["train"], batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return the validation rows."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return the test rows."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return the test rows, or all the training rows where there are none."""
        return self._loader("test") or DataLoader(self._parts["train"], batch_size=self.batch_size)

    def _loader(self, part: str) -> DataLoader[Any] | list[Any]:
        return DataLoader(self._parts[part], batch_size=self.batch_size) if len(self._parts[part]) else []
