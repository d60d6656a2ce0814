"""LightningModules that regularize themselves."""

from lightning_reg.modules.classifier import RegularizedClassifier
from lightning_reg.modules.linear_regression import LinearRegression
from lightning_reg.modules.logistic_regression import LogisticRegression
from lightning_reg.modules.poisson_regression import PoissonRegression
from lightning_reg.modules.regressor import RegularizedRegressor
from lightning_reg.modules.regularized_module import RegularizedModule
from lightning_reg.modules.sparse_mlp import SparseMLP

__all__ = [
    "LinearRegression",
    "LogisticRegression",
    "PoissonRegression",
    "RegularizedClassifier",
    "RegularizedModule",
    "RegularizedRegressor",
    "SparseMLP",
]
