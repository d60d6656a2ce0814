"""``apply="gradient"``: add the closed-form gradient, once per optimizer step, before clipping."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.apply.term import Term
from lightning_reg.tensors.precision import without_grad
from lightning_reg.tensors.shards import is_sharded, local_parts, placed_as

__all__ = ["add_gradient_"]


@without_grad
def add_gradient_(term: Term, optimizer: Optimizer, strength: float, scale: float = 1.0) -> None:
    """``p.grad += ∂Ω(p)`` for each tensor that ``optimizer`` is about to step.

    What adding the term to the loss does, without its graph. Gradients that a GradScaler has left scaled get
    the penalty's on the same scale: ``scale``, or what it tells a fused optimizer inside its step.
    """
    if strength == 0.0:
        return
    told = getattr(optimizer, "grad_scale", None)
    alpha = float(told) if isinstance(told, torch.Tensor) else scale
    weights: list[Tensor] = []
    gradients: list[Tensor] = []
    sharded = False
    for _, parameters in term.stepped(optimizer):
        for parameter in parameters:
            gradient = parameter.grad
            assert gradient is not None
            if is_sharded(gradient):
                sharded = True
                # it may hold partial sums, to which a part of the penalty's would be added more than once
                gradient = placed_as(gradient, parameter)
                parameter.grad = gradient
            if gradient.is_sparse:  # the sum is dense, as autograd's would be
                parameter.grad = alpha * term.bound.gradient(parameter, strength) + gradient
            else:
                weights.append(parameter)
                gradients.append(gradient)
    if sharded and term.bound.elementwise:
        weights, gradients = local_parts(weights), local_parts(gradients)
    if weights:
        term.bound.add_gradient_(gradients, weights, strength, alpha)
