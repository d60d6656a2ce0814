"""How far weights trained in batches are from the solution on all of the data, and the way there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_reg.apply import Term
from lightning_reg.tune._loss import Loss, mean_gradient_
from lightning_reg.tune._plateau import Plateau
from lightning_reg.tune.predictor import predict_
from lightning_reg.tune.stationarity import residual

__all__ = ["WholeData"]

#: Looks without progress, after which the learning rate is halved.
WAIT = 4
#: How far the residual must fall, as a share of the lowest before, to count as progress.
PROGRESS = 0.3


@dataclass
class WholeData:
    """Looks at all of the data between epochs of mini-batches, whose own gradients are too noisy to tell.

    Args:
        module: in training.
        term: the penalty on it.
        batches: of the data.
        loss: ``(module, batch) -> loss``, a mean over the batch.
        strength: λ.
        goal: the residual that ends a point.
        limit: of gradients in a Newton step; None where none is taken.

    Attributes:
        gradients: of all of the data, that it has taken.
        lowest: the smallest residual that it has seen.
    """

    module: nn.Module
    term: Term
    batches: Iterable[Any]
    loss: Loss
    strength: float
    goal: float
    limit: int | None
    gradients: int = field(default=0, init=False)
    lowest: float = field(default=float("inf"), init=False)
    _solution: dict[nn.Parameter, Tensor] = field(default_factory=dict, init=False)
    _plateau: Plateau = field(default_factory=lambda: Plateau(PROGRESS, WAIT), init=False)

    @property
    def solved(self) -> bool:
        """Whether a solution has been seen."""
        return self.lowest <= self.goal

    def look(self, epochs: int, last: bool) -> float:
        """Return the residual now; after 4, 8, 16, ... epochs, Newton steps try to make it small.

        Args:
            epochs: that have been trained.
            last: whether there are no more.
        """
        found = self._residual()
        due = last or (epochs >= 4 and epochs & (epochs - 1) == 0)
        if found > self.goal and self.limit is not None and due:
            self.gradients += predict_(
                self.module, self.term, self.batches, self.loss, self.strength, self.goal, self.limit
            )
            found = self._residual()
        self.lowest = min(self.lowest, found)
        if self.solved:
            self._solution = {p: p.detach().clone() for p in self.module.parameters() if p.requires_grad}
        return found

    def slow_down_(self, optimizer: Optimizer) -> None:
        """Halve the learning rate where the residual has stopped falling: noise keeps it where it is."""
        self._plateau.look_(self.lowest, optimizer)

    @torch.no_grad()
    def put_back_(self) -> None:
        """Give the module the solution, if one has been seen."""
        for parameter, value in self._solution.items():
            parameter.copy_(value)

    def _residual(self) -> float:
        mean_gradient_(self.module, self.batches, self.loss)
        self.gradients += 1
        found = {p: p.grad for p in self.module.parameters() if p.requires_grad and p.grad is not None}
        distance = residual(self.term, found, self.strength)
        self.module.zero_grad()
        return distance
