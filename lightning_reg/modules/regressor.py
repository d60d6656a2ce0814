"""A regressor around any network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, Metric, R2Score

from lightning_reg.apply import DualAveraging
from lightning_reg.modules._batch import check_targets
from lightning_reg.modules._supervised import (
    LearningRateSchedule,
    MakeOptimizer,
    ModuleApply,
    SupervisedModule,
)
from lightning_reg.penalties import L2, Penalty
from lightning_reg.schedules.shapes import Cosine

__all__ = ["RegularizedRegressor"]


@final
class RegularizedRegressor(SupervisedModule):
    """Predict numbers with any network, under mean squared error.

    By default it decays the weights, and not biases and norm layers, apart from Adam's update, while the
    learning rate falls to 0 along a cosine: AdamW as it is meant.

    Args:
        model: maps inputs to ``(batch,)`` or ``(batch, outputs)``, the shape of the targets; ``(n,)`` and
            ``(n, 1)`` are taken for the same.
        penalties: one penalty, or several, of the parameters of ``model``, whose names begin with ``model.``.
        apply: how they act: ``"decoupled"``, ``"loss"``, or ``"proximal"`` for exact zeros.
        dual_averaging: of ``"proximal"``, as in :class:`~lightning_reg.callbacks.PenaltyCallback`.
        optimizer: an optimizer's class, or what makes one from parameters.
        lr_schedule: a schedule of ours as a factor of the learning rate, a scheduler's class, or None.
        metrics: per stage; R² and mean absolute error where None.

    Raises:
        ValueError: an argument out of range; in training, a batch that does not fit.

    >>> RegularizedRegressor(nn.Linear(4, 1)).predict(torch.zeros(2, 4)).shape
    torch.Size([2, 1])
    """

    def __init__(
        self,
        model: nn.Module,
        penalties: Penalty | Sequence[Penalty] = L2(0.01),  # noqa: B008
        *,
        apply: ModuleApply = "decoupled",
        dual_averaging: DualAveraging = True,
        optimizer: MakeOptimizer = partial(torch.optim.Adam, lr=1e-3),  # noqa: B008
        lr_schedule: LearningRateSchedule = Cosine(1.0, 0.0),  # noqa: B008
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        if metrics is None:
            metrics = {"r2": R2Score(), "mae": MeanAbsoluteError()}
        super().__init__(penalties, apply, dual_averaging, optimizer, lr_schedule, metrics)
        self.model = model

    def forward(self, x: Any) -> Tensor:
        """Return the predictions, in the model's shape."""
        output: Tensor = self.model(x)
        return output

    def predict(self, x: Any) -> Tensor:
        """Return the predictions, in the model's shape."""
        output: Tensor = self(x)
        return output

    def _check(self, x: Any, y: Tensor) -> Tensor:
        if isinstance(x, Tensor) and (y.dim() == 0 or len(x) != len(y)):
            raise ValueError(f"there are {len(x)} inputs, and targets of shape {tuple(y.shape)}")
        return y

    def _losses(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        return (output - check_targets(y, output)).square().reshape(len(output), -1).mean(1), None

    def _measured(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        y = check_targets(y, output)
        return (output[:, 0], y[:, 0]) if output.dim() == 2 and output.shape[1] == 1 else (output, y)
