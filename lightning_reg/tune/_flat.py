"""All that a module trains as one vector."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg.apply import Term
from lightning_reg.tune._loss import Loss, mean_gradient_, mean_hessian
from lightning_reg.tune.stationarity import prox_of_step

__all__ = ["Flat"]


class Flat:
    """A module's weights as one vector, with the derivatives of its loss and of its penalty.

    Args:
        module: whose weights.
        term: the penalty on it.
        batches: of the data.
        loss: ``(module, batch) -> loss``, a mean over the batch.

    Attributes:
        chosen: which of the weights the penalty is on.
        gradients: how many of the whole data have been taken.
        value: the data's loss where the last one was.
    """

    def __init__(self, module: nn.Module, term: Term, batches: Iterable[Any], loss: Loss) -> None:
        self.module, self.term, self.batches, self.loss = module, term, batches, loss
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        selected = {id(s.parameter) for s in term.selected}
        self.penalized = [id(p) in selected for p in self.parameters]
        sizes = zip(self.parameters, self.penalized, strict=True)
        self.chosen = torch.cat([torch.full((p.numel(),), yes) for p, yes in sizes]).to(self.weights().device)
        self.gradients, self.value = 0, float("nan")

    def weights(self) -> Tensor:
        """Return a copy of all that is trained."""
        return torch.cat([p.detach().flatten() for p in self.parameters])

    @torch.no_grad()
    def set(self, weights: Tensor) -> None:
        """Give the module these weights."""
        for parameter, part in zip(self.parameters, self._split(weights), strict=True):
            parameter.copy_(part)

    def gradient(self, weights: Tensor) -> Tensor:
        """Return the gradient of the data's loss there."""
        self.set(weights)
        self.value = mean_gradient_(self.module, self.batches, self.loss)
        self.gradients += 1
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        return torch.cat([gradient.flatten() for gradient in found])

    def hessian(self, weights: Tensor) -> Tensor:
        """Return that of the data's loss there, in float64; each row counts as a gradient."""
        self.set(weights)
        self.gradients += len(weights)
        return mean_hessian(self.module, self.batches, self.loss, self.parameters)

    def penalty_gradient(self, weights: Tensor, strength: float) -> Tensor:
        """Return the gradient of the penalty there."""
        self.set(weights)
        found = torch.zeros_like(weights)
        chosen = [
            (p, t)
            for p, t, yes in zip(self.parameters, self._split(found), self.penalized, strict=True)
            if yes
        ]
        with torch.no_grad():
            self.term.bound.add_gradient_([t for _, t in chosen], [p for p, _ in chosen], strength)
        return found

    def proximal_step(self, weights: Tensor, gradient: Tensor, strength: float) -> Tensor:
        """Return the weights after a proximal gradient step of size 1."""
        self.set(weights)
        moved = weights - gradient
        parts = zip(self.parameters, self._split(gradient), self._split(moved), self.penalized, strict=True)
        chosen = [(p, g, m) for p, g, m, yes in parts if yes]
        after = prox_of_step(self.term, [p for p, *_ in chosen], [g for _, g, _ in chosen], strength)
        for (_, _, target), value in zip(chosen, after, strict=True):
            target.copy_(value)
        return moved

    def _split(self, vector: Tensor) -> list[Tensor]:
        parts = torch.split(vector, [p.numel() for p in self.parameters])
        return [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]
