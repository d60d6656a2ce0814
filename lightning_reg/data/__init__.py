"""Data modules for tables: scikit-learn's bundled sets, and files."""

from lightning_reg.data.sklearn import SklearnDataModule
from lightning_reg.data.table import TableDataModule

__all__ = ["SklearnDataModule", "TableDataModule"]
