"""A classifier around any network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassF1Score

from lightning_reg.apply import DualAveraging
from lightning_reg.modules._batch import check_labels
from lightning_reg.modules._supervised import (
    LearningRateSchedule,
    MakeOptimizer,
    ModuleApply,
    SupervisedModule,
)
from lightning_reg.penalties import L2, Penalty
from lightning_reg.schedules.shapes import Cosine

__all__ = ["RegularizedClassifier", "classification_metrics"]


def classification_metrics(num_classes: int) -> dict[str, Metric]:
    """Return accuracy, macro F1 and the expected calibration error.

    Raises:
        ValueError: fewer than two classes.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
        raise ValueError(f"num_classes={num_classes!r}; give a whole number of 2 or more")
    return {
        "accuracy": MulticlassAccuracy(num_classes, average="micro"),
        "f1": MulticlassF1Score(num_classes, average="macro"),
        "calibration_error": MulticlassCalibrationError(num_classes),
    }


@final
class RegularizedClassifier(SupervisedModule):
    """Classify with any network whose output is one logit a class.

    By default it decays the weights, and not biases and norm layers, apart from Adam's update, while the
    learning rate falls to 0 along a cosine: AdamW as it is meant.

    Args:
        model: maps inputs to logits ``(batch, num_classes)``.
        num_classes: classes; ``y`` is ``(batch,)`` with labels 0, …, num_classes − 1.
        penalties: one penalty, or several, of the parameters of ``model``, whose names begin with ``model.``.
        apply: how they act: ``"decoupled"``, ``"loss"``, or ``"proximal"`` for exact zeros.
        dual_averaging: of ``"proximal"``, as in :class:`~lightning_reg.callbacks.PenaltyCallback`.
        optimizer: an optimizer's class, or what makes one from parameters.
        lr_schedule: a schedule of ours as a factor of the learning rate, a scheduler's class, or None.
        label_smoothing: ε in [0, 1): the share of each target spread evenly over all classes.
        class_weights: one a class, 0 or more; the loss is the mean by these weights.
        metrics: of the probabilities, per stage; accuracy, F1 and calibration error where None.

    Raises:
        ValueError: an argument out of range; in training, a batch that does not fit, or a label out of range.

    >>> module = RegularizedClassifier(nn.Linear(4, 3), num_classes=3, label_smoothing=0.1)
    >>> module.predict(torch.zeros(2, 4)).shape
    torch.Size([2, 3])
    """

    class_weights: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        penalties: Penalty | Sequence[Penalty] = L2(0.01),  # noqa: B008
        *,
        apply: ModuleApply = "decoupled",
        dual_averaging: DualAveraging = True,
        optimizer: MakeOptimizer = partial(torch.optim.Adam, lr=1e-3),  # noqa: B008
        lr_schedule: LearningRateSchedule = Cosine(1.0, 0.0),  # noqa: B008
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        default_metrics = classification_metrics(num_classes)
        super().__init__(
            penalties,
            apply,
            dual_averaging,
            optimizer,
            lr_schedule,
            default_metrics if metrics is None else metrics,
        )
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing={label_smoothing} is outside [0, 1)")
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        if weights is not None and (weights.shape != (num_classes,) or not (weights >= 0).all()):
            raise ValueError(
                f"class_weights={class_weights} must be {num_classes} numbers of 0 or more, one a class"
            )
        self.model = model
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, x: Any) -> Tensor:
        """Return the logits, ``(batch, num_classes)``.

        Raises:
            ValueError: the model gives another shape.
        """
        logits: Tensor = self.model(x)
        if logits.dim() != 2 or logits.shape[1] != self.num_classes:
            raise ValueError(
                f"the model must give logits of shape (batch, {self.num_classes}), and gives "
                f"{tuple(logits.shape)}"
            )
        return logits

    def predict(self, x: Any) -> Tensor:
        """Return the probabilities, ``(batch, num_classes)``."""
        return torch.softmax(self(x), 1)

    def _check(self, x: Any, y: Tensor) -> Tensor:
        return check_labels(y, len(x) if isinstance(x, Tensor) else len(y), self.num_classes)

    def _losses(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        weights = None if self.class_weights is None else self.class_weights.to(output.dtype)
        losses = nn.functional.cross_entropy(
            output, y, weights, reduction="none", label_smoothing=self.label_smoothing
        )
        return losses, None if weights is None else weights[y]

    def _measured(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.softmax(output, 1), y
