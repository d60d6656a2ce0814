"""Poisson regression: counts, with a logarithmic link."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, Metric, R2Score

from lightning_reg.apply import DualAveraging
from lightning_reg.modules._batch import check_targets
from lightning_reg.modules._linear import LinearModule, coefficients_of, require_sklearn, sklearn_bias
from lightning_reg.modules._supervised import LearningRateSchedule, MakeOptimizer, ModuleApply, adam
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.schedules.shapes import Cosine

__all__ = ["PoissonRegression"]


@final
class PoissonRegression(LinearModule):
    r"""Counts with L1 and L2: :math:`\tfrac1n\sum_i(e^{\eta_i} - y_i\eta_i) + \lambda_1\|w\|_1 + \tfrac{\lambda_2}{2}\|w\|_2^2`.

    The linear predictor is :math:`\eta = Xw + b`, and the mean is :math:`e^\eta`. ``l2_strength`` is the
    ``alpha`` of scikit-learn's ``PoissonRegressor``. The intercept is never penalized.

    Args:
        in_features: features of ``x``, which is ``(batch, in_features)``; ``y`` is ``(batch,)``, 0 or more.
        l1_strength: :math:`\lambda_1`, a number or a schedule.
        l2_strength: :math:`\lambda_2`, a number or a schedule.
        bias: whether there is an intercept.
        apply: how the penalties act: ``"proximal"``, ``"loss"``, or ``"decoupled"``.
        dual_averaging: of ``"proximal"``, as in :class:`~lightning_reg.callbacks.PenaltyCallback`.
        optimizer: an optimizer's class, or what makes one from parameters.
        lr_schedule: a schedule of ours as a factor of the learning rate, a scheduler's class, or None.
        metrics: of the predicted means, per stage; mean absolute error and R² where None.

    Raises:
        ValueError: no features, or a strength out of range; in training, a batch that does not fit, or a
            negative count.

    >>> PoissonRegression(3)(torch.zeros(5, 3)).exp()[0]
    tensor(1., grad_fn=<SelectBackward0>)
    """  # noqa: E501

    def __init__(
        self,
        in_features: int,
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
            metrics = {"mae": MeanAbsoluteError(), "r2": R2Score()}
        hyperparameters = {
            "in_features": in_features,
            "l1_strength": l1_strength,
            "l2_strength": l2_strength,
            "bias": bias,
            "apply": apply,
            "dual_averaging": dual_averaging,
        }
        super().__init__(
            in_features,
            1,
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
        r"""Return :math:`\eta`, the logarithm of the mean, ``(batch,)``."""
        output: Tensor = self.linear(x)
        return output[:, 0]

    def predict(self, x: Tensor) -> Tensor:
        """Return the means, ``(batch,)``."""
        self._check_inputs(x)
        means: Tensor = self(x).exp()
        return means

    @classmethod
    def from_sklearn(cls, estimator: Any, **options: Any) -> PoissonRegression:
        """Return a module with the coefficients of a fitted ``PoissonRegressor``.

        Args:
            estimator: one with ``coef_`` and ``intercept_``.
            options: of the constructor; strengths are not taken over.
        """
        coef = coefficients_of(estimator)
        module = cls(coef.shape[1], bias=sklearn_bias(estimator), **options)
        module._load(coef, estimator.intercept_)
        return module

    def to_sklearn(self) -> Any:
        """Return a fitted ``sklearn.linear_model.PoissonRegressor`` with these coefficients."""
        estimator = require_sklearn().PoissonRegressor(alpha=0.0, fit_intercept=self.has_bias)
        weight, bias = self._coefficients()
        estimator.coef_, estimator.intercept_ = weight[0], bias[0]
        estimator.n_features_in_ = self.in_features
        estimator._base_loss = estimator._get_loss()
        return estimator

    def _check(self, x: Any, y: Tensor) -> Tensor:
        self._check_inputs(x)
        if (y < 0).any():
            raise ValueError(f"the targets are counts, 0 or more, and the batch has {float(y.min()):g}")
        return check_targets(y, torch.empty(len(x), dtype=x.dtype, device=x.device))

    def _losses(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        return output.exp() - y * output, None

    def _measured(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return output.exp(), y
