"""Linear regression: least squares, ridge, lasso and elastic net."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, R2Score

from lightning_reg.apply import DualAveraging
from lightning_reg.modules._batch import check_targets
from lightning_reg.modules._linear import LinearModule, coefficients_of, require_sklearn, sklearn_bias
from lightning_reg.modules._supervised import LearningRateSchedule, MakeOptimizer, ModuleApply, adam
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.schedules.shapes import Cosine

__all__ = ["LinearRegression"]


@final
class LinearRegression(LinearModule):
    r"""Least squares with L1 and L2: :math:`\tfrac{1}{2n}\|Xw + b - y\|^2 + \lambda_1\|w\|_1 + \tfrac{\lambda_2}{2}\|w\|_2^2`.

    These are scikit-learn's conventions: ``l1_strength`` is the ``alpha`` of its ``Lasso``, both together are
    its ``ElasticNet`` with ``alpha = l1 + l2`` and ``l1_ratio = l1 / alpha``, and ``l2_strength`` is the
    ``alpha`` of its ``Ridge`` divided by the number of samples. The intercept is never penalized. With
    ``apply="proximal"``, the default, L1 gives exact zeros; a full-batch run of some hundred steps on
    standardised inputs reaches scikit-learn's solution. With several outputs, squares are summed over them.

    Args:
        in_features: features of ``x``, which is ``(batch, in_features)``.
        out_features: outputs; ``y`` is ``(batch, out_features)``, or ``(batch,)`` for one.
        l1_strength: :math:`\lambda_1`, a number or a schedule.
        l2_strength: :math:`\lambda_2`, a number or a schedule.
        bias: whether there is an intercept.
        apply: how the penalties act: ``"proximal"``, ``"loss"``, or ``"decoupled"``.
        dual_averaging: of ``"proximal"``, as in :class:`~lightning_reg.callbacks.PenaltyCallback`.
        optimizer: an optimizer's class, or what makes one from parameters.
        lr_schedule: a schedule of ours as a factor of the learning rate, a scheduler's class, or None.
        metrics: measured per stage; R² and mean absolute error where None.

    Raises:
        ValueError: no features or outputs, or a strength out of range; in training, a batch that does not fit.

    >>> LinearRegression(3, l1_strength=0.1)(torch.zeros(5, 3)).shape
    torch.Size([5, 1])
    """  # noqa: E501

    def __init__(
        self,
        in_features: int,
        out_features: int = 1,
        *,
        l1_strength: ScheduleLike = 0.0,
        l2_strength: ScheduleLike = 0.0,
        bias: bool = True,
        apply: ModuleApply = "proximal",
        dual_averaging: DualAveraging = True,
        optimizer: MakeOptimizer = adam(0.1),  # noqa: B008
        lr_schedule: LearningRateSchedule = Cosine(1.0, 0.0),  # noqa: B008
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        if metrics is None:
            metrics = {"r2": R2Score(), "mae": MeanAbsoluteError(), "mse": MeanSquaredError()}
        hyperparameters = {
            "in_features": in_features,
            "out_features": out_features,
            "l1_strength": l1_strength,
            "l2_strength": l2_strength,
            "bias": bias,
            "apply": apply,
            "dual_averaging": dual_averaging,
        }
        super().__init__(
            in_features,
            out_features,
            bias,
            l1_strength,
            l2_strength,
            apply,
            dual_averaging,
            optimizer,
            lr_schedule,
            metrics,
            hyperparameters,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the predictions, ``(batch, out_features)``."""
        output: Tensor = self.linear(x)
        return output

    def predict(self, x: Tensor) -> Tensor:
        """Return the predictions, ``(batch, out_features)``."""
        self._check_inputs(x)
        output: Tensor = self(x)
        return output

    @classmethod
    def from_sklearn(cls, estimator: Any, **options: Any) -> LinearRegression:
        """Return a module with the coefficients of a fitted linear regressor, such as ``Lasso``.

        Args:
            estimator: one with ``coef_`` and ``intercept_``.
            options: of the constructor; strengths are not taken over.
        """
        coef = coefficients_of(estimator)
        module = cls(coef.shape[1], coef.shape[0], bias=sklearn_bias(estimator), **options)
        module._load(coef, estimator.intercept_)
        return module

    def to_sklearn(self) -> Any:
        """Return a fitted ``sklearn.linear_model.LinearRegression`` with these coefficients."""
        estimator = require_sklearn().LinearRegression(fit_intercept=self.has_bias)
        weight, bias = self._coefficients()
        single = len(weight) == 1
        estimator.coef_ = weight[0] if single else weight
        estimator.intercept_ = bias[0] if single else bias
        estimator.n_features_in_ = self.in_features
        return estimator

    def _check(self, x: Any, y: Tensor) -> Tensor:
        self._check_inputs(x)
        # shape alone; the values of `output` are not needed
        return check_targets(y, torch.empty(len(x), self.linear.out_features, dtype=x.dtype, device=x.device))

    def _losses(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        return 0.5 * (output - y).square().sum(1), None

    def _measured(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (output[:, 0], y[:, 0]) if output.shape[1] == 1 else (output, y)
