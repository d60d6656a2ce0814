"""What group penalties share: the layout of each tensor's groups, found when they are bound to a module."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_reg.coupled import Coupled
from lightning_reg.groups import Groups, check_groups, default_layout, layout_of
from lightning_reg.layout import Layout
from lightning_reg.numerics import real_dtype
from lightning_reg.penalties.base import Penalty
from lightning_reg.penalties.bound import Bound
from lightning_reg.prox_group import group_norms, group_weights
from lightning_reg.select import Selected
from lightning_reg.step_size import StepSize

__all__ = ["GroupedPenalty"]


class GroupedPenalty(Penalty):
    """A penalty that is a sum over groups of weights.

    A subclass gives the formula for tensors that share their groups: mostly one tensor, and several where
    the groups are coupled. On a bare tensor the groups are those of a weight ``(out, in, ...)``.
    """

    groups: Groups

    def __post_init__(self) -> None:
        super().__post_init__()
        check_groups(self.groups)
        if isinstance(self.groups, Coupled) and self.select == "weights":
            object.__setattr__(self, "select", list(self.groups.names))

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

    # --- the same for one bare tensor ------------------------------------------------------------------

    def value(self, weight: Tensor, strength: float) -> Tensor:
        """Return the penalty of one tensor, its groups those of ``(out, in, ...)``."""
        return self.joint_value([weight], [default_layout(weight.shape, self.groups)], strength)

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        """Return the gradient of :meth:`value`, 0 for a group of zeros."""
        return self.joint_gradient([weight], [default_layout(weight.shape, self.groups)], strength)[0]

    @torch.no_grad()
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

    def bind(self, selected: Sequence[Selected]) -> Bound:
        """Find each tensor's groups from the module that owns it."""
        return _BoundGroups(self, selected)


class _BoundGroups(Bound):
    """A group penalty with the layouts of one module's tensors."""

    def __init__(self, penalty: GroupedPenalty, selected: Sequence[Selected]) -> None:
        self.penalty = penalty
        # by identity; Selected keeps the tensors alive, so that an id is never used again
        self._selected = list(selected)
        if isinstance(penalty.groups, Coupled):
            sets = penalty.groups.resolve(self._selected)
        else:
            sets = [[(s, layout_of(s, penalty.groups))] for s in self._selected]
        self._layouts = {id(s.parameter): layout for members in sets for s, layout in members}
        self._set_of = {id(s.parameter): i for i, members in enumerate(sets) for s, _ in members}
        self.couples = any(len(members) > 1 for members in sets)

    def standing_in(self, weights: Sequence[Tensor], others: Sequence[Tensor]) -> Bound:
        """Return this with the layouts of ``weights`` for ``others``."""
        twin = copy.copy(self)
        pairs = [(id(w), id(o)) for w, o in zip(weights, others, strict=True) if id(w) in self._set_of]
        twin._layouts = {other: self._layouts[weight] for weight, other in pairs}
        twin._set_of = {other: self._set_of[weight] for weight, other in pairs}
        return twin

    def total(self, weights: Sequence[Tensor], strength: float, like: Tensor) -> Tensor:
        """Sum over the blocks, outside autocast."""
        if not weights or strength == 0.0:
            return torch.zeros((), device=like.device, dtype=real_dtype(like.dtype))
        with torch.autocast(like.device.type, enabled=False):
            values = [
                self.penalty.joint_value([weights[i] for i in block], layouts, strength)
                for block, layouts in self._blocks(weights)
            ]
            total = torch.zeros((), device=like.device, dtype=real_dtype(like.dtype))
            for value in values:
                total = total + value.to(total.device)
        return total

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        """Return the gradient of one tensor whose groups no other shares."""
        if self.couples:
            raise ValueError(
                f"{type(self.penalty).__name__} on coupled groups needs dense gradients; use sparse=False "
                "in the embedding"
            )
        return self.penalty.joint_gradient([weight], [self._layouts[id(weight)]], strength)[0]

    @torch.no_grad()
    def add_gradient_(
        self, targets: Sequence[Tensor], weights: Sequence[Tensor], strength: float, alpha: float = 1.0
    ) -> None:
        """``targets += alpha · gradient(weights)``, a block at a time."""
        for block, layouts in self._blocks(weights):
            gradients = self.penalty.joint_gradient([weights[i] for i in block], layouts, strength)
            for i, gradient in zip(block, gradients, strict=True):
                targets[i].add_(gradient, alpha=alpha)

    @torch.no_grad()
    def prox_(self, weights: Sequence[Tensor], strength: float, steps: Sequence[StepSize]) -> None:
        """``w ← prox(w)``, a block at a time."""
        for block, layouts in self._blocks(weights):
            self.penalty.joint_prox_(
                [weights[i] for i in block], layouts, strength, [steps[i] for i in block]
            )

    @torch.no_grad()
    def sizes(self, weights: Sequence[Tensor]) -> Tensor:
        """Return the norm of every group, by the root of its size; weights in no group do not count."""
        found = []
        for block, layouts in self._blocks(weights):
            norms = group_norms([weights[i] for i in block], layouts)
            roots = torch.as_tensor(group_weights(layouts, norms)).to(norms).expand_as(norms)
            found.append((norms[roots > 0] / roots[roots > 0]).cpu())
        return torch.cat(found) if found else torch.zeros(0)

    def _blocks(self, weights: Sequence[Tensor]) -> Iterator[tuple[list[int], list[Layout]]]:
        """Positions in ``weights`` of tensors that share their groups, with their layouts."""
        blocks: dict[int, list[int]] = {}
        for i, weight in enumerate(weights):
            if id(weight) in self._set_of:  # else a tensor that a coupled set has exchanged for another
                blocks.setdefault(self._set_of[id(weight)], []).append(i)
        for block in blocks.values():
            yield block, [self._layouts[id(weights[i])] for i in block]
