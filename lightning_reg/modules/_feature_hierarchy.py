"""What SparseMLP trains under: a penalty on a skip layer that bounds the layer beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_reg.penalties.bound import Bound, Held
from lightning_reg.penalties.regularizer import Regularizer, check_strength
from lightning_reg.prox.hierarchical import hierarchical_prox, hold_features_
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.select.parameters import Selected
from lightning_reg.tensors.precision import norms
from lightning_reg.tensors.shards import is_sharded, local, part, whole
from lightning_reg.tensors.steps import StepSize

__all__ = ["FeatureHierarchy"]


@dataclass(frozen=True)
class FeatureHierarchy(Regularizer):
    r""":math:`\lambda\sum_j\|\theta_j\|_2` subject to :math:`\|W_j\|_\infty \le M\|\theta_j\|_2`.

    Args:
        strength: λ.
        hierarchy: M > 0.
        select: names of the skip layer's weight θ and of the hidden layer's W, in this order.
        name: in logs.

    Raises:
        ValueError: an argument out of range.
    """

    strength: ScheduleLike
    hierarchy: float = 10.0
    select: tuple[str, str] = ("skip.weight", "first.weight")
    name: str | None = None

    takes_complex: ClassVar[bool] = False
    turn: ClassVar[int] = 30

    def __post_init__(self) -> None:
        check_strength("SparseMLP", self.strength)
        if not 0.0 < self.hierarchy < float("inf"):
            raise ValueError(
                f"hierarchy={self.hierarchy} is out of range; give a positive number, such as 10"
            )

    @property
    def has_prox(self) -> bool:
        """It has one, for one step for all weights."""
        return True

    @property
    def prox_in_metric(self) -> bool:
        """No; it couples two layers."""
        return False

    @property
    def has_gradient(self) -> bool:
        """No; it holds a constraint."""
        return False

    def bind(self, selected: Sequence[Selected]) -> Bound:
        """Return what acts on the two layers."""
        skip, hidden = (next(s.parameter for s in selected if s.name == name) for name in self.select)
        return _TwoLayers(self.hierarchy, skip, hidden)


class _TwoLayers(Bound):
    """The penalty of a skip layer's weight and a hidden layer's, always both."""

    couples = True

    def __init__(self, hierarchy: float, skip: Tensor, hidden: Tensor) -> None:
        self.hierarchy = hierarchy
        self._pair = skip, hidden

    @property
    def holds_zeros(self) -> bool:
        """Those of features."""
        return True

    def standing_in(self, weights: Sequence[Tensor], others: Sequence[Tensor]) -> Bound:
        """Return the same on other tensors."""
        skip, hidden = (others[i] for i in self._places(weights))
        return _TwoLayers(self.hierarchy, skip, hidden)

    def total(self, weights: Sequence[Tensor], strength: float, like: Tensor) -> Tensor:
        """Return the skip layer's part; the rest is a constraint."""
        return strength * norms(whole(self._pair[0]), 0).sum().to(like.device)

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        """Return that of the skip layer's part, which a monitor shows; 0 at 0."""
        full = whole(weight)
        if weight is not self._pair[0]:
            return torch.zeros_like(full)
        return strength * full / norms(full, 0).clamp(min=torch.finfo(full.dtype).tiny)

    def prox_(self, weights: Sequence[Tensor], strength: float, steps: Sequence[StepSize]) -> None:
        """Act on both layers, whose steps are one."""
        places = self._places(weights)
        layers = [weights[i] for i in places]
        threshold = steps[places[0]].numerator * strength
        results = hierarchical_prox(whole(layers[0]), whole(layers[1]), threshold, self.hierarchy)
        for layer, result in zip(layers, results, strict=True):
            local(layer).copy_(part(result, layer))

    def hold_zeros_(self, held: Held, strength: float) -> Sequence[int]:
        """Set features to zero where the averages say so."""
        places = self._places(held.weights)
        weights, averages = ([some[i] for i in places] for some in (held.weights, held.averages))
        skip, hidden, *both = map(whole, (*weights, *averages))
        threshold = held.steps[places[0]].numerator * strength
        share = held.shares[places[0]]
        hold_features_((skip, hidden), (both[0], both[1]), threshold, self.hierarchy, share)
        for tensor, result in zip((*weights, *averages), (skip, hidden, *both), strict=True):
            if is_sharded(tensor):
                local(tensor).copy_(part(result, tensor))
        return range(len(held.weights))

    def sizes(self, weights: Sequence[Tensor]) -> Tensor:
        """Return the norm of each feature in the skip layer, which is 0 where it is out."""
        return norms(whole(self._pair[0].detach()), 0).float().cpu()

    def sizes_by_layer(self, weights: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
        """Return the same."""
        return [("the features", self.sizes(weights))]

    def _places(self, weights: Sequence[Tensor]) -> list[int]:
        """Where the two are among ``weights``."""
        at = {id(weight): i for i, weight in enumerate(weights)}
        return [at[id(weight)] for weight in self._pair]
