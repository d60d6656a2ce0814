"""What acts on groups of several kinds at once: the levels of each tensor of a module."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_reg.groups.forms import layout_of
from lightning_reg.groups.layout import Layout, Slices, singles
from lightning_reg.penalties._factors import factor_of, factor_of_groups, find_factors
from lightning_reg.penalties._of_norms import scaled_groups
from lightning_reg.penalties.bound import Bound, Held, added_up
from lightning_reg.penalties.guards import warn_of_norm_alone
from lightning_reg.prox.dual_averaging import hold_groups_
from lightning_reg.prox.group import group_norms, group_weights
from lightning_reg.prox.overlapping import are_nested, shrink_levels
from lightning_reg.select.parameters import Selected
from lightning_reg.tensors.grad_mode import without_grad
from lightning_reg.tensors.shards import local, part, whole
from lightning_reg.tensors.steps import StepSize

if TYPE_CHECKING:
    from lightning_reg.penalties.overlapping_group_lasso import OverlappingGroupLasso

__all__ = ["BoundLevels", "Levels"]


class Levels:
    """A penalty on tensors of one shape.

    Args:
        layouts: from small groups to large ones.
        factors: of each layout, one number or one for each of its groups.
    """

    def __init__(
        self, layouts: Sequence[Layout], factors: Sequence[float | Tensor], size_weighted: bool
    ) -> None:
        self.layouts, self.factors, self.size_weighted = layouts, factors, size_weighted
        self._nested: bool | None = None

    @classmethod
    def of(
        cls, penalty: OverlappingGroupLasso, layouts: Sequence[Layout], given: Sequence[Any] | None = None
    ) -> Levels:
        """Put the levels of a penalty into their order, with what is given for each."""
        factors: Any = penalty.level_factors
        if given is not None:
            factors = [factor * one for factor, one in zip(factors, given, strict=True)]
        order = sorted(range(len(layouts)), key=lambda i: -layouts[i].count)
        return cls([layouts[i] for i in order], [factors[i] for i in order], penalty.size_weighted)

    def value(self, weight: Tensor, strength: float) -> Tensor:
        parts = [
            (group_norms([weight], [layout]) * threshold).sum()
            for layout, threshold in self._thresholds(weight, strength)
        ]
        return torch.stack(parts).sum()

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        gradient = torch.zeros_like(weight)
        for layout, threshold in self._thresholds(weight, strength):
            norms = group_norms([weight], [layout])
            (some,) = scaled_groups([weight], [layout], torch.where(norms > 0, threshold / norms, 0.0))
            gradient.add_(some)
        return gradient

    def prox(self, weight: Tensor, strength: float, step: StepSize) -> Tensor:
        if self._nested is None:
            self._nested = are_nested(self.layouts, weight)
        pairs = list(self._thresholds(weight, strength))
        layouts, thresholds = zip(*pairs, strict=True)
        return shrink_levels(weight, layouts, thresholds, step, nested=self._nested)

    def prox_(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> None:
        """Replace a tensor by its prox with λ and a step of 1."""
        for view in views:
            view.copy_(self.prox(view, 1.0, StepSize(1.0)))

    def _thresholds(self, weight: Tensor, strength: float) -> Sequence[tuple[Layout, float | Tensor]]:
        return [
            (layout, group_weights([layout], weight, self.size_weighted) * (strength * factor))
            for layout, factor in zip(self.layouts, self.factors, strict=True)
        ]


class BoundLevels(Bound):
    """The penalty with the layouts of one module's tensors."""

    holds_zeros = True

    def __init__(self, penalty: OverlappingGroupLasso, selected: Sequence[Selected]) -> None:
        self.penalty = penalty
        self._selected = list(selected)  # keeps the tensors alive, so that an id is never used again
        given = [None] * len(selected) if penalty.factors is None else self._find_factors(penalty.factors)
        self._levels = {
            id(s.parameter): Levels.of(penalty, self._layouts(s), some)
            for s, some in zip(self._selected, given, strict=True)
        }

    def _layouts(self, s: Selected) -> list[Layout]:
        return [
            singles(s.parameter) if level == "weights" else layout_of(s, level)
            for level in self.penalty.groups
        ]

    def levels(self, weight: Tensor) -> Sequence[Layout]:
        """Return the groups of one tensor, of each kind."""
        return self._levels[id(weight)].layouts if id(weight) in self._levels else ()

    def _find_factors(self, given: Any) -> list[Any]:
        """For each parameter and each of its levels, what λ is multiplied by."""
        who = type(self.penalty).__name__
        if isinstance(given, (tuple, list)):
            if len(self._selected) != 1:
                raise ValueError(
                    f"{who}(factors=tuple) is for one parameter, and {len(self._selected)} are selected; "
                    "give a dict of tuples by parameter name"
                )
            given = {self._selected[0].name: given}
        return [
            self._each_level(who, s, some)
            for s, some in zip(self._selected, find_factors(who, given, self._selected), strict=True)
        ]

    def _each_level(self, who: str, s: Selected, given: Any) -> list[float | Tensor]:
        layouts, like = self._layouts(s), local(s.parameter.detach()).reshape(-1)
        if not isinstance(given, (tuple, list)):
            return [float(factor_of(who, f"all levels of {s.name}", given, (), like))] * len(layouts)
        if len(given) != len(layouts):
            raise ValueError(
                f"{who}(factors=...) gives {len(given)} for {s.name}, which has {len(layouts)} levels; give "
                "a number or a tensor for each of them"
            )
        return [
            factor_of_groups(who, f"level {i} of {s.name}", one, layout, like)
            if isinstance(one, Tensor)
            else float(factor_of(who, f"level {i} of {s.name}", one, (), like))
            for i, (layout, one) in enumerate(zip(layouts, given, strict=True))
        ]

    def warn(self) -> None:
        """Warn of filters whose norm is not in their group."""
        for i in range(len(self.penalty.groups)):
            sets = [[(s, self._layouts(s)[i])] for s in self._selected]
            warn_of_norm_alone(type(self.penalty).__name__, sets)

    def standing_in(self, weights: Sequence[Tensor], others: Sequence[Tensor]) -> Bound:
        """Return this with the levels of ``weights`` for ``others``."""
        twin = copy.copy(self)
        twin._levels = {id(o): self._levels[id(w)] for w, o in zip(weights, others, strict=True)}
        return twin

    def total(self, weights: Sequence[Tensor], strength: float, like: Tensor) -> Tensor:
        """Sum over the tensors, outside autocast."""
        some = weights if strength else ()
        return added_up((self._levels[id(w)].value(whole(w), strength) for w in some), like)

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        """Return the gradient of one tensor, whole."""
        return self._levels[id(weight)].gradient(whole(weight), strength)

    @without_grad
    def prox_(self, weights: Sequence[Tensor], strength: float, steps: Sequence[StepSize]) -> None:
        """``w ← prox(w)`` for each tensor."""
        for weight, step in zip(weights, steps, strict=True):
            result = self._levels[id(weight)].prox(whole(weight), strength, step.whole())
            local(weight).copy_(part(result, weight))

    @without_grad
    def hold_zeros_(self, held: Held, strength: float) -> Sequence[int]:
        """Set to zero what the averages keep there: what the prox of the whole norm makes zero of them."""
        for weight, average, step, share in zip(*held, strict=True):
            mine, kept = whole(weight), whole(average)
            layout, prox = Slices(tuple(mine.shape), ()), self._levels[id(weight)].prox_
            hold_groups_([mine], [layout], [kept], [step.whole()], [share], strength, prox, together=True)
            local(weight).copy_(part(mine, weight))
            local(average).copy_(part(kept, average))
        return range(len(held.weights))
