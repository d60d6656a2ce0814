"""What a constraint is: a set of weights, and the projection onto it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lightning_reg.groups.forms import Groups, check_groups
from lightning_reg.groups.layout import Layout
from lightning_reg.groups.partition import partition, spans_tensors
from lightning_reg.groups.spanning import local_layout
from lightning_reg.penalties.bound import Bound, Held
from lightning_reg.penalties.regularizer import Regularizer
from lightning_reg.prox.dual_averaging import hold_bounds_
from lightning_reg.select.parameters import Selected, check_select
from lightning_reg.tensors.chunks import pieces
from lightning_reg.tensors.steps import StepSize

__all__ = ["BoundConstraint", "Constraint", "GroupConstraint"]


class Constraint(Regularizer):
    r"""A set :math:`C`, in which every selected tensor lies after each step.

    Its proximal operator is the projection :math:`\arg\min_{x \in C} \|x - w\|_2`, whatever the strength or
    the step. So it acts after the optimizer's step, and after all penalties that do.

    Subclasses are frozen dataclasses with the fields ``select`` and ``name``, and hold no state: one object
    serves any number of modules.
    """

    strength = 1.0
    is_constraint: ClassVar[bool] = True
    turn: ClassVar[int] = 60
    #: Whether each weight is projected by itself, so that a shard needs no other.
    elementwise: ClassVar[bool] = False
    #: The interval of each weight, whose ends noise is kept from moving weights off; else None.
    bounds: ClassVar[tuple[float, float] | None] = None

    def __post_init__(self) -> None:
        """Check the arguments that every constraint has."""
        check_select(self.select)

    @property
    def has_prox(self) -> bool:
        """A projection is one."""
        return True

    @property
    def has_gradient(self) -> bool:
        """A set has none."""
        return False

    @property
    def longest(self) -> float | None:
        """The norm that no group may exceed, where that is all that the set asks for; else None."""
        return None

    def project_(self, weight: Tensor) -> None:
        """Move ``weight``, or the part of it in this process, to the nearest point of the set, in place."""
        raise NotImplementedError(f"{type(self).__name__} has no project_; write it, or a bind of its own")

    def settle_(self, average: Tensor) -> None:
        """Put an average of tensors of the set, whose zeros have been set, back into the set, in place."""
        self.project_(average)

    def bind(self, selected: Sequence[Selected]) -> BoundConstraint:
        """Return what projects these parameters of one module."""
        return _EachTensor(self)


class BoundConstraint(Bound):
    """A constraint on the tensors of one module; it adds nothing to a loss or a gradient."""

    def __init__(self, constraint: Constraint) -> None:
        self.constraint = constraint

    @property
    def elementwise(self) -> bool:
        """Whether each weight is projected by itself."""
        return self.constraint.elementwise

    def before_step_(self, weights: Sequence[Tensor], strength: float) -> None:
        """Look at the weights before the optimizer's step."""

    @abstractmethod
    def project_(self, weights: Sequence[Tensor]) -> None:
        """Put each tensor back into the set."""

    def settle_(self, weights: Sequence[Tensor], averages: Sequence[Tensor]) -> None:
        """Put averages of weights, with the zeros of these, back into the set; mostly they are in it."""

    def prox_(self, weights: Sequence[Tensor], strength: float, steps: Sequence[StepSize]) -> None:
        """Project: the proximal operator of a set."""
        self.project_(weights)

    def total(self, weights: Sequence[Tensor], strength: float, like: Tensor) -> Tensor:
        """Return 0, the value inside the set."""
        return torch.zeros((), device=like.device)

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        """Return 0, the gradient inside the set."""
        return torch.zeros_like(weight)

    def add_gradient_(
        self, targets: Sequence[Tensor], weights: Sequence[Tensor], strength: float, alpha: float = 1.0
    ) -> None:
        """Add nothing."""


class _EachTensor(BoundConstraint):
    @property
    def holds_zeros(self) -> bool:
        """Whether weights are kept at the ends of an interval."""
        return self.constraint.bounds is not None

    def hold_zeros_(self, held: Held, strength: float) -> Sequence[int]:
        assert self.constraint.bounds is not None
        low, high = self.constraint.bounds
        for weight, average, share in zip(held.weights, held.averages, held.shares, strict=True):
            for piece, kept in pieces(weight, average):
                hold_bounds_(piece, kept, low, high, share)
        return ()

    def project_(self, weights: Sequence[Tensor]) -> None:
        for weight in weights:
            self.constraint.project_(weight)

    @torch.no_grad()
    def settle_(self, weights: Sequence[Tensor], averages: Sequence[Tensor]) -> None:
        for average in averages:
            self.constraint.settle_(average)


class GroupConstraint(Constraint):
    """A set that each group of weights is kept in; a frozen dataclass with a field ``groups`` more."""

    groups: Groups

    def __post_init__(self) -> None:
        """Check the arguments that every one of them has."""
        super().__post_init__()
        check_groups(self.groups)
        if spans_tensors(self.groups):
            raise ValueError(
                f"{type(self).__name__} works on groups within a tensor, and groups={self.groups!r} couples "
                "several; use groups='rows'"
            )

    @abstractmethod
    def project_groups_(self, weight: Tensor, layout: Layout) -> None:
        """Project the groups of ``weight`` in place; ``layout`` is that of the part in this process."""

    def bind(self, selected: Sequence[Selected]) -> BoundConstraint:
        """Return what projects the groups of these parameters."""
        return _EachGroup(self, selected)


class _EachGroup(BoundConstraint):
    constraint: GroupConstraint

    def __init__(self, constraint: GroupConstraint, selected: Sequence[Selected]) -> None:
        super().__init__(constraint)
        sets = partition(selected, constraint.groups)
        self._layouts = {
            id(s.parameter): local_layout(s.parameter, layout) for members in sets for s, layout in members
        }

    def standing_in(self, weights: Sequence[Tensor], others: Sequence[Tensor]) -> Bound:
        twin = _EachGroup(self.constraint, [])
        twin._layouts = {id(o): self._layouts[id(w)] for w, o in zip(weights, others, strict=True)}
        return twin

    def project_(self, weights: Sequence[Tensor]) -> None:
        self.settle_(weights, weights)

    @torch.no_grad()
    def settle_(self, weights: Sequence[Tensor], averages: Sequence[Tensor]) -> None:
        for weight, average in zip(weights, averages, strict=True):
            self.constraint.project_groups_(average, self._layouts[id(weight)])
