"""How much each weight matters to what has been learned: the diagonal of Fisher's information."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg.select.parameters import Select, select_parameters

__all__ = ["fisher_diagonal"]


def fisher_diagonal(
    model: nn.Module, batches: Iterable[Any], loss: Callable[[nn.Module, Any], Tensor], select: Select = "all"
) -> dict[str, Tensor]:
    r"""Return :math:`F_i = \operatorname{mean}_b (\partial\ell_b/\partial w_i)^2` by parameter name.

    This is the empirical Fisher information where each batch is one sample and ``loss`` its negative log
    likelihood; larger batches give less than that. The model is left as it is, also its gradients.

    Args:
        model: after it has learned a task; its mode is not changed.
        batches: samples of that task.
        loss: ``(model, batch) -> scalar``.
        select: which parameters.

    Raises:
        ValueError: there are no batches.

    >>> from lightning_reg import L2SP
    >>> model = nn.Linear(2, 1, bias=False)
    >>> samples = [torch.tensor([[3.0, 1.0]])]
    >>> importance = fisher_diagonal(model, samples, lambda model, x: model(x).sum())
    >>> importance["weight"]
    tensor([[9., 1.]])
    >>> penalty = L2SP(1.0, importance=importance)  # in the next task

    References:
        Kirkpatrick et al., *Overcoming Catastrophic Forgetting in Neural Networks*, PNAS 114(13), 2017.
    """
    selected = [s for s in select_parameters(model, select) if s.parameter.requires_grad]
    weights = [s.parameter for s in selected]
    totals = [torch.zeros_like(weight) for weight in weights]
    count = 0
    for batch in batches:
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss(model, batch), weights, allow_unused=True)
        for total, gradient in zip(totals, gradients, strict=True):
            if gradient is not None:
                total.addcmul_(gradient, gradient)
        count += 1
    if not count:
        raise ValueError("fisher_diagonal(...) was given no batches")
    return {s.name: total / count for s, total in zip(selected, totals, strict=True)}
