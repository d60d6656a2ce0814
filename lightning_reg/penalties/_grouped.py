"""What group penalties share: the layout of each tensor's groups, found when they are bound to a module."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from lightning_reg.groups.forms import Groups, check_groups, default_layout
from lightning_reg.groups.layout import Layout
from lightning_reg.groups.partition import choose, selection
from lightning_reg.penalties._bound_groups import BoundGroups
from lightning_reg.penalties.base import Penalty
from lightning_reg.penalties.bound import Bound
from lightning_reg.select.parameters import Selected
from lightning_reg.tensors.grad_mode import without_grad
from lightning_reg.tensors.steps import StepSize

__all__ = ["GroupedPenalty"]


class GroupedPenalty(Penalty):
    """A penalty that is a sum over groups of weights.

    A subclass gives the formula for tensors that share their groups: mostly one tensor, and several where
    the groups are coupled. On a bare tensor the groups are those of a weight ``(out, in, ...)``.
    """

    groups: Groups
    #: Whether the formula needs whole groups, so that a tensor whose groups span processes is gathered.
    gathers: ClassVar[bool] = False

    @property
    def longest_step(self) -> float:
        """Return what a longer step counts as, where the penalty is not convex."""
        return float("inf")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_groups(self.groups)
        object.__setattr__(self, "select", selection(self.select, self.groups))

    def levels_of(self, weight: Tensor, layout: Layout) -> Sequence[Layout]:
        """Return the groups of a tensor whose norms count, of each kind."""
        return (layout,)

    # --- the formula, for tensors that share their groups ----------------------------------------------

    @abstractmethod
    def joint_value(self, weights: Sequence[Tensor], layouts: Sequence[Layout], strength: float) -> Tensor:
        """Return the penalty, a differentiable scalar, accumulated in float32 or wider."""

    @abstractmethod
    def joint_gradient(
        self, weights: Sequence[Tensor], layouts: Sequence[Layout], strength: float
    ) -> list[Tensor]:
        """Return the gradient of :meth:`joint_value` for each tensor; a subgradient at kinks."""

    @abstractmethod
    def joint_prox_(
        self,
        weights: Sequence[Tensor],
        layouts: Sequence[Layout],
        strength: float,
        steps: Sequence[StepSize],
    ) -> None:
        """Replace the tensors by their prox."""

    @abstractmethod
    def norm_prox_(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> None:
        """Replace views of the tensors by their prox with λ and a step of 1."""

    # --- the same for one bare tensor ------------------------------------------------------------------

    def value(self, weight: Tensor, strength: float) -> Tensor:
        """Return the penalty of one tensor, its groups those of ``(out, in, ...)``."""
        return self.joint_value([weight], [default_layout(weight.shape, self.groups)], strength)

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        """Return the gradient of :meth:`value`, 0 for a group of zeros."""
        return self.joint_gradient([weight], [default_layout(weight.shape, self.groups)], strength)[0]

    @without_grad
    def prox(self, weight: Tensor, strength: float, step: float | Tensor) -> Tensor:
        """Return the proximal operator's result, a new tensor."""
        result = weight.clone()
        size = StepSize.of(step)
        self.joint_prox_([result], [default_layout(weight.shape, self.groups)], strength, [size])
        return result

    @property
    def has_prox(self) -> bool:
        """Every group penalty has one."""
        return True

    def choose(self, parameters: Sequence[Selected]) -> list[Selected]:
        """Return what ``select`` takes, or what the groups themselves say."""
        return choose(parameters, self.select, self.groups)

    def bind(self, selected: Sequence[Selected]) -> Bound:
        """Find each tensor's groups from the module that owns it."""
        return BoundGroups(self, selected)
