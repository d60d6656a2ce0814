"""What the linear models share: one layer, L1 and L2 on its weights, coefficients in and out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_reg.apply import DualAveraging
from lightning_reg.modules._batch import check_features
from lightning_reg.modules._supervised import (
    LearningRateSchedule,
    MakeOptimizer,
    ModuleApply,
    SupervisedModule,
)
from lightning_reg.penalties import L1, L2, Penalty
from lightning_reg.schedules.base import ScheduleLike

__all__ = ["LinearModule", "coefficients_of", "require_sklearn", "sklearn_bias"]


class LinearModule(SupervisedModule):
    """A linear predictor ``x @ weight.T + bias``; the penalties are on ``weight``, never on ``bias``."""

    def __init__(
        self,
        in_features: int,
        rows: int,
        bias: bool,
        l1_strength: ScheduleLike,
        l2_strength: ScheduleLike,
        apply: ModuleApply,
        dual_averaging: DualAveraging,
        optimizer: MakeOptimizer,
        lr_schedule: LearningRateSchedule,
        metrics: Mapping[str, Metric],
        hyperparameters: dict[str, Any],
    ) -> None:
        for name, value in (("in_features", in_features), ("the number of outputs", rows)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; give a whole number of 1 or more")
        penalties: list[Penalty] = []
        # in this order the two proximal operators make up the elastic net's
        if callable(l1_strength) or l1_strength != 0.0:
            penalties.append(L1(l1_strength, "linear.weight"))
        if callable(l2_strength) or l2_strength != 0.0:
            penalties.append(L2(l2_strength, "linear.weight"))
        super().__init__(penalties, apply, dual_averaging, optimizer, lr_schedule, metrics)
        # plain values alone, so that a checkpoint loads with weights_only=True
        plain = {
            name: value
            for name, value in hyperparameters.items()
            if value is None or isinstance(value, (bool, int, float, str))
        }
        # a LightningCLI that is given the checkpoint looks for the class here
        plain["_class_path"] = f"{type(self).__module__}.{type(self).__qualname__}"
        self.save_hyperparameters(plain, logger=False)
        self.in_features = in_features
        self.has_bias = bias
        self.linear = nn.Linear(in_features, rows, bias=bias)
        # a convex problem needs no random start
        nn.init.zeros_(self.linear.weight)
        if bias:
            nn.init.zeros_(self.linear.bias)

    def _check_inputs(self, x: Any) -> None:
        check_features(x, self.in_features)

    @torch.no_grad()
    def _load(self, coef: Any, intercept: Any) -> None:
        weight = torch.as_tensor(coef).reshape(self.linear.weight.shape)
        self.to(weight.dtype)
        self.linear.weight.copy_(weight)
        if self.has_bias:
            self.linear.bias.copy_(torch.as_tensor(intercept).reshape(-1))

    def _coefficients(self) -> tuple[Any, Any]:
        """Weight and bias as NumPy arrays; a missing bias is zeros."""
        weight = self.linear.weight.detach().cpu().numpy().copy()
        if not self.has_bias:
            return weight, weight.sum(1) * 0.0
        return weight, self.linear.bias.detach().cpu().numpy().copy()


def sklearn_bias(estimator: Any) -> bool:
    """Whether a fitted estimator has an intercept."""
    return bool(getattr(estimator, "fit_intercept", True))


def coefficients_of(estimator: Any) -> Tensor:
    """Return a fitted estimator's coefficients as ``(rows, in_features)``.

    Raises:
        ValueError: it has none: it is not linear, or not fitted.
    """
    coef = getattr(estimator, "coef_", None)
    if coef is None:
        raise ValueError(f"{type(estimator).__name__} has no coef_; give a fitted linear estimator")
    matrix = torch.as_tensor(coef)
    return matrix if matrix.dim() == 2 else matrix[None]


def require_sklearn() -> Any:
    """Return ``sklearn.linear_model``.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        import sklearn.linear_model
    except ImportError as error:
        raise ImportError("to_sklearn needs scikit-learn; run: pip install scikit-learn") from error
    return sklearn.linear_model
