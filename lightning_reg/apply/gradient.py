"""``apply="gradient"``: add the closed-form gradient, once per optimizer step, before clipping."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_reg.apply.term import Term
from lightning_reg.select.parameters import Selected
from lightning_reg.tensors.grad_mode import without_grad
from lightning_reg.tensors.shards import is_sharded, local_parts, placed_as

__all__ = ["add_gradient_", "add_to_"]


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
    parameters = [p for _, stepped in term.stepped(optimizer) for p in stepped]
    gradients: list[Tensor] = []
    for parameter in parameters:
        gradient = parameter.grad
        assert gradient is not None
        if term.sharded and is_sharded(gradient):
            # it may hold partial sums, to which a part of the penalty's would be added more than once
            gradient = parameter.grad = placed_as(gradient, parameter)
        elif gradient.is_sparse:  # the sum is dense, as autograd's would be
            gradient = parameter.grad = gradient.to_dense()
        gradients.append(gradient)
    if term.in_use.computed or term.sharded:
        add_to_(term, parameters, lambda parameter: parameter.grad, strength, alpha)
    elif parameters:
        term.bound.add_gradient_(gradients, parameters, strength, alpha)


@without_grad
def add_to_(
    term: Term,
    parameters: Sequence[nn.Parameter],
    target: Callable[[nn.Parameter], Tensor | None],
    strength: float,
    alpha: float = 1.0,
    at_rest: bool = False,
) -> None:
    """``target(p) += alpha · ∂Ω/∂p``, through the map where a layer computes its weight from parameters.

    Args:
        term: the penalty.
        parameters: those of its selection to act on.
        target: where the gradient of a parameter goes; None drops that of one behind a computed weight.
        strength: λ.
        alpha: a factor.
        at_rest: do not move on what the penalty learns by its gradients.
    """
    weights: list[Tensor] = []
    gradients: list[Tensor] = []
    maps: list[tuple[Selected, Tensor, Tensor]] = []
    for parameter in parameters:
        computed = term.in_use.of(parameter)
        if computed is None:
            into = target(parameter)
            assert into is not None
            weights.append(parameter)
            gradients.append(into)
            continue
        with torch.enable_grad():
            used = computed.used()
        weights.append(used.detach())
        gradients.append(torch.zeros_like(used))
        maps.append((computed, used, gradients[-1]))
    bound = term.in_use.standing_in(parameters, weights) if maps else term.bound
    if at_rest:
        bound = bound.at_rest()
    if bound.elementwise and any(map(is_sharded, weights)):
        weights, gradients = local_parts(weights), local_parts(gradients)
    if weights:
        bound.add_gradient_(gradients, weights, strength, alpha)
    for computed, used, gradient in maps:
        sources = [p for p in computed.sources if p.requires_grad]
        found = torch.autograd.grad(used, sources, gradient, allow_unused=True)
        for source, part in zip(sources, found, strict=True):
            whole = target(source)
            if whole is not None and part is not None:
                whole.add_(part)
