"""Proximal operators of the largest modulus of each group, in one number's metric and in a diagonal one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_reg.groups.layout import Layout
from lightning_reg.prox.group import cut_to_cache, etas_of, largest_over, sum_over
from lightning_reg.tensors.grad_mode import without_grad
from lightning_reg.tensors.precision import accumulator, real_dtype
from lightning_reg.tensors.steps import StepSize

__all__ = ["group_maxima", "lower_maxima_", "lower_views_"]


def group_maxima(tensors: Sequence[Tensor], layouts: Sequence[Layout]) -> Tensor:
    """Return the largest modulus of each group over all ``tensors``, ``(groups,)``; 0 for an empty group."""
    first = tensors[0]
    dtype = accumulator(first.dtype) or real_dtype(first.dtype)
    maxima = first.new_zeros(layouts[0].count, dtype=dtype)
    for tensor, layout in zip(tensors, layouts, strict=True):
        if not tensor.numel():
            maxima = maxima + tensor.abs().sum().to(maxima)  # 0, and of the tensor's graph
        else:
            maxima = torch.maximum(maxima, layout.amax(layout.view(tensor).abs()).to(maxima))
    return maxima


@without_grad
def lower_maxima_(
    tensors: Sequence[Tensor],
    layouts: Sequence[Layout],
    steps: Sequence[StepSize],
    threshold: float | Tensor,
) -> None:
    r"""Prox of :math:`\sum_g \mu_g\max_{i \in g}|w_i|` in the metric of the steps, in place.

    It cuts off every modulus above a level :math:`t` with
    :math:`\sum_j (|v_j| - t)_+/\eta_j = \mu`, or :math:`t = 0`. The left side is convex and made of lines, so
    that Newton's method climbs to the root from the left, and is there once no modulus falls below.

    Args:
        tensors: changed in place; real; they share their groups.
        layouts: one for each tensor, whose groups lie whole in this process.
        steps: the step of every weight of each tensor.
        threshold: :math:`\mu`, one number or ``(groups,)``.

    Reference: Michelot, *A Finite Algorithm for Finding the Projection of a Point onto the Canonical Simplex
    of R^n*, Journal of Optimization Theory and Applications 50(1), 1986, whose problem is this one's dual.
    """
    plain = all(step.second_moment is None and step.numerator == steps[0].numerator for step in steps)
    if plain:
        threshold = threshold * steps[0].numerator
    for views, moments in cut_to_cache(tensors, layouts, steps, threshold):
        lower_views_(views, None if plain else etas_of(steps, moments, views), layouts, threshold)


def lower_views_(
    views: Sequence[Tensor],
    etas: Sequence[Tensor] | None,
    layouts: Sequence[Layout],
    threshold: float | Tensor,
) -> None:
    """All groups at once; ``views`` are changed, ``etas`` spent, and 1 where None."""
    if not any(view.numel() for view in views):
        return
    dtype = accumulator(views[0].dtype) or views[0].dtype
    moduli = [view.abs().to(dtype) for view in views]
    # a step of 0 moves nothing, and what pulls must stay a number
    etas = None if etas is None else [eta.to(dtype).clamp_(min=1e-30) for eta in etas]

    def spread(per_group: Tensor) -> list[Tensor]:
        return [layout.spread(per_group.to(m.device), m) for layout, m in zip(layouts, moduli, strict=True)]

    def over_groups(tensors: Sequence[Tensor]) -> Tensor:
        if etas is not None:
            tensors = [tensor.div_(eta) for tensor, eta in zip(tensors, etas, strict=True)]
        return sum_over(layouts, tensors)

    mu = threshold.to(moduli[0]) if isinstance(threshold, Tensor) else threshold
    # two levels below the root: of the line through all moduli, and of the best one through a single one
    above = over_groups([torch.ones_like(m) for m in moduli])
    level = (over_groups([m.clone() for m in moduli]) - mu) / above
    reach: Sequence[Any] = spread(mu) if isinstance(mu, Tensor) else [mu] * len(moduli)
    if etas is not None:
        reach = [r * eta for r, eta in zip(reach, etas, strict=True)]
    level = torch.fmax(level, largest_over(layouts, [m - r for m, r in zip(moduli, reach, strict=True)]))
    level.clamp_(min=0.0)
    above = torch.full_like(level, torch.inf)
    while True:
        excess = [(m - limit).clamp_(min=0.0) for m, limit in zip(moduli, spread(level), strict=True)]
        before, above = above, over_groups([part.sign() for part in excess])
        gap = over_groups(excess) - mu
        climbs = (gap > 0) & (above < before)  # neither for NaN
        if not bool(climbs.any()):
            break
        level = torch.where(climbs, level + gap / above, level)
    for view, limit in zip(views, spread(level), strict=True):
        limit = limit.to(view.dtype)
        view.copy_(torch.maximum(torch.minimum(view, limit), -limit))
