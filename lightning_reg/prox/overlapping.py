r"""The proximal operator of a sum of group norms over several levels of groups, nested or overlapping.

Each level is a partition of a tensor. The operator of one is known, and from them that of the sum is put
together: with :math:`x = v` and :math:`u_l = 0` for each level, one level after the other and again,

.. math::
    x' = \operatorname{prox}_l(x + u_l), \qquad u_l \leftarrow x + u_l - x', \qquad x \leftarrow x'.

This is ascent in the blocks of the dual, and converges to the operator of the sum in the metric of the steps.
Where each group lies in one group of the next level, from small ones to large ones, and the tensor has one
step, the first pass is exact.

References:
    Jenatton, Mairal, Obozinski and Bach, *Proximal Methods for Hierarchical Sparse Coding*, JMLR 12, 2011,
    for nested groups; Bauschke and Combettes, *A Dykstra-like Algorithm for Two Monotone Operators*, Pac. J.
    Optim. 4(3), 2008, for others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_reg.groups.layout import Layout, Slices
from lightning_reg.prox.elementwise import soft_threshold
from lightning_reg.prox.group import shrink_groups_in_metric_
from lightning_reg.tensors.grad_mode import without_grad
from lightning_reg.tensors.precision import wide
from lightning_reg.tensors.steps import StepSize

__all__ = ["are_nested", "shrink_levels"]

#: Passes over the levels at most.
PASSES = 200
#: A change of so little, by what the operator has changed, ends them.
CLOSE = {torch.float32: 3e-4, torch.float64: 1e-12}


@without_grad
def shrink_levels(
    weight: Tensor,
    levels: Sequence[Layout],
    thresholds: Sequence[float | Tensor],
    step: StepSize,
    *,
    nested: bool,
) -> Tensor:
    r"""Return the prox of :math:`\sum_l\sum_{g \in l}\mu_g\|w_g\|_2`, a new tensor in float32 or wider.

    Args:
        weight: real, of any shape.
        levels: partitions of it.
        thresholds: :math:`\mu` of each level, one number or ``(groups,)``.
        step: of every weight.
        nested: whether the levels go from small groups to large ones that hold them whole.

    >>> levels = [Slices((2, 2), keep=(0, 1)), Slices((2, 2), keep=(0,))]
    >>> shrink_levels(
    ...     torch.tensor([[3.0, 0.5], [1.2, 0.8]]), levels, [1.0, 0.5], StepSize.of(1.0), nested=True
    ... )
    tensor([[1.5000, 0.0000],
            [0.0000, 0.0000]])
    """
    values = wide(weight).clone()
    if not values.numel():
        return values
    # single weights and one level of groups compose in any diagonal metric
    alone = len(levels) < 3 and all(map(_is_single, levels[:-1]))
    once = alone or (nested and step.second_moment is None)
    kept = [torch.zeros_like(values) for _ in levels] if not once else []
    start, rounding = values, torch.finfo(values.dtype).eps ** 0.8
    for _ in range(1 if once else PASSES):
        before, dead = values, torch.zeros_like(values, dtype=torch.bool)
        for i, (layout, threshold) in enumerate(zip(levels, thresholds, strict=True)):
            moved = values + kept[i] if kept else values.clone()
            values = moved.clone() if kept else moved
            _shrink_(values, layout, threshold, step)
            dead |= values == 0
            if kept:
                kept[i] = moved - values
        near = (start - values).abs_().mul_(CLOSE.get(values.dtype, 0.0)).add_(before.abs().amax() * rounding)
        if not bool(((values - before).abs_() > near).any()):  # NaN ends it too
            break
    # what one level has at zero in the end is zero, up to the rounding of the others; NaN stays NaN
    return values.mul_(~dead)


def _shrink_(values: Tensor, layout: Layout, threshold: float | Tensor, step: StepSize) -> None:
    """Replace ``values`` by the prox of one level."""
    if _is_single(layout) and not isinstance(threshold, Tensor):
        values.copy_(soft_threshold(values, step.wide().dense() * threshold))
    else:
        shrink_groups_in_metric_([values], [layout], [step.wide()], threshold)


def _is_single(layout: Layout) -> bool:
    return isinstance(layout, Slices) and len(layout.keep) == len(layout.shape)


@without_grad
def are_nested(levels: Sequence[Layout], weight: Tensor) -> bool:
    """Whether each group of a level lies in one group of every later one.

    >>> rows, whole = Slices((2, 3), keep=(0,)), Slices((2, 3), keep=())
    >>> columns, weight = Slices((2, 3), keep=(1,)), torch.zeros(2, 3)
    >>> [are_nested(levels, weight) for levels in ([rows, whole], [whole, rows], [rows, columns])]
    [True, False, False]
    """
    if not weight.numel():
        return True
    dtype = torch.float32 if weight.device.type == "mps" else torch.float64
    for i, coarse in enumerate(levels):
        view = coarse.view(weight)
        numbers = torch.arange(coarse.count, dtype=dtype, device=weight.device)
        owner = coarse.spread(numbers, view).expand(view.shape).reshape(weight.shape)
        for fine in levels[:i]:
            inside = fine.view(owner)
            split = fine.amin(inside) != fine.amax(inside)
            if bool((split & (torch.as_tensor(fine.sizes).to(split.device) > 0)).any()):
                return False
    return True
