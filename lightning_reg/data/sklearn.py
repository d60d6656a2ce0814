"""scikit-learn's bundled data sets."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor

from lightning_reg.data._base import ArrayDataModule

__all__ = ["SklearnDataModule"]


@final
class SklearnDataModule(ArrayDataModule):
    """One of the data sets that come with scikit-learn; nothing is downloaded.

    Args:
        name: ``"breast_cancer"`` (569 × 30, 2 classes), ``"digits"`` (1797 × 64, 10), ``"iris"`` (150 × 4,
            3), ``"wine"`` (178 × 13, 3), or ``"diabetes"`` (442 × 10, a number, standardised).
        batch_size: rows a batch.
        val_fraction: share of the rows to validate on.
        test_fraction: share of the rows to test on.
        standardize: to mean 0 and deviation 1 of the training rows.
        seed: of the split.

    Raises:
        ValueError: an unknown name, or an argument out of range.
        ImportError: scikit-learn is not installed.
    """

    def __init__(
        self,
        name: Literal["breast_cancer", "diabetes", "digits", "iris", "wine"],
        batch_size: int = 64,
        *,
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        standardize: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, val_fraction, test_fraction, standardize, seed)
        known = ("breast_cancer", "diabetes", "digits", "iris", "wine")
        if name not in known:
            raise ValueError(
                f"name={name!r} is not bundled with scikit-learn; it is one of {', '.join(known)}"
            )
        self.name = name

    def _arrays(self) -> tuple[Tensor, Tensor]:
        try:
            from sklearn import datasets
        except ImportError as error:
            raise ImportError(
                "SklearnDataModule needs scikit-learn; run: pip install scikit-learn"
            ) from error
        x, y = getattr(datasets, f"load_{self.name}")(return_X_y=True)
        features, targets = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y)
        if self.name == "diabetes":
            targets = ((targets - targets.mean()) / targets.std(correction=0)).float()
        return features, targets
