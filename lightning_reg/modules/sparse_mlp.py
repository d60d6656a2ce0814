"""A network that chooses its input features."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, Metric, R2Score

from lightning_reg.apply import DualAveraging
from lightning_reg.apply.optimizers import has_one_step
from lightning_reg.hosts.trainer import values_this_step
from lightning_reg.modules._batch import check_features, check_labels, check_targets
from lightning_reg.modules._feature_hierarchy import FeatureHierarchy
from lightning_reg.modules._supervised import LearningRateSchedule, MakeOptimizer, SupervisedModule
from lightning_reg.modules.classifier import classification_metrics
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.schedules.shapes import Cosine

__all__ = ["SparseMLP"]


@final
class SparseMLP(SupervisedModule):
    r"""A multilayer perceptron that uses few input features, as LassoNet does.

    A linear skip layer θ goes past the hidden layers, and a feature enters the first of them only as far as
    it enters the skip layer: :math:`\min\; loss + \lambda\sum_j\|\theta_j\|_2` subject to
    :math:`\|W_j\|_\infty \le M\|\theta_j\|_2`. After each step the hierarchical proximal operator makes whole
    features exactly zero; :meth:`selected_features` lists those left.

    Args:
        in_features: features of ``x``, which is ``(batch, in_features)``; standardise them.
        outputs: classes, or outputs of a regression.
        hidden: widths of the hidden layers.
        strength: λ, a number or a schedule; one that grows, as in ``Exponential(1e-3, 1.0)``, goes from dense
            to sparse as LassoNet's path does; at 0 the layers are free.
        hierarchy: M; 0 is a linear model, and a large one leaves the hidden layers free.
        task: ``"classification"`` or ``"regression"``.
        dropout: rate after each hidden layer.
        dual_averaging: as in :class:`~lightning_reg.callbacks.PenaltyCallback`: whether an average of each
            weight's gradients decides which features are zero, and how much of the run it looks back on.
        optimizer: one with a single step for all weights, that is ``SGD``.
        lr_schedule: a schedule of ours as a factor of the learning rate, a scheduler's class, or None.
        metrics: per stage; the task's usual ones where None.

    Raises:
        ValueError: an argument out of range; at fit start, an optimizer other than SGD.

    >>> SparseMLP(30, 2, strength=0.01)(torch.zeros(4, 30)).shape
    torch.Size([4, 2])

    References:
        Lemhadri, Ruan, Abraham and Tibshirani, *LassoNet: A Neural Network with Feature Sparsity*, JMLR
        22(127), 2021.
    """

    def __init__(
        self,
        in_features: int,
        outputs: int,
        hidden: Sequence[int] = (64,),
        *,
        strength: ScheduleLike,
        hierarchy: float = 10.0,
        task: Literal["classification", "regression"] = "classification",
        dropout: float = 0.0,
        dual_averaging: DualAveraging = True,
        optimizer: MakeOptimizer = partial(torch.optim.SGD, lr=1e-2, momentum=0.9),  # noqa: B008
        lr_schedule: LearningRateSchedule = Cosine(1.0, 0.1),  # noqa: B008
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        if task not in ("classification", "regression"):
            raise ValueError(f"task={task!r} is unknown; it is 'classification' or 'regression'")
        if not hidden:
            raise ValueError("hidden=() has no layer; give some widths, or use LogisticRegression")
        if metrics is None:
            classifies = task == "classification"
            metrics = (
                classification_metrics(outputs)
                if classifies
                else {"r2": R2Score(), "mae": MeanAbsoluteError()}
            )
        penalty = FeatureHierarchy(strength, hierarchy)
        super().__init__(penalty, "proximal", dual_averaging, optimizer, lr_schedule, metrics)
        self.in_features, self.outputs, self.task = in_features, outputs, task
        self.skip = nn.Linear(in_features, outputs)
        widths = [in_features, *hidden]
        layers: list[nn.Module] = []
        for width, following in itertools.pairwise(widths):
            layers += [nn.Linear(width, following), nn.ReLU(), nn.Dropout(dropout)]
        self.first = layers[0]
        self.rest = nn.Sequential(*layers[1:], nn.Linear(widths[-1], outputs, bias=False))

    @property
    def strength(self) -> ScheduleLike:
        """λ; another one acts from the next step on."""
        return self._penalty.strength

    @strength.setter
    def strength(self, value: ScheduleLike) -> None:
        self.penalties = (replace(self._penalty, strength=value),)

    @property
    def hierarchy(self) -> float:
        """M; another one acts from the next step on."""
        return self._penalty.hierarchy

    @hierarchy.setter
    def hierarchy(self, value: float) -> None:
        self.penalties = (replace(self._penalty, hierarchy=value),)

    @property
    def _penalty(self) -> FeatureHierarchy:
        (penalty,) = self.penalties
        assert isinstance(penalty, FeatureHierarchy)
        return penalty

    def forward(self, x: Tensor) -> Tensor:
        """Return logits or values, ``(batch, outputs)``."""
        output: Tensor = self.skip(x) + self.rest(self.first(x))
        return output

    def predict(self, x: Tensor) -> Tensor:
        """Return probabilities ``(batch, classes)``, or values ``(batch, outputs)``."""
        check_features(x, self.in_features)
        output: Tensor = self(x)
        return torch.softmax(output, 1) if self.task == "classification" else output

    def selected_features(self) -> list[int]:
        """Return the positions of the features in use."""
        used: list[int] = (self.skip.weight != 0).any(0).nonzero()[:, 0].tolist()
        return used

    def on_fit_start(self) -> None:
        """Refuse an optimizer, or frozen layers, that the proximal operator is not known for."""
        for optimizer in self.trainer.optimizers:
            if not has_one_step(optimizer):
                raise ValueError(
                    f"SparseMLP's proximal operator is known for one step, and {type(optimizer).__name__} "
                    "takes a step of its own for each weight; use SGD"
                )
        pair = {self.skip.weight, self.first.weight}
        groups = [g for optimizer in self.trainer.optimizers for g in optimizer.param_groups]
        if not any(pair <= {p for p in group["params"] if p.requires_grad} for group in groups):
            raise ValueError(
                "SparseMLP's proximal operator moves skip.weight and first.weight in one step, and no "
                "parameter group trains both; freeze neither, and give them one group"
            )
        super().on_fit_start()

    def on_train_batch_end(self, *given: Any) -> None:
        """Log the number of features in use."""
        if values_this_step(self.trainer):
            self.log("features", float(len(self.selected_features())))

    def _check(self, x: Any, y: Tensor) -> Tensor:
        check_features(x, self.in_features)
        if self.task == "classification":
            return check_labels(y, len(x), self.outputs)
        return check_targets(y, torch.empty(len(x), self.outputs, dtype=x.dtype, device=x.device))

    def _losses(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.task == "classification":
            return nn.functional.cross_entropy(output, y, reduction="none"), None
        return (output - y).square().sum(1), None

    def _measured(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self.task == "classification":
            return torch.softmax(output, 1), y
        return (output[:, 0], y[:, 0]) if self.outputs == 1 else (output, y)
