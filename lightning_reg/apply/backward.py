"""``apply="gradient"`` where a host leaves no place between the backward pass and its clipping."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_reg.apply.term import Term
from lightning_reg.tensors.grad_mode import without_grad
from lightning_reg.tensors.shards import is_sharded, local, placed_as

__all__ = ["GradientInBackward"]


class GradientInBackward:
    """Adds a term's gradient to each tensor's as the backward pass makes it, once a step.

    The weights are the same for every backward pass of an accumulation window, so it is the first of them
    that gets the term. Under DDP the addition comes before the average over processes, and is the same on
    all: torch runs a tensor's own hooks inside its ``AccumulateGrad``, and DDP's after it.

    Args:
        term: the penalty at work.
        optimizer: only tensors that it holds get the term.
    """

    def __init__(self, term: Term, optimizer: Optimizer) -> None:
        self._term = term
        self._optimizer = optimizer
        self._strength = 0.0
        self._scale = 1.0
        self._hooks: dict[int, Any] = {}
        self._awaited: dict[int, nn.Parameter] = {}
        self._coupled: dict[int, Tensor] = {}

    def arm(self, strength: float, scale: float = 1.0) -> None:
        """Await the gradients of the next step.

        Args:
            strength: λ of that step.
            scale: the factor that a GradScaler has put on the loss.
        """
        self._strength, self._scale = strength, scale
        self._coupled = {}
        self._awaited = {id(p): p for p in self._term.trainable(self._optimizer)} if strength else {}
        for key, parameter in self._awaited.items():
            if key not in self._hooks:
                untyped: Any = parameter
                self._hooks[key] = untyped.register_post_accumulate_grad_hook(self._add)

    def remove(self) -> None:
        """Leave no trace in the parameters."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks, self._awaited, self._coupled = {}, {}, {}

    @without_grad
    def _add(self, parameter: Tensor) -> None:
        bound, key = self._term.bound, id(parameter)
        if key not in self._awaited:
            return
        if bound.couples and not self._coupled:
            self._couple()
        tensor = self._awaited.pop(key)
        gradient = tensor.grad
        assert gradient is not None
        if is_sharded(gradient):
            tensor.grad = gradient = placed_as(gradient, tensor)  # as in add_gradient_
        if bound.couples:
            tensor.grad = self._coupled.pop(key).add_(gradient)
        elif gradient.is_sparse:  # the sum is dense, as autograd's would be
            tensor.grad = self._scale * bound.gradient(tensor, self._strength) + gradient
        elif bound.elementwise:
            bound.add_gradient_([local(gradient)], [local(tensor)], self._strength, self._scale)
        else:
            bound.add_gradient_([gradient], [tensor], self._strength, self._scale)

    def _couple(self) -> None:
        """Groups that span tensors need all of them: make every gradient when the first is asked for."""
        weights: list[Tensor] = list(self._awaited.values())
        targets = [torch.zeros_like(weight) for weight in weights]
        self._term.bound.add_gradient_(targets, weights, self._strength, self._scale)
        self._coupled = dict(zip(self._awaited, targets, strict=True))
