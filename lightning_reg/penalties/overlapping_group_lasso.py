"""Overlapping group lasso: groups of several kinds at once, nested like a tree or across each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

from torch import Tensor, nn

from lightning_reg.groups.forms import GroupForm, check_groups, default_layout
from lightning_reg.groups.layout import Layout, singles
from lightning_reg.penalties._bound_levels import BoundLevels, Levels
from lightning_reg.penalties.base import Penalty
from lightning_reg.penalties.bound import Bound
from lightning_reg.penalties.reweighted import Reweighted
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.schedules.target_sparsity import TargetSparsity
from lightning_reg.select.parameters import Select, Selected
from lightning_reg.tensors.steps import StepSize

__all__ = ["OverlappingGroupLasso"]

#: A kind of groups within a tensor, or ``"weights"``, each of which is then a group.
Level: TypeAlias = (
    "GroupForm | Literal['weights'] | Callable[[str, nn.Parameter, nn.Module], Layout | Tensor | GroupForm]"
)

#: For one parameter a number, or for each of its levels a number or a tensor of ``(groups,)``.
LevelFactors: TypeAlias = "float | Sequence[float | Tensor]"


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
        factors: what λ is multiplied by for each group: for each level, in the order of ``groups``, a number
            or a tensor of ``(groups,)``. One such tuple where one parameter is selected, a dict of them by
            parameter name, or a callable ``(name, parameter, module) -> tuple``; a number in the place of a
            tuple is for all levels. 0 leaves a group alone.
        name: its name in logs.

    Raises:
        ValueError: a negative, NaN or infinite strength or factor, no levels, unknown groups or groups over
            several tensors, a share as the strength, or ``Reweighted`` as the factors.

    >>> import torch
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
    factors: (
        Sequence[float | Tensor]
        | Mapping[str, LevelFactors]
        | Callable[[str, nn.Parameter, nn.Module], LevelFactors]
        | None
    ) = field(default=None, repr=False, compare=False)
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
        if isinstance(self.factors, Reweighted):
            raise ValueError(
                f"OverlappingGroupLasso(factors={self.factors!r}) has groups of several kinds, and these "
                "factors follow one; give your own, or use GroupLasso"
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
        return BoundLevels(self, selected)

    def _of(self, weight: Tensor) -> Levels:
        return Levels.of(
            self,
            [
                singles(weight) if level == "weights" else default_layout(weight.shape, level)
                for level in self.groups
            ],
        )
