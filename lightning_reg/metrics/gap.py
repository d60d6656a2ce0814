"""How much worse a model does on validation data than on training data."""

from __future__ import annotations

from typing import Any, Literal, final

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.wrappers.abstract import WrapperMetric

from lightning_reg.metrics.functional import generalization_gap

__all__ = ["GeneralizationGap"]


@final
class GeneralizationGap(WrapperMetric):
    """The gap of any metric between training and validation: positive where the model overfits.

    Args:
        metric: what is compared; two copies of it are updated.
        higher_is_better: whether it is a score and not a loss; the metric's own word where None.
        kwargs: of :class:`torchmetrics.Metric`.

    Raises:
        TypeError: ``metric`` is not a metric.
        ValueError: the metric does not say whether higher is better, nor does the caller.

    >>> import torch
    >>> from torchmetrics import MeanSquaredError
    >>> gap = GeneralizationGap(MeanSquaredError())
    >>> gap.update(torch.tensor([1.0]), torch.tensor([1.0]), stage="train")
    >>> gap.update(torch.tensor([1.0]), torch.tensor([3.0]), stage="validation")
    >>> gap.compute()
    tensor(4.)
    """

    is_differentiable = False

    def __init__(self, metric: Metric, higher_is_better: bool | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(metric, Metric):
            raise TypeError(f"GeneralizationGap(metric={metric!r}) is not a torchmetrics.Metric")
        if higher_is_better is None:
            higher_is_better = metric.higher_is_better
        if higher_is_better is None:
            raise ValueError(
                f"{type(metric).__name__} does not say whether higher is better; give higher_is_better="
            )
        self.score = higher_is_better
        self.train_metric = metric.clone()
        self.validation_metric = metric.clone()
        self.train_metric.reset()
        self.validation_metric.reset()

    def update(self, *args: Any, stage: Literal["train", "validation"], **kwargs: Any) -> None:
        """Update one of the two copies with the metric's own arguments.

        Raises:
            ValueError: ``stage`` is neither ``"train"`` nor ``"validation"``.
        """
        if stage not in ("train", "validation"):
            raise ValueError(f"stage={stage!r} is unknown; it is 'train' or 'validation'")
        (self.train_metric if stage == "train" else self.validation_metric).update(*args, **kwargs)

    def compute(self) -> Tensor:
        """Return the gap."""
        return generalization_gap(self.train_metric.compute(), self.validation_metric.compute(), self.score)

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Update; a batch of one stage has no gap of its own."""
        self.update(*args, **kwargs)

    def reset(self) -> None:
        """Forget both stages."""
        self.train_metric.reset()
        self.validation_metric.reset()
        super().reset()
