"""What people write by hand, and what other packages offer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def tutorial(params: Sequence[Tensor], strength: float, order: int) -> None:
    """The loop of most tutorials; ``torch.norm(p, 2)`` is the norm, not its square."""
    loss = strength * sum(torch.norm(p, order) for p in params)
    loss.backward()


def absolute_sum(params: Sequence[Tensor], strength: float) -> None:
    loss = strength * sum(p.abs().sum() for p in params)
    loss.backward()


def add_loss(params: Sequence[Tensor], strength: float) -> None:
    """Keras' form, written in torch: each layer adds a term to a list, and the list is summed."""
    losses = [strength * torch.sum(torch.square(p)) for p in params]
    torch.stack(losses).sum().backward()


@torch.no_grad()
def group_loop(weights: Sequence[Tensor], threshold: float) -> None:
    """The plain proximal loop, one group at a time."""
    for weight in weights:
        for group in weight:
            group.mul_(torch.clamp(1 - threshold / group.norm(), min=0))


def proxtorch_l1(weights: Sequence[Tensor], threshold: float) -> Callable[[], None]:
    from proxtorch.operators import L1

    operator = L1(threshold)

    @torch.no_grad()
    def run() -> None:
        for weight in weights:
            weight.copy_(operator.prox(weight, 1.0))

    return run


def proxtorch_groups(weights: Sequence[Tensor], threshold: float) -> Callable[[], None]:
    from proxtorch.operators import GroupLasso

    @torch.no_grad()
    def run() -> None:
        for weight in weights:
            operator = GroupLasso(threshold, [weight[0].numel()] * len(weight))
            weight.copy_(operator.prox(weight.view(-1), 1.0).view(weight.shape))

    return run


def torch_pruning(weights: Sequence[Tensor]) -> Callable[[], None]:
    """``regularize`` of its group lasso pruner, which only adds a gradient."""
    import torch_pruning as tp

    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(_layer(weight) for weight in weights)

        def forward(self, inputs: Sequence[Tensor]) -> list[Tensor]:
            return [layer(x) for layer, x in zip(self.layers, inputs, strict=True)]

    model = Parallel()
    example = [torch.randn(1, w.shape[1], *w.shape[2:]) for w in weights]
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    pruner = tp.pruner.GroupNormPruner(model, [example], importance, pruning_ratio=0.5)
    pruner.update_regularizer()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return lambda: pruner.regularize(model)


def _layer(weight: Tensor) -> nn.Module:
    if weight.dim() == 4:
        return nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], bias=False)
    return nn.Linear(weight.shape[1], weight.shape[0], bias=False)
