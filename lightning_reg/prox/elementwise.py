r"""Proximal operators as pure functions.

The proximal operator of a penalty :math:`\Omega` with step :math:`\eta` is
:math:`\operatorname{prox}(w) = \arg\min_x \tfrac12\|x - w\|^2 + \eta\,\Omega(x)`. Each function takes the
product of step and strength as its threshold, returns a new tensor, and is exact at the kink: what it sets
to zero is zero.

Reference: Parikh and Boyd, *Proximal Algorithms*, Foundations and Trends in Optimization 1(3), 2014.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["shrink", "soft_threshold"]


def soft_threshold(weight: Tensor, threshold: float | Tensor) -> Tensor:
    r"""Prox of :math:`\tau\sum_i|w_i|`: :math:`\operatorname{sign}(w)\max(|w| - \tau, 0)`.

    Args:
        weight: any shape, real or complex (then the modulus shrinks and the argument stays).
        threshold: :math:`\tau \ge 0`, one number or a tensor that broadcasts against ``weight``.

    >>> soft_threshold(torch.tensor([-3.0, 0.5, 2.0]), 1.0)
    tensor([-2., 0., 1.])
    """
    if weight.is_complex():
        modulus = weight.abs()
        return weight * torch.where(modulus > threshold, 1 - threshold / modulus, 0.0)
    if isinstance(threshold, Tensor):
        limit = threshold.to(weight)
        return weight - torch.clamp(weight, -limit, limit)
    return weight - torch.clamp(weight, -threshold, threshold)


def shrink(weight: Tensor, amount: float | Tensor) -> Tensor:
    r"""Prox of :math:`\tfrac{\tau}{2}\sum_i w_i^2`: :math:`w/(1 + \tau)`.

    >>> shrink(torch.tensor([3.0]), 2.0)
    tensor([1.])
    """
    return weight / (1.0 + amount)
