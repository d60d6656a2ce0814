r"""The proximal operator of total variation along a line, by dynamic programming.

With the weights of a line from left to right, the least cost of all up to the i-th, given that it is b, is a
convex function of b, and its derivative is made of line segments. The step to the next weight clips this
derivative to :math:`[-\tau_i, \tau_i]`, between two points; going back, each weight is its right neighbour,
clipped to those of its own. A segment comes once and goes once: n weights take n steps of constant cost.

Reference: Johnson, *A Dynamic Programming Algorithm for the Fused Lasso and L0-Segmentation*, J. Comput.
Graph. Stat. 22(2), 2013.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_reg.tensors.grad_mode import without_grad

__all__ = ["smooth_lines"]


@without_grad
def smooth_lines(weight: Tensor, threshold: float | Tensor, dim: int = -1) -> Tensor:
    r"""Prox of :math:`\sum_i\tau_i|w_{i+1} - w_i|` along one dimension, each line by itself.

    The thresholds are one number, or a tensor that broadcasts to the steps, ``weight.diff(dim=dim)``.

    Neighbours that are fused are equal to the last bit. The lines are walked in Python, on the CPU.

    >>> smooth_lines(torch.tensor([0.0, 1.0, 5.0, 6.0]), 1.0)
    tensor([1., 1., 5., 5.])
    """
    limits = torch.as_tensor(threshold, dtype=torch.float64, device="cpu")
    if weight.shape[dim] < 2 or not limits.any():
        return weight.clone()
    moved = weight.movedim(dim, -1)
    limits = limits.expand(weight.diff(dim=dim).shape).movedim(dim, -1)
    lines = [
        _smooth(line, taus)
        for line, taus in zip(
            moved.reshape(-1, moved.shape[-1]).double().tolist(),
            limits.reshape(-1, limits.shape[-1]).tolist(),
            strict=True,
        )
    ]
    result = torch.tensor(lines, dtype=torch.float64).reshape(moved.shape)
    return result.movedim(-1, dim).to(weight)


def _smooth(line: Sequence[float], taus: Sequence[float]) -> Sequence[float]:
    if not all(map(math.isfinite, line)):
        return [math.nan] * len(line)
    # where the derivative bends, and what is added there to its slope and to its height at 0
    bends: deque[tuple[float, float, float]] = deque()
    first, last = (1.0, -line[0]), (1.0, -line[0])  # its outermost segments, as slope and height at 0
    ends: list[tuple[float, float]] = []
    for following, tau in zip(line[1:], taus, strict=True):
        low_slope, low_height = _from_left(bends, *first, -tau)
        slope, height = last
        while bends and slope * bends[-1][0] + height > tau:
            _, more, higher = bends.pop()
            slope, height = slope - more, height - higher
        low, high = (-tau - low_height) / low_slope, (tau - height) / slope
        ends.append((low, high))
        bends.appendleft((low, low_slope, low_height + tau))
        bends.append((high, -slope, tau - height))
        first, last = (1.0, -tau - following), (1.0, tau - following)
    slope, height = _from_left(bends, *first, 0.0)
    found = [-height / slope]
    for low, high in reversed(ends):
        found.append(min(max(found[-1], low), high))
    return found[::-1]


def _from_left(
    bends: deque[tuple[float, float, float]], slope: float, height: float, level: float
) -> tuple[float, float]:
    """The segment on which the derivative comes to a level; what lies left of it is taken away."""
    while bends and slope * bends[0][0] + height < level:
        _, more, higher = bends.popleft()
        slope, height = slope + more, height + higher
    return slope, height
