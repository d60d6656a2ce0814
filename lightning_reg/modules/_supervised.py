"""What the ready modules share: stages, metrics, optimizers, checked batches, and how penalties act."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from torchmetrics import Metric, MetricCollection, R2Score

from lightning_reg.apply import Apply, DualAveraging
from lightning_reg.hosts.trainer import run_length
from lightning_reg.modules._batch import check_finite, check_weights, split_batch
from lightning_reg.modules.regularized_module import RegularizedModule
from lightning_reg.penalties.regularizer import Regularizer
from lightning_reg.schedules.base import Schedule

__all__ = ["LearningRateSchedule", "MakeOptimizer", "ModuleApply", "SupervisedModule", "adam"]

#: An optimizer's class, or any callable that makes one from parameters.
MakeOptimizer: TypeAlias = Callable[[Iterable[nn.Parameter]], Optimizer]

#: A factor of the learning rate over the run, or a scheduler's class, or a callable that makes one.
LearningRateSchedule: TypeAlias = "Schedule | Callable[[Optimizer], LRScheduler | ReduceLROnPlateau] | None"

#: How the penalties of a ready module act: in every one of the four ways.
ModuleApply: TypeAlias = Apply


def adam(learning_rate: float) -> MakeOptimizer:
    """Return what makes an Adam with this learning rate."""
    return partial(torch.optim.Adam, lr=learning_rate)


class SupervisedModule(RegularizedModule):
    """A RegularizedModule for batches ``(x, y)`` or ``(x, y, sample_weight)``, with all four stages.

    Per stage it logs ``<stage>/loss``, without penalties, and ``<stage>/<metric>``, where the stage is
    ``train``, ``val`` or ``test``. A batch with NaN, with shapes that do not fit or with labels out of range
    raises before the forward pass, and leaves the model as it was; an empty data set raises at fit start.

    Sample weights are relative, as in scikit-learn: the loss is their weighted mean over all of the data. A
    training batch divides by its rows and by the mean weight of all rows trained so far, in this process,
    since its own weights' sum would take from a heavy row in a batch of light ones what it weighs.
    """

    def __init__(
        self,
        penalties: Regularizer | Sequence[Regularizer],
        apply: ModuleApply,
        dual_averaging: DualAveraging,
        optimizer: MakeOptimizer,
        lr_schedule: LearningRateSchedule,
        metrics: Mapping[str, Metric],
    ) -> None:
        super().__init__(penalties, apply, dual_averaging)
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self._weighed: Tensor | None = None  # the weights' sum and the rows trained so far
        self.stage_metrics = nn.ModuleDict(
            # nn.ModuleDict has a method `train`
            {f"{stage}_": MetricCollection(dict(metrics)).clone() for stage in ("train", "val", "test")}
        )

    # --- what a module of this family gives ----------------------------------------------------------

    @abstractmethod
    def _check(self, x: Any, y: Tensor) -> Tensor:
        """Check inputs and targets before the forward pass; return the targets, ready for the loss."""

    @abstractmethod
    def _losses(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the loss of each sample, and what each counts in the mean beside its sample weight."""

    @abstractmethod
    def _measured(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return predictions and targets as the metrics take them."""

    # --- stages --------------------------------------------------------------------------------------

    def task_loss(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the mean loss of a training batch, by sample weight where the batch has one."""
        return self._step(batch, batch_idx, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log loss and metrics under ``val/``."""
        self._step(batch, batch_idx, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log loss and metrics under ``test/``."""
        self._step(batch, batch_idx, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the predictions of a batch of inputs, with or without targets."""
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        check_finite("the inputs", x, f"batch {batch_idx}")
        return self.predict(x)

    @abstractmethod
    def predict(self, x: Any) -> Tensor:
        """Return what the module predicts for inputs: labels, probabilities or values, as its class says."""

    def on_train_epoch_end(self) -> None:
        """Log the epoch's metrics."""
        super().on_train_epoch_end()
        self._log_metrics("train")

    def on_validation_epoch_end(self) -> None:
        """Log the epoch's metrics."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the epoch's metrics."""
        self._log_metrics("test")

    def _step(self, batch: Any, batch_idx: int, stage: str) -> Tensor:
        x, y, weight = split_batch(batch)
        where = f"{stage} batch {batch_idx}"
        check_finite("the inputs", x, where)
        check_finite("the targets", y, where)
        y = self._check(x, y)
        output = self(x)
        losses, counts = self._losses(output, y)
        if weight is not None:
            check_finite("the sample weights", weight, where)
            weight = check_weights(weight, len(losses)).to(losses.dtype)
            losses = losses * weight
            counts = weight if counts is None else counts * weight
        total: Any = len(losses) if counts is None else counts.sum()
        loss: Tensor = losses.sum() / total
        logged = loss.detach()
        if weight is not None and stage == "train" and self._trainer is not None and self.trainer.training:
            loss = loss / self._share(weight)
        if torch.isnan(loss):
            raise ValueError(
                f"the loss of {where} is NaN though the batch is finite; the weights have not been stepped: "
                "lower the learning rate, or look at what they have become"
            )
        metrics: Any = self.stage_metrics[f"{stage}_"]
        if self._trainer is not None and not self._trainer.barebones:
            if len(metrics):
                metrics.update(*self._measured(output.detach(), y))
            size: Any = float(total)
            self.log(f"{stage}/loss", logged, on_step=False, on_epoch=True, batch_size=size)
        return loss

    def _share(self, weight: Tensor) -> Tensor:
        """The mean weight of the rows trained so far, as a share of this batch's."""
        mine = torch.stack([weight.detach().sum().double(), weight.new_tensor(len(weight)).double()])
        self._weighed = mine if self._weighed is None else self._weighed.to(mine.device) + mine
        of_batch, of_all = mine[0] / mine[1], self._weighed[0] / self._weighed[1]
        return (of_all / of_batch).to(weight.dtype)

    def size_of_batch(self, batch: Any) -> float:
        """Return what a batch counts in a mean over all of the data: its sample weights' sum, or its rows."""
        _, y, weight = split_batch(batch)
        return float(len(y) if weight is None else weight.sum())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the sample weights were."""
        super().on_save_checkpoint(checkpoint)
        if self._weighed is not None:
            checkpoint["sample_weights"] = self._weighed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it up."""
        super().on_load_checkpoint(checkpoint)
        self._weighed = checkpoint.get("sample_weights")

    def _log_metrics(self, stage: str) -> None:
        metrics: Any = self.stage_metrics[f"{stage}_"]
        for name, metric in metrics.items(keep_base=True):
            undefined = isinstance(metric, R2Score) and int(metric.total) < 2
            if metric.update_called and not undefined:
                self.log(f"{stage}/{name}", metric.compute())
        metrics.reset()

    # --- optimizers and penalties --------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the optimizer, and the learning rate's schedule, over steps where it is one of ours."""
        optimizer = self.optimizer(parameter for parameter in self.parameters() if parameter.requires_grad)
        schedule = self.lr_schedule
        if schedule is None:
            return optimizer
        if isinstance(schedule, Schedule):
            factor = partial(schedule, total_steps=run_length(self.trainer))
            scheduler = {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}
        else:
            made = schedule(optimizer)
            scheduler = {"scheduler": made, "interval": "epoch"}
            if isinstance(made, ReduceLROnPlateau):
                scheduler["monitor"] = "val/loss"
        return {"optimizer": optimizer, "lr_scheduler": scheduler}  # type: ignore[return-value]

    def on_fit_start(self) -> None:
        """Say before training starts what is wrong with the data, a selection or an optimizer."""
        super().on_fit_start()
        trainer = self.trainer
        if trainer.estimated_stepping_batches == 0 and trainer.limit_train_batches != 0 and trainer.max_steps:
            raise ValueError(
                "the training data set is empty: there is no batch to fit; look at its source, and at "
                "batch_size with drop_last=True"
            )
