"""Overlapping group lasso: groups of several kinds at once, nested like a tree or across each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

from lightning_reg.groups.forms import GroupForm, check_groups, default_layout, layout_of
from lightning_reg.groups.layout import Layout, Slices
from lightning_reg.penalties._of_norms import scaled_groups
from lightning_reg.penalties.base import Penalty
from lightning_reg.penalties.bound import Bound, Held, added_up
from lightning_reg.penalties.guards import warn_of_norm_alone
from lightning_reg.prox.dual_averaging import hold_groups_
from lightning_reg.prox.group import group_norms, group_weights
from lightning_reg.prox.overlapping import are_nested, shrink_levels
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.schedules.target_sparsity import TargetSparsity
from lightning_reg.select.parameters import Select, Selected
from lightning_reg.tensors.shards import local, part, whole
from lightning_reg.tensors.steps import StepSize

__all__ = ["OverlappingGroupLasso"]

#: A kind of groups within a tensor, or ``"weights"``, each of which is then a group.
Level: TypeAlias = (
    "GroupForm | Literal['weights'] | Callable[[str, nn.Parameter, nn.Module], Layout | Tensor | GroupForm]"
)


@dataclass(frozen=True)
class OverlappingGroupLasso(Penalty):
    r"""A group lasso on several levels: :math:`\lambda\sum_l c_l\sum_{g\in l}\sqrt{|g|}\,\|w_g\|_2`.

    Each level cuts a tensor into groups, and the zeros are the union of those of all levels. Where groups are
    nested, as the weights, kernels and filters of a convolution, this is the tree-structured group lasso: a
    group is zero where one that holds it is. Where they cross, as rows and columns, units and inputs go in
    one problem. :class:`~lightning_reg.SparseGroupLasso` is the case of ``("weights", "rows")``.

    The prox of nested groups with one step a tensor (SGD, or ``metric="euclidean"``) is exact: that of each
    level, from small groups to large ones. In Adam's metric, where nested groups do not compose, and of
    groups that cross, the levels take turns (block ascent in the dual) until a turn moves no weight by more
    than 1e-12, in float32 3e-4, of what the prox moves it, 200 times at most. Sharded tensors are gathered.

    Args:
        strength: λ ≥ 0, in units of loss per unit of weight.
        select: what it applies to; real tensors.
        groups: the levels, in any order: ``"weights"``, one of the words of
            :mod:`lightning_reg.groups.forms`, or a callable as described there. Groups lie within a tensor.
        level_factors: :math:`c_l ≥ 0`, what λ is multiplied by on each level; 1 where None.
        size_weighted: weigh a group by the root of its size.
        name: its name in logs.

    Raises:
        ValueError: a negative, NaN or infinite strength or factor, no levels, unknown groups or groups over
            several tensors, or a share as the strength.

    >>> penalty = OverlappingGroupLasso(1.0, groups=("rows", "columns"), size_weighted=False)
    >>> weight = torch.tensor([[3.0, 0.0], [4.0, 0.0]])
    >>> penalty.value(weight, strength=1.0)
    tensor(12.)
    >>> penalty.prox(torch.tensor([[6.0, 0.5], [0.5, 0.1]]), strength=1.0, step=1.0)
    tensor([[4.0000, 0.0000],
            [0.0000, 0.0000]])

    References:
        Jenatton, Mairal, Obozinski and Bach, *Proximal Methods for Hierarchical Sparse Coding*, JMLR 12,
        2011; Zhao, Rocha and Yu, *The Composite Absolute Penalties Family for Grouped and Hierarchical
        Variable Selection*, Ann. Stat. 37(6A), 2009.
    """

    kind: ClassVar[str] = "norms"
    turn: ClassVar[int] = 29
    takes_complex: ClassVar[bool] = False

    strength: ScheduleLike
    select: Select = "weights"
    _: KW_ONLY
    groups: Sequence[Level] = ("rows", "columns")
    level_factors: Sequence[float] | None = None
    size_weighted: bool = True
    name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        levels: tuple[Any, ...] = (
            () if isinstance(self.groups, str) or callable(self.groups) else tuple(self.groups)
        )
        if not levels:
            raise ValueError(
                f"OverlappingGroupLasso(groups={self.groups!r}) needs levels, such as ('rows', 'columns'); "
                "GroupLasso is for groups of one kind"
            )
        for level in levels:
            if level == "units" or hasattr(level, "resolve"):
                raise ValueError(
                    f"OverlappingGroupLasso(groups=...) needs groups within a tensor, and those of {level!r} "
                    "span several; use GroupLasso for these"
                )
            if level != "weights":
                check_groups(level)
        factors = (1.0,) * len(levels) if self.level_factors is None else tuple(self.level_factors)
        if len(factors) != len(levels) or not all(0.0 <= factor < float("inf") for factor in factors):
            raise ValueError(
                f"OverlappingGroupLasso(level_factors={self.level_factors!r}) needs a finite number, 0 or "
                f"more, for each of {len(levels)} levels"
            )
        if isinstance(self.strength, TargetSparsity):
            raise ValueError(
                f"OverlappingGroupLasso({self.strength!r}) has groups of several kinds, of which no share "
                "can be told; give a number, or use GroupLasso"
            )
        object.__setattr__(self, "groups", levels)
        object.__setattr__(self, "level_factors", factors)

    def value(self, weight: Tensor, strength: float) -> Tensor:
        """Return the penalty of one tensor, its groups those of ``(out, in, ...)``."""
        return self._of(weight).value(weight, strength)

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        """Return the gradient of :meth:`value`, to which a group of zeros gives 0."""
        return self._of(weight).gradient(weight, strength)

    def prox(self, weight: Tensor, strength: float, step: float | Tensor) -> Tensor:
        """Return the proximal operator's result, a new tensor."""
        return self._of(weight).prox(weight, strength, StepSize.of(step)).to(weight.dtype)

    def bind(self, selected: Sequence[Selected]) -> Bound:
        """Find each tensor's groups from the module that owns it."""
        return _BoundLevels(self, selected)

    def _of(self, weight: Tensor) -> _Levels:
        return _Levels.of(
            self,
            [
                _singles(weight) if level == "weights" else default_layout(weight.shape, level)
                for level in self.groups
            ],
        )


def _singles(weight: Tensor) -> Layout:
    return Slices(tuple(weight.shape), tuple(range(weight.dim())))


class _Levels:
    """A penalty on tensors of one shape.

    Args:
        layouts: from small groups to large ones.
        factors: of each layout.
    """

    def __init__(self, layouts: Sequence[Layout], factors: Sequence[float], size_weighted: bool) -> None:
        self.layouts, self.factors, self.size_weighted = layouts, factors, size_weighted
        self._nested: bool | None = None

    @classmethod
    def of(cls, penalty: OverlappingGroupLasso, layouts: Sequence[Layout]) -> _Levels:
        """Put the levels of a penalty into their order."""
        factors: Any = penalty.level_factors
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


class _BoundLevels(Bound):
    """The penalty with the layouts of one module's tensors."""

    holds_zeros = True

    def __init__(self, penalty: OverlappingGroupLasso, selected: Sequence[Selected]) -> None:
        self.penalty = penalty
        self._selected = list(selected)  # keeps the tensors alive, so that an id is never used again
        self._levels = {id(s.parameter): _Levels.of(penalty, self._layouts(s)) for s in selected}

    def _layouts(self, s: Selected) -> list[Layout]:
        return [
            _singles(s.parameter) if level == "weights" else layout_of(s, level)
            for level in self.penalty.groups
        ]

    def warn(self) -> None:
        """Warn of filters whose norm is not in their group."""
        for i in range(len(self.penalty.groups)):
            sets = [[(s, self._layouts(s)[i])] for s in self._selected]
            warn_of_norm_alone(type(self.penalty).__name__, sets)

    def standing_in(self, weights: Sequence[Tensor], others: Sequence[Tensor]) -> Bound:
        """Return this with the levels of ``weights`` for ``others``."""
        twin = _BoundLevels(self.penalty, [])
        twin._selected = self._selected
        twin._levels = {id(o): self._levels[id(w)] for w, o in zip(weights, others, strict=True)}
        return twin

    def total(self, weights: Sequence[Tensor], strength: float, like: Tensor) -> Tensor:
        """Sum over the tensors, outside autocast."""
        some = weights if strength else ()
        return added_up((self._levels[id(w)].value(whole(w), strength) for w in some), like)

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        """Return the gradient of one tensor, whole."""
        return self._levels[id(weight)].gradient(whole(weight), strength)

    @torch.no_grad()
    def add_gradient_(
        self, targets: Sequence[Tensor], weights: Sequence[Tensor], strength: float, alpha: float = 1.0
    ) -> None:
        """``targets += alpha · gradient(weights)``."""
        for target, weight in zip(targets, weights, strict=True):
            local(target).add_(part(self.gradient(weight, strength), weight), alpha=alpha)

    @torch.no_grad()
    def prox_(self, weights: Sequence[Tensor], strength: float, steps: Sequence[StepSize]) -> None:
        """``w ← prox(w)`` for each tensor."""
        for weight, step in zip(weights, steps, strict=True):
            result = self._levels[id(weight)].prox(whole(weight), strength, step.whole())
            local(weight).copy_(part(result, weight))

    @torch.no_grad()
    def hold_zeros_(self, held: Held, strength: float) -> Sequence[int]:
        """Set to zero what the averages keep there: what the prox of the whole norm makes zero of them."""
        for weight, average, step, share in zip(*held, strict=True):
            mine, kept = whole(weight), whole(average)
            layout, prox = Slices(tuple(mine.shape), ()), self._levels[id(weight)].prox_
            hold_groups_([mine], [layout], [kept], [step.whole()], [share], strength, prox, together=True)
            local(weight).copy_(part(mine, weight))
            local(average).copy_(part(kept, average))
        return range(len(held.weights))
