r"""The proximal operator of the sorted 1-norm, by isotonic regression.

Reference: Bogdan, van den Berg, Sabatti, Su and Candès, *SLOPE: Adaptive Variable Selection via Convex
Optimization*, Ann. Appl. Stat. 9(3), 2015; Barlow, Bartholomew, Bremner and Brunk, *Statistical Inference
under Order Restrictions*, 1972, for pooling adjacent violators in any order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_reg.tensors.grad_mode import without_grad

__all__ = ["falling", "sorted_threshold"]


@without_grad
def sorted_threshold(weight: Tensor, thresholds: Tensor) -> Tensor:
    r"""Prox of :math:`\sum_i \tau_i|w|_{(i)}`, the i-th largest modulus times the i-th threshold.

    The sorted moduli less the thresholds, made falling, and cut at 0; in the places and with the signs of the
    weights.

    Args:
        weight: any shape; real.
        thresholds: :math:`\tau_1 \ge \tau_2 \ge \dots \ge 0`, as many as there are weights.

    >>> sorted_threshold(torch.tensor([3.0, -2.9, 0.5]), torch.tensor([1.0, 0.5, 0.2]))
    tensor([ 2.2000, -2.2000,  0.3000])
    """
    modulus, order = weight.flatten().abs().sort(descending=True, stable=True)
    found = falling(modulus - thresholds).clamp_(min=0.0)
    result = torch.empty_like(found)
    result[order] = found
    return torch.sgn(weight) * result.view(weight.shape)


def falling(values: Tensor) -> Tensor:
    """Return the nearest sequence that never rises: adjacent values that do are pooled, until none do.

    Those that rise one after the other are pooled together, in one pass.

    >>> falling(torch.tensor([3.0, 1.0, 2.0, 0.0]))
    tensor([3.0000, 1.5000, 1.5000, 0.0000])
    """
    wide = values.dtype if values.device.type == "mps" else torch.float64
    total, count = values.to(wide), torch.ones_like(values, dtype=wide)
    owner = torch.arange(values.numel(), device=values.device)
    while True:
        mean = total / count
        rises = mean[1:] > mean[:-1]
        if not bool(rises.any()):
            return mean[owner].to(values.dtype)
        block = torch.cat([owner.new_zeros(1), (~rises).cumsum(0)])
        empty = total.new_zeros(int(block[-1]) + 1)
        total, count = empty.index_add(0, block, total), empty.index_add(0, block, count)
        owner = block[owner]
