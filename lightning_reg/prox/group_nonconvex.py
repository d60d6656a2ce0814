r"""Proximal operators of concave functions of groups' norms, made of parabolas.

Where :math:`\rho(t) = \mu t - \kappa t^2/2`, the parabola and the square of the distance are one square:
with :math:`\eta'_j = \eta_j/(1 - \kappa\eta_j)` and :math:`v'_j = v_j/(1 - \kappa\eta_j)`,

.. math::
    \tfrac12\sum_j(x_j - v_j)^2/\eta_j + \mu\|x\| - \tfrac\kappa2\|x\|^2
    = \tfrac12\sum_j(x_j - v'_j)^2/\eta'_j + \mu\|x\| + \text{const.},

so that its prox is that of the norm itself, in any diagonal metric, from another point and with another step.
As long as every :math:`\kappa\eta_j < 1` the whole is convex: the piece whose own solution lies on it has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_reg.groups.layout import Layout
from lightning_reg.prox.group import (
    cut_to_cache,
    etas_of,
    shrink_with_etas_,
    view_norms,
)
from lightning_reg.tensors.grad_mode import without_grad
from lightning_reg.tensors.precision import wide
from lightning_reg.tensors.steps import StepSize

__all__ = ["Piece", "shrink_by_pieces_"]

#: The share of the longest step that a longer one counts as: at 1 the problem is flat.
NEARLY = 1.0 - 2.0**-10


class Piece(NamedTuple):
    r""":math:`\mu t - \kappa t^2/2` and a constant, up to where the next piece begins, or the flat end.

    Attributes:
        curvature: κ.
        slope: μ, one number or ``(groups,)``.
        end: up to which norm, one number or ``(groups,)``.
    """

    curvature: float
    slope: float | Tensor
    end: float | Tensor


@without_grad
def shrink_by_pieces_(
    tensors: Sequence[Tensor],
    layouts: Sequence[Layout],
    steps: Sequence[StepSize],
    pieces: Sequence[Piece],
    longest: float,
) -> None:
    """Prox of a concave function of each group's norm, flat behind its last piece, in place.

    Args:
        tensors: changed in place; real; they share their groups.
        layouts: one for each tensor.
        steps: the step of every weight of each tensor.
        pieces: of the function, in their order.
        longest: the step at which the problem ceases to be convex; a longer one counts as just below it.

    >>> from lightning_reg.groups.layout import Slices
    >>> weight = torch.tensor([[0.3, 0.4], [1.2, 1.6], [6.0, 8.0]])
    >>> shrink_by_pieces_(
    ...     [weight], [Slices((3, 2), keep=(0,))], [StepSize(1.0)], [Piece(1 / 3, 1.0, 3.0)], longest=3.0
    ... )
    >>> weight
    tensor([[0.0000, 0.0000],
            [0.9000, 1.2000],
            [6.0000, 8.0000]])
    """
    most = longest * NEARLY
    plain = all(step.second_moment is None and step.numerator == steps[0].numerator for step in steps)
    for views, moments in cut_to_cache(tensors, layouts, steps, pieces[0].slope):
        if all(layout.is_empty(view) for layout, view in zip(layouts, views, strict=True)):
            continue
        if plain:
            _shrink_lengths_(views, layouts, min(steps[0].numerator, most), pieces)
            continue
        etas = [eta.clamp_(max=most) for eta in etas_of(steps, moments, views)]
        results = [wide(view) for view in views]
        for piece in reversed(pieces):
            rests = [1.0 - piece.curvature * eta for eta in etas]
            found = [wide(view) / rest for view, rest in zip(views, rests, strict=True)]
            longer = [eta / rest for eta, rest in zip(etas, rests, strict=True)]
            shrink_with_etas_(found, longer, layouts, piece.slope)
            here = ~(view_norms(found, layouts) > piece.end)  # NaN stays NaN
            results = [
                torch.where(layout.spread(here.to(one.device), one), one, other)
                for layout, one, other in zip(layouts, found, results, strict=True)
            ]
        for view, result in zip(views, results, strict=True):
            view.copy_(result)


def _shrink_lengths_(
    views: Sequence[Tensor], layouts: Sequence[Layout], step: float, pieces: Sequence[Piece]
) -> None:
    """The same with one step for all weights: what happens to a group's length happens to the group."""
    lengths = view_norms(views, layouts)
    results = lengths
    for piece in reversed(pieces):
        found = ((lengths - piece.slope * step) / (1.0 - piece.curvature * step)).clamp_(min=0.0)
        results = torch.where(found > piece.end, results, found)
    factor = results / lengths.clamp(min=torch.finfo(lengths.dtype).tiny)
    for view, layout in zip(views, layouts, strict=True):
        view.mul_(layout.spread(factor.to(view.device), view))
