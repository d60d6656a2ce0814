"""Which groups the loops of :mod:`lightning_reg.prox._group_loops` can take, and the call."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from lightning_reg.groups.layout import Layout, Slices
from lightning_reg.tensors import fused
from lightning_reg.tensors.steps import StepSize

__all__ = ["act_on_groups_"]


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
    weight, layout, step = tensors[0], layouts[0], steps[0]
    shape = _as_middle(layout)
    if shape is None or step.mean is not None or not weight.is_contiguous():
        return False
    outer, groups, inner = shape
    if outer > 1 and step.second_moment is None:
        return False  # the eager passes go along the rows, and need no copy
    run = fused.loop_for("prox._group_loops", loop, [weight], (weight, step.second_moment))
    if run is None:
        return False
    moment = step.second_moment
    addresses = [weight.data_ptr(), 0 if moment is None else moment.data_ptr()]
    told: list[tuple[float, ...]] = [
        (step.numerator / step.root_scale, step.eps / step.root_scale, threshold)
    ]
    parts = max(1, min(torch.get_num_threads(), groups, weight.numel() // fused.SHARE))
    ends = [groups * i // parts for i in range(parts + 1)]
    run.share_out(
        [([[*addresses, ends[i], ends[i + 1], outer, groups, inner]], told) for i in range(parts)], numbers
    )
    increment_version(weight)
    return True


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
