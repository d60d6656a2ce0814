"""What penalties of groups' Euclidean norms share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_reg.groups.layout import Layout
from lightning_reg.penalties._grouped import GroupedPenalty
from lightning_reg.prox.group import group_norms, group_weights, shrink_views_

__all__ = ["OfNorms", "scaled_groups"]


class OfNorms(GroupedPenalty):
    r""":math:`\sum_g \rho(\|w_g\|_2)` with λ times the root of a group's size for λ."""

    size_weighted: bool

    @abstractmethod
    def of_norm(self, norms: Tensor, strength: float | Tensor) -> Tensor:
        """Return ρ of each norm."""

    @abstractmethod
    def slope(self, norms: Tensor, strength: float | Tensor) -> float | Tensor:
        """Return ρ′ of each norm."""

    def joint_value(self, weights: Sequence[Tensor], layouts: Sequence[Layout], strength: float) -> Tensor:
        r"""Return :math:`\sum_g\rho(\|w_g\|_2)`."""
        norms = group_norms(weights, layouts)
        return self.of_norm(norms, group_weights(layouts, norms, self.size_weighted) * strength).sum()

    def joint_gradient(
        self, weights: Sequence[Tensor], layouts: Sequence[Layout], strength: float
    ) -> list[Tensor]:
        r"""Return :math:`\rho'(\|w_g\|_2)\,w_g/\|w_g\|_2`, and 0 at 0."""
        norms = group_norms(weights, layouts)
        slope = self.slope(norms, group_weights(layouts, norms, self.size_weighted) * strength)
        return scaled_groups(weights, layouts, torch.where(norms > 0, slope / norms, 0.0))

    def norm_prox_(
        self, views: Sequence[Tensor], layouts: Sequence[Layout], factor: float | Tensor = 1.0
    ) -> None:
        """Replace views of the tensors by the prox of λ times the norm, which is all that ρ is near 0."""
        shrink_views_(views, layouts, group_weights(layouts, views[0], self.size_weighted) * factor)


def scaled_groups(weights: Sequence[Tensor], layouts: Sequence[Layout], factor: Tensor) -> list[Tensor]:
    """Return each tensor with its groups times ``factor``, ``(groups,)``."""
    results = []
    for weight, layout in zip(weights, layouts, strict=True):
        view = layout.view(weight)
        spread = layout.spread(factor.to(view.device), view)
        results.append((view * spread).to(weight.dtype).view(weight.shape))
    return results
