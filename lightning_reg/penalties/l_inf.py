"""The largest weight of each group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lightning_reg.groups.forms import Groups
from lightning_reg.groups.layout import Layout
from lightning_reg.penalties._factors import Factors
from lightning_reg.penalties._grouped import GroupedPenalty
from lightning_reg.prox.group import group_weights
from lightning_reg.prox.group_maxima import group_maxima, lower_maxima_, lower_views_
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.select.parameters import Select
from lightning_reg.tensors.steps import StepSize

__all__ = ["LInf"]


@dataclass(frozen=True)
class LInf(GroupedPenalty):
    r"""The largest modulus of each group, summed: :math:`\lambda\sum_g \max_{i \in g}|w_i|`.

    One group a tensor where not given. The prox lowers the largest weights of a group to one level, and to
    zero together where a group's pull is too weak: a group lasso whose survivors tend to be of one size, for
    quantisation.

    Args:
        strength: λ ≥ 0, in units of loss per unit of weight.
        select: what it applies to; real tensors.
        groups: which weights make a group, see :mod:`lightning_reg.groups.forms`.
        factors: what λ is multiplied by for each group, as in :class:`~lightning_reg.GroupLasso`.
        name: its name in logs.

    Raises:
        ValueError: a negative, NaN or infinite strength, or unknown groups.

    >>> penalty = LInf(1.0)
    >>> penalty.value(torch.tensor([3.0, -5.0, 1.0]), strength=1.0)
    tensor(5.)
    >>> penalty.prox(torch.tensor([3.0, -5.0, 1.0]), strength=4.0, step=1.0)
    tensor([ 2., -2.,  1.])

    References:
        Duchi and Singer, *Efficient Online and Batch Learning Using Forward Backward Splitting*, JMLR 10,
        2009; Negahban and Wainwright, *Joint Support Recovery under High-Dimensional Scaling*, NIPS 2008.
    """

    kind: ClassVar[str] = "moduli"
    turn: ClassVar[int] = 33

    strength: ScheduleLike
    select: Select = "weights"
    _: KW_ONLY
    groups: Groups = "tensor"
    factors: Factors | None = field(default=None, repr=False, compare=False)
    name: str | None = None
    takes_complex: ClassVar[bool] = False
    gathers = True

    def joint_value(self, weights: Sequence[Tensor], layouts: Sequence[Layout], strength: float) -> Tensor:
        r"""Return :math:`\lambda\sum_g\max_{i \in g}|w_i|`."""
        maxima = group_maxima(weights, layouts)
        return (maxima * group_weights(layouts, maxima, size_weighted=False) * strength).sum()

    def joint_gradient(
        self, weights: Sequence[Tensor], layouts: Sequence[Layout], strength: float
    ) -> list[Tensor]:
        """Return λ times the sign, shared by the largest weights of each group, and 0 at 0."""
        maxima = group_maxima(weights, layouts)
        factor = group_weights(layouts, maxima, size_weighted=False) * strength
        at_top, counts = [], torch.zeros_like(maxima)
        for weight, layout in zip(weights, layouts, strict=True):
            view = layout.view(weight)
            top = view.abs() == layout.spread(maxima.to(view), view)
            at_top.append(top)
            counts = counts + layout.sum(top.to(maxima.dtype)).to(maxima.device)
        results = []
        for weight, layout, top in zip(weights, layouts, at_top, strict=True):
            view = layout.view(weight)
            share = layout.spread((factor / counts.clamp(min=1.0)).to(view), view)
            results.append((torch.sgn(view) * top * share).view(weight.shape))
        return results

    def norm_prox_(
        self, views: Sequence[Tensor], layouts: Sequence[Layout], factor: float | Tensor = 1.0
    ) -> None:
        """Replace views of the tensors by their prox with λ and a step of 1."""
        lower_views_(views, None, layouts, group_weights(layouts, views[0], size_weighted=False) * factor)

    def joint_prox_(
        self,
        weights: Sequence[Tensor],
        layouts: Sequence[Layout],
        strength: float,
        steps: Sequence[StepSize],
    ) -> None:
        """Lower the largest weights of each group to its level."""
        threshold = group_weights(layouts, weights[0], size_weighted=False) * strength
        lower_maxima_(weights, layouts, steps, threshold)
