r"""The hierarchical proximal operator of LassoNet.

Reference: Lemhadri, Ruan, Abraham and Tibshirani, *LassoNet: A Neural Network with Feature Sparsity*, JMLR
22(127), 2021, Algorithm 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_reg.tensors.grad_mode import without_grad
from lightning_reg.tensors.precision import norms, wide

__all__ = ["hierarchical_prox", "hold_features_"]


def hierarchical_prox(
    skip: Tensor, hidden: Tensor, threshold: float, hierarchy: float
) -> tuple[Tensor, Tensor]:
    r"""Return :math:`\arg\min \tfrac12\|\theta-v\|^2 + \tfrac12\|W-U\|^2 + \tau\sum_j\|\theta_j\|_2` under a hierarchy.

    The constraint, for each input feature j, is :math:`\|W_j\|_\infty \le M\|\theta_j\|_2`: the hidden layer
    sees a feature only as far as the skip layer does.

    Args:
        skip: :math:`v`, the skip layer's weight, ``(outputs, features)``.
        hidden: :math:`U`, the first hidden layer's weight, ``(units, features)``.
        threshold: :math:`\tau \ge 0`, step times strength.
        hierarchy: :math:`M > 0`.

    >>> skip, hidden = hierarchical_prox(torch.tensor([[2.0, 0.1]]), torch.tensor([[0.5, 0.0]]), 0.5, 10.0)
    >>> skip
    tensor([[1.5000, 0.0000]])
    >>> hidden
    tensor([[0.5000, 0.0000]])
    """  # noqa: E501
    length = norms(skip, 0)
    moduli = hidden.abs().sort(dim=0, descending=True).values
    partial_sums = torch.cat([torch.zeros_like(moduli[:1]), moduli.cumsum(0)])
    m = torch.arange(len(partial_sums), device=hidden.device, dtype=hidden.dtype)[:, None]
    bounds = (
        hierarchy
        / (1.0 + m * hierarchy**2)
        * torch.clamp(length + hierarchy * partial_sums - threshold, min=0.0)
    )
    # the first m whose bound is not below the next largest weight
    following = torch.cat([moduli, torch.zeros_like(moduli[:1])])
    index = (following > bounds).sum(0, keepdim=True)
    bound = bounds.gather(0, index)[0]
    direction = skip / torch.where(length > 0, length, 1.0)
    return direction * (bound / hierarchy), hidden.sign() * torch.minimum(hidden.abs(), bound)


@without_grad
def hold_features_(
    weights: tuple[Tensor, Tensor],
    averages: tuple[Tensor, Tensor],
    threshold: float,
    hierarchy: float,
    share: float,
) -> None:
    r"""Set input features to zero where the averages say so; the proximal step comes after.

    As :func:`~lightning_reg.prox.dual_averaging.hold_groups_`, of skip layer and hidden layer together. A
    feature at zero leaves it when :math:`\|s_j\|_2 + M\|S_j\|_1 > 1`, which is where the proximal operator
    does not give 0.

    Args:
        weights: those of the skip and the hidden layer, changed in place after the optimizer's step.
        averages: :math:`s` and :math:`S`, shaped as these, in units of λ; changed in place.
        threshold: :math:`\tau > 0`, step times strength.
        hierarchy: :math:`M`.
        share: :math:`a_t` in (0, 1].

    >>> weights = torch.tensor([[0.3, 0.3]]), torch.tensor([[0.0, 0.0]])
    >>> averages = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    >>> hold_features_(weights, averages, threshold=0.1, hierarchy=10.0, share=0.25)
    >>> weights[0], averages[0]
    (tensor([[0.3000, 0.0000]]), tensor([[1.0000, 0.7500]]))
    """
    for weight, average in zip(weights, averages, strict=True):
        average.lerp_(wide(weight).to(average.dtype) / threshold, share)
    rests = hierarchical_prox(*averages, 1.0, hierarchy)
    unused = (rests[0] == 0).all(0)
    for weight, average, rest in zip(weights, averages, rests, strict=True):
        average.sub_(rest)
        weight.masked_fill_(unused, 0.0)
