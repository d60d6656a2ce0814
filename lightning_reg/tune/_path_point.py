"""One point of a path in a Trainer: it starts warm, and stops once it is solved, or gets no better."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_reg.apply import Term
from lightning_reg.apply.dual_averaging import is_average
from lightning_reg.hosts.both_namespaces import BothCallback
from lightning_reg.penalties import Penalty
from lightning_reg.tune._plateau import HALVINGS, Plateau
from lightning_reg.tune._whole_data import WholeData
from lightning_reg.tune.stationarity import residual

__all__ = ["PathPoint"]

#: Epochs without progress, after which the learning rate is halved.
WAIT = 8
#: How far the mean of an epoch's losses with the penalty must fall, as a share of the lowest, to be progress.
PROGRESS = 1e-3


class PathPoint(BothCallback):
    """Gives the optimizer its state, and ends training at a residual or without progress.

    Args:
        penalty: with this point's strength.
        tolerance: of the residual, as a share of the strength.
        optimizer_state: of ``Optimizer.state_dict()["state"]``, or None for a cold start.
        patience: epochs without a smaller ``measure()``, after which the best epoch's state is put back.
        measure: the validation loss as the module is.
        whole: looks at all of the data after each epoch of several steps, and puts a solution back.

    Attributes:
        residual: of the weights at the end: of all of the data, or from the mean of the epoch's gradients.
        steps: optimizer steps.
        best_epoch: the one that was put back, counted from 1; None without patience.
        state: the optimizer's at the end.
    """

    def __init__(
        self,
        penalty: Penalty,
        tolerance: float,
        optimizer_state: Any = None,
        *,
        patience: int | None = None,
        measure: Callable[[], float] | None = None,
        whole: WholeData | None = None,
    ) -> None:
        super().__init__()
        self.penalty = penalty
        self.strength = float(penalty.strength)  # type: ignore[arg-type]
        self.tolerance = tolerance
        self.optimizer_state = optimizer_state
        self.patience = patience
        self.measure = measure
        self.whole = whole
        self.residual = float("inf")
        self.steps = 0
        self.best_epoch: int | None = None
        self.state: Any = None
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._count = 0
        self._solution: dict[nn.Parameter, Tensor] = {}
        self._lowest = float("inf")
        self._best: tuple[float, Any, Any] | None = None
        self._plateau: Plateau | None = Plateau(PROGRESS, WAIT)
        self._losses: list[Tensor] = []

    @property
    def converged(self) -> bool:
        """Whether the residual is within the tolerance."""
        return self.residual <= self.tolerance * (self.strength or 1.0)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the optimizer's state, its learning rate excepted."""
        if len(trainer.optimizers) != 1:
            raise ValueError(
                f"a path needs one optimizer, and {type(pl_module).__name__} has {len(trainer.optimizers)}; "
                "train such a model with PenaltyCallback, a strength at a time"
            )
        self._term = Term(self.penalty, pl_module, in_place=True)
        if self.optimizer_state is not None:
            (optimizer,) = trainer.optimizers
            optimizer.load_state_dict({**optimizer.state_dict(), "state": self.optimizer_state})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at all of the data where an epoch has several steps: the warm start may be a solution."""
        if trainer.num_training_batches <= trainer.accumulate_grad_batches:
            self.whole = self._plateau = None
        if trainer.lr_scheduler_configs or self.whole is not None:
            self._plateau = None
        if self.whole is not None:
            self.whole.look(0, last=False)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Sum the epoch's gradients; after its last, look how far the weights are from a solution."""
        self.steps += 1
        if self.whole is not None:
            return
        self._count += 1
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None or not parameter.requires_grad:
                    continue
                if parameter in self._sums:
                    self._sums[parameter].add_(parameter.grad)
                else:
                    self._sums[parameter] = parameter.grad.detach().clone()
        if trainer.is_last_batch:
            means = {parameter: total.div_(self._count) for parameter, total in self._sums.items()}
            self.residual = residual(self._term, means, self.strength)
            self._sums, self._count = {}, 0
            if self.converged:  # these weights; the step that is about to be taken may leave them
                self._solution = {p: p.detach().clone() for p in pl_module.parameters() if p.requires_grad}
                trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss of each batch."""
        if self._plateau is not None and isinstance(outputs, dict) and "loss" in outputs:
            self._losses.append(outputs["loss"].detach())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop at a solution; keep the best epoch, and stop when there has been none for long."""
        if self.whole is not None:
            self._look(self.whole, trainer)
        elif self._plateau is not None and self._losses:
            with torch.no_grad():
                losses, self._losses = torch.stack(self._losses), []
                objective = losses.mean() + self._term.value(self.strength).to(losses)
            self._plateau.look_(float(objective), trainer.optimizers[0])
            if self._plateau.halvings == HALVINGS:
                trainer.should_stop = True
        if self.patience is None or self.measure is None:
            return
        (optimizer,) = trainer.optimizers
        epoch, loss = trainer.current_epoch + 1, self.measure()
        if loss < self._lowest or self.best_epoch is None:
            self._lowest, self.best_epoch = loss, epoch
            self._best = deepcopy((self.residual, pl_module.state_dict(), optimizer.state_dict()))
        elif epoch - self.best_epoch >= self.patience:
            trainer.should_stop = True

    def _look(self, whole: WholeData, trainer: Trainer) -> None:
        epoch = trainer.current_epoch + 1
        if not whole.solved:
            self.residual = whole.look(epoch, last=epoch == trainer.max_epochs)
        if whole.solved:
            whole.put_back_()
            self.residual = whole.lowest
            trainer.should_stop = True
        elif not trainer.lr_scheduler_configs:
            whole.slow_down_(trainer.optimizers[0])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the solution back, or the best epoch; keep the optimizer's state for the next point.

        That is after the penalty's own, which looks whether the zeros of the last step have stayed.
        """
        with torch.no_grad():
            for parameter, value in self._solution.items():
                parameter.copy_(value.to(parameter))
        (optimizer,) = trainer.optimizers
        if self._best is not None:
            self.residual, weights, state = self._best
            pl_module.load_state_dict(weights)
            optimizer.load_state_dict(state)
        self.state = optimizer.state_dict()["state"]


def rescaled(state: Any, ratio: float) -> Any:
    """Return an optimizer's state for a strength ``ratio`` times as large.

    At a solution the gradient of every weight that is not zero is λ times the penalty's slope, so first
    moments go with λ and second moments with its square. Stale moments would kick the weights away from where
    they are: measured, they cost as many steps as a cold start. Averages of a proximal step begin anew.
    """
    powers = {"momentum_buffer": 1, "exp_avg": 1, "grad_avg": 1, "exp_avg_sq": 2, "square_avg": 2, "sum": 2}
    powers["max_exp_avg_sq"] = 2
    return {
        key: {
            name: value * ratio ** powers[name]
            if name in powers and isinstance(value, torch.Tensor)
            else value
            for name, value in slots.items()
            if not is_average(name)  # of another λ's gradients: it would hold zeros of another problem
        }
        for key, slots in state.items()
    }
