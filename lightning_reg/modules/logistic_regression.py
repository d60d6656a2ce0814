"""Logistic regression, binary and multinomial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_reg.apply import DualAveraging
from lightning_reg.modules._batch import check_labels
from lightning_reg.modules._linear import LinearModule, coefficients_of, require_sklearn, sklearn_bias
from lightning_reg.modules._supervised import LearningRateSchedule, MakeOptimizer, ModuleApply, adam
from lightning_reg.modules.classifier import classification_metrics
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.schedules.shapes import Cosine

__all__ = ["LogisticRegression"]


@final
class LogisticRegression(LinearModule):
    r"""Logistic regression: mean cross-entropy :math:`+\; \lambda_1\|W\|_1 + \tfrac{\lambda_2}{2}\|W\|_2^2`.

    As in scikit-learn, two classes share one row of weights and more have one row each (multinomial), and the
    intercept is never penalized. With :math:`n` samples, scikit-learn's ``C`` is :math:`1/(n\lambda)`. With
    ``apply="proximal"``, the default, L1 gives exact zeros; a full-batch run of some hundred steps on
    standardised inputs reaches scikit-learn's solution.

    Args:
        in_features: features of ``x``, which is ``(batch, in_features)``.
        num_classes: classes; ``y`` is ``(batch,)`` with labels 0, …, num_classes − 1.
        l1_strength: :math:`\lambda_1`, a number or a schedule.
        l2_strength: :math:`\lambda_2`, a number or a schedule.
        bias: whether there is an intercept.
        apply: how the penalties act: ``"proximal"``, ``"loss"``, or ``"decoupled"``.
        dual_averaging: of ``"proximal"``, as in :class:`~lightning_reg.callbacks.PenaltyCallback`.
        optimizer: an optimizer's class, or what makes one from parameters.
        lr_schedule: a schedule of ours as a factor of the learning rate, a scheduler's class, or None.
        metrics: of the logits, per stage; accuracy, F1 and calibration error where None.

    Raises:
        ValueError: no features, fewer than two classes, or a strength out of range; in training, a batch that
            does not fit, or a label out of range.

    >>> LogisticRegression(3, num_classes=4)(torch.zeros(5, 3)).shape
    torch.Size([5, 4])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int = 2,
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
            metrics = classification_metrics(num_classes)
        hyperparameters = {
            "in_features": in_features,
            "num_classes": num_classes,
            "l1_strength": l1_strength,
            "l2_strength": l2_strength,
            "bias": bias,
            "apply": apply,
            "dual_averaging": dual_averaging,
        }
        super().__init__(
            in_features,
            1 if num_classes == 2 else num_classes,
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
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, ``(batch, num_classes)``; of two classes, the first's are 0."""
        logits: Tensor = self.linear(x)
        return torch.cat([torch.zeros_like(logits), logits], 1) if self.num_classes == 2 else logits

    def predict(self, x: Tensor) -> Tensor:
        """Return the probabilities, ``(batch, num_classes)``."""
        self._check_inputs(x)
        return torch.softmax(self(x), 1)

    @classmethod
    def from_sklearn(cls, estimator: Any, **options: Any) -> LogisticRegression:
        """Return a module with the coefficients of a fitted ``LogisticRegression``.

        Args:
            estimator: one with ``coef_``, ``intercept_`` and ``classes_``; labels are their positions there.
            options: of the constructor; strengths are not taken over.
        """
        coef = coefficients_of(estimator)
        classes = max(2, coef.shape[0])
        module = cls(coef.shape[1], classes, bias=sklearn_bias(estimator), **options)
        module._load(coef, estimator.intercept_)
        return module

    def to_sklearn(self) -> Any:
        """Return a fitted ``sklearn.linear_model.LogisticRegression`` with these coefficients."""
        estimator = require_sklearn().LogisticRegression(fit_intercept=self.has_bias)
        estimator.coef_, estimator.intercept_ = self._coefficients()
        estimator.classes_ = torch.arange(self.num_classes).numpy()
        estimator.n_features_in_ = self.in_features
        return estimator

    def _check(self, x: Any, y: Tensor) -> Tensor:
        self._check_inputs(x)
        return check_labels(y, len(x), self.num_classes)

    def _losses(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        return nn.functional.cross_entropy(output, y, reduction="none"), None

    def _measured(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.softmax(output, 1), y
