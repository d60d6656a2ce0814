"""Which groups the loops of :mod:`lightning_reg.prox._group_loops` can take, and the call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from lightning_reg.groups.layout import Layout, Slices
from lightning_reg.tensors import fused
from lightning_reg.tensors.steps import StepSize

__all__ = ["act_on_each_", "act_on_groups_"]

#: Weights, a row of the loop's table, and the numbers of that row.
_Piece: TypeAlias = tuple[int, list[int], tuple[float, ...]]


def act_on_groups_(
    loop: str,
    tensors: Sequence[Tensor],
    layouts: Sequence[Layout],
    steps: Sequence[StepSize],
    threshold: float | Tensor,
    *numbers: float,
) -> bool:
    """Let a loop act on the groups of one tensor, if it can, and say whether it has.

    Args:
        loop: its name; it takes rows as :mod:`lightning_reg.prox._group_loops` has them, and n, ε and μ.
        tensors: changed in place.
        layouts: one for each tensor.
        steps: the step of every weight of each tensor.
        threshold: μ, one number or ``(groups,)``.
        numbers: the loop's other arguments.
    """
    if len(tensors) > 1 or isinstance(threshold, Tensor):
        return False
    return not act_on_each_(loop, tensors, layouts, steps, threshold, *numbers)


def act_on_each_(
    loop: str,
    tensors: Sequence[Tensor],
    layouts: Sequence[Layout],
    steps: Sequence[StepSize],
    threshold: float,
    *numbers: float,
) -> list[int]:
    """The same on tensors that share no groups; return the positions of those that it cannot take."""
    left: list[int] = []
    pieces: dict[fused.Compiled, list[_Piece]] = {}
    for i, (weight, layout, step) in enumerate(zip(tensors, layouts, steps, strict=True)):
        shape, run = _as_middle(layout), None
        if shape is not None and step.mean is None and weight.is_contiguous():
            outer, groups, inner = shape
            if outer == 1 or step.second_moment is not None:  # else eager passes along the rows need no copy
                run = fused.loop_for("prox._group_loops", loop, [weight], (weight, step.second_moment))
        if run is None:
            left.append(i)
            continue
        moment = step.second_moment
        addresses = [weight.data_ptr(), 0 if moment is None else moment.data_ptr()]
        numerator, eps = step.parts
        parts = max(1, min(torch.get_num_threads(), groups, weight.numel() // fused.SHARE))
        ends = [groups * part // parts for part in range(parts + 1)]
        pieces.setdefault(run, []).extend(
            (weight.numel() // parts, [*addresses, *some, outer, groups, inner], (numerator, eps, threshold))
            for some in pairwise(ends)
        )
        increment_version(weight)
    for run, some in pieces.items():
        run.share_out(_shared_out(some), numbers)
    return left


def _shared_out(pieces: list[_Piece]) -> list[tuple[list[list[int]], list[tuple[float, ...]]]]:
    """Rows for each thread, about as many weights in each: the largest piece goes first, to the emptiest."""
    total = sum(size for size, _, _ in pieces)
    threads = max(1, min(torch.get_num_threads(), len(pieces), total // fused.SHARE))
    parts: list[list[_Piece]] = [[] for _ in range(threads)]
    for piece in sorted(pieces, key=lambda piece: piece[0], reverse=True):
        min(parts, key=lambda part: sum(size for size, _, _ in part)).append(piece)
    return [([row for _, row, _ in part], [told for _, _, told in part]) for part in parts]


def _as_middle(layout: Layout) -> tuple[int, int, int] | None:
    """The shape ``(outer, groups, inner)`` in which groups are slices along the middle; None without one."""
    if not isinstance(layout, Slices):
        return None
    keep = [dim for dim in layout.keep if layout.shape[dim] > 1]
    if not keep:
        return 1, 1, math.prod(layout.shape)
    first, last = min(keep), max(keep)
    if any(dim not in keep and layout.shape[dim] > 1 for dim in range(first, last)):
        return None
    shape = layout.shape
    return math.prod(shape[:first]), math.prod(shape[first : last + 1]), math.prod(shape[last + 1 :])
