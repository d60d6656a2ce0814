"""Sparse group lasso: zero groups, and zeros inside the groups that stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lightning_reg.groups.forms import Groups
from lightning_reg.groups.layout import Layout, singles
from lightning_reg.penalties._factors import Factors
from lightning_reg.penalties._grouped import GroupedPenalty
from lightning_reg.penalties._of_norms import scaled_groups
from lightning_reg.prox.elementwise import soft_threshold
from lightning_reg.prox.group import (
    group_norms,
    group_weights,
    per_weight,
    shrink_groups_in_metric_,
    shrink_views_,
)
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.select.parameters import Select
from lightning_reg.tensors.precision import wide
from lightning_reg.tensors.steps import StepSize

__all__ = ["SparseGroupLasso"]


@dataclass(frozen=True)
class SparseGroupLasso(GroupedPenalty):
    r"""Sparse group lasso: :math:`\lambda\bigl(\rho\sum_i|w_i| + (1-\rho)\sum_g \sqrt{|g|}\,\|w_g\|_2\bigr)`.

    Its prox soft-thresholds each weight, then shortens each group, in any diagonal metric.

    Args:
        strength: λ ≥ 0.
        select: what it applies to.
        groups: which weights make a group, see :mod:`lightning_reg.groups.forms`.
        l1_ratio: ρ in [0, 1]: 1 is L1, 0 is group lasso.
        size_weighted: weigh a group by the root of its size.
        factors: what λ is multiplied by for each group, as in :class:`~lightning_reg.GroupLasso`.
        name: its name in logs.

    Raises:
        ValueError: a negative, NaN or infinite strength, ``l1_ratio`` outside [0, 1], or unknown groups.

    >>> penalty = SparseGroupLasso(0.2, l1_ratio=0.5, size_weighted=False)
    >>> penalty.prox(torch.tensor([[3.0, 0.05], [0.1, 0.15]]), strength=0.2, step=1.0)
    tensor([[2.8000, 0.0000],
            [0.0000, 0.0000]])

    References:
        Simon, Friedman, Hastie and Tibshirani, *A Sparse-Group Lasso*, J. Comput. Graph. Stat. 22(2), 2013.
    """

    kind: ClassVar[str] = "norms"
    turn: ClassVar[int] = 28

    strength: ScheduleLike
    select: Select = "weights"
    _: KW_ONLY
    groups: Groups = "rows"
    l1_ratio: float = 0.5
    size_weighted: bool = True
    factors: Factors | None = field(default=None, repr=False, compare=False)
    name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.l1_ratio <= 1.0:
            raise ValueError(
                f"SparseGroupLasso(l1_ratio={self.l1_ratio}) is outside [0, 1]; 1 is L1 and 0 is group lasso"
            )

    def joint_value(self, weights: Sequence[Tensor], layouts: Sequence[Layout], strength: float) -> Tensor:
        r"""Return :math:`\lambda(\rho\sum_i|w_i| + (1-\rho)\sum_g\sqrt{|g|}\|w_g\|_2)`."""
        norms = group_norms(weights, layouts)
        factor = group_weights(layouts, norms, self.size_weighted) * (strength * (1.0 - self.l1_ratio))
        total = (norms * factor).sum()
        for weight, layout in zip(weights, layouts, strict=True):
            absolute = layout.sum(wide(layout.view(weight)).abs()).to(total.device)
            total = total + (absolute * (strength * self.l1_ratio)).sum()
        return total

    def joint_gradient(
        self, weights: Sequence[Tensor], layouts: Sequence[Layout], strength: float
    ) -> list[Tensor]:
        """Return the sum of both gradients, each 0 at its kink."""
        norms = group_norms(weights, layouts)
        factor = group_weights(layouts, norms, self.size_weighted) * (strength * (1.0 - self.l1_ratio))
        gradients = scaled_groups(weights, layouts, torch.where(norms > 0, factor / norms, 0.0))
        for gradient, weight, layout in zip(gradients, weights, layouts, strict=True):
            sign = torch.sgn(layout.view(weight))
            gradient.add_(sign.mul_(per_weight(strength * self.l1_ratio, layout, sign)).view(weight.shape))
        return gradients

    def levels_of(self, weight: Tensor, layout: Layout) -> Sequence[Layout]:
        """Return each weight as a group, and its groups."""
        return (*((singles(weight),) if self.l1_ratio else ()), layout)

    def norm_prox_(
        self, views: Sequence[Tensor], layouts: Sequence[Layout], factor: float | Tensor = 1.0
    ) -> None:
        """Replace views of the tensors by their prox with λ and a step of 1."""
        for view, layout in zip(views, layouts, strict=True):
            view.copy_(soft_threshold(view, per_weight(factor * self.l1_ratio, layout, view)))
        weights = group_weights(layouts, views[0], self.size_weighted)
        shrink_views_(views, layouts, weights * factor * (1.0 - self.l1_ratio))

    def joint_prox_(
        self,
        weights: Sequence[Tensor],
        layouts: Sequence[Layout],
        strength: float,
        steps: Sequence[StepSize],
    ) -> None:
        """Soft-threshold each weight, then shorten each group."""
        factor = group_weights(layouts, weights[0], self.size_weighted)
        shrink_groups_in_metric_(
            weights,
            layouts,
            steps,
            factor * (strength * (1.0 - self.l1_ratio)),
            soft=strength * self.l1_ratio,
        )
