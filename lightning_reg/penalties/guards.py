"""What keeps a steered share of groups from ruining a network: floors, and groups that are none."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_reg.groups.behind import norms_behind
from lightning_reg.groups.forms import layout_of
from lightning_reg.groups.layout import Layout
from lightning_reg.prox.group import group_norms, group_weights
from lightning_reg.schedules.floors import check_share, floor_of
from lightning_reg.schedules.target_sparsity import TargetSparsity
from lightning_reg.select.parameters import Selected, is_norm
from lightning_reg.tensors.grad_mode import without_grad

__all__ = ["A_CONSTANT", "Share", "check_no_biases", "check_steered", "warn_of_norm_alone"]

_BEFORE_NORM = (nn.Linear, nn.modules.conv._ConvNd)


def check_steered(
    who: str, target: TargetSparsity, sets: Sequence[Sequence[tuple[Selected, Layout]]]
) -> None:
    """Refuse a share of groups that the floors forbid, or groups that a share must not count.

    Raises:
        ValueError: the sentence says which, and what to use instead.
    """
    check_no_biases(f"{who}({target!r})", sets)
    found = norm_alone(sets)
    if found is not None:
        name, use = _way_out(found[1])
        raise ValueError(
            f"{who}(TargetSparsity(...)) on the filters of {found[0].name} alone: the {name} behind undoes "
            f"their shrinking, so that no strength has a hold on them; {use}"
        )
    check_share(f"{who}({target!r})", target, [members[0][1].count for members in sets], "groups")


def check_no_biases(who: str, sets: Sequence[Sequence[tuple[Selected, Layout]]]) -> None:
    """Refuse to count each entry of a bias as a group of its own.

    Raises:
        ValueError: the sentence names one, and says what to use instead.
    """
    for ((s, layout),) in (members for members in sets if len(members) == 1):
        if s.parameter.dim() < 2 and layout.count > 1 and not is_norm(s.module):
            raise ValueError(
                f"{who} would count each weight of {s.name} as a group of its own; use groups='units', or "
                f"leave it out with select=['weights', '!{s.name}']"
            )


def norm_alone(
    sets: Sequence[Sequence[tuple[Selected, Layout]]],
) -> tuple[Selected, nn.Module | str] | None:
    """Return the first filters whose batch normalization is not in their group, and the norm.

    It undoes their shrinking, so that this costs nothing.
    """
    rows = [
        (s, {id(other.module) for other, _ in members})
        for members in sets
        for s, layout in members
        if isinstance(s.module, _BEFORE_NORM)
        and s.norms_of is None
        and s.parameter.dim() > 1
        and layout == layout_of(s, "rows")
    ]
    behind = norms_behind(rows[0][0].containers[0]) if rows else {}
    for s, inside in rows:
        norm = behind.get(s.module)
        if norm is not None and (isinstance(norm, str) or not (_scales(norm) and id(norm) in inside)):
            return s, norm
    return None


def _scales(norm: nn.Module) -> bool:
    return bool(getattr(norm, "affine", False))


def _way_out(norm: nn.Module | str) -> tuple[str, str]:
    """The name of a norm, and what to do about it."""
    if isinstance(norm, str) or not _scales(norm):
        name = norm if isinstance(norm, str) else type(norm).__name__
        return name, "give it a scale (affine=True) and use groups='units'"
    by_hand = "couple its weight and bias with them by Coupled"
    units = isinstance(norm, nn.modules.batchnorm._NormBase)
    return type(norm).__name__, f"use groups='units', or {by_hand}" if units else by_hand


#: What is wrong with zeros that a given strength makes.
NO_HOLD = "undoes their shrinking, so that the strength does not decide which become zero"
#: What is wrong with zeros of a given share.
A_CONSTANT = "makes a constant of a filter of zeros, which compact cannot always cut"


def warn_of_norm_alone(
    who: str, sets: Sequence[Sequence[tuple[Selected, Layout]]], why: str = NO_HOLD
) -> None:
    """Warn of filters whose batch normalization is not in their group."""
    found = norm_alone(sets)
    if found is not None:
        name, use = _way_out(found[1])
        warnings.warn(
            f"{who} on the filters of {found[0].name} alone: the {name} behind {why}; {use}", stacklevel=2
        )


class Share:
    """No more groups die than a share asks for, and of each layer as many as its floor are left alone.

    A dead unit has no gradient, so that one too many would never come back. Where a proximal step would take
    more, the strongest of them are put back to what they were before it. So is the floor at every step: units
    that were only kept from zero would shrink until a normalization behind them, by its ε, passes nothing on.

    Args:
        target: the share and the floor.
        counts: the number of groups in each set.
    """

    def __init__(self, target: TargetSparsity, counts: Sequence[int]) -> None:
        self.target = target
        self._most = math.ceil(target.share * sum(counts) - 1e-9)
        self._floors = [floor_of(target, count, "groups") for count in counts]
        #: Dead groups of each set after its last step.
        self.dead = [0] * len(counts)
        self._spared: dict[int, tuple[Tensor, Tensor]] = {}
        self._before: dict[int, list[Tensor]] = {}

    def note(self, index: int, tensors: Sequence[Tensor]) -> None:
        """Take a copy of what a set is before it is acted on in this step."""
        if index not in self._before:
            self._before[index] = [tensor.detach().clone() for tensor in tensors]

    @without_grad
    def keep_(self, index: int, tensors: Sequence[Tensor], layouts: Sequence[Layout]) -> None:
        """Look at what a step has made of one set, and put back what it must not take.

        ``layouts`` number all groups, also those whose weights other processes hold.
        """
        before = self._before.pop(index)
        norms = group_norms(before, layouts)
        weights = torch.as_tensor(group_weights(layouts, norms, size_weighted=False)).to(norms)
        real = weights.expand_as(norms) > 0
        dead = (group_norms(tensors, layouts) == 0) & real
        floored = torch.zeros_like(dead)
        floored[torch.where(real, norms, -1.0).topk(self._floors[index]).indices] = True
        floored &= real & (norms > 0)
        excess = int((dead & ~floored).sum()) - max(self._most - sum(self.dead) + self.dead[index], 0)
        spared = floored.clone()
        if excess > 0:
            spared[torch.where(dead & ~floored, norms, -1.0).topk(excess).indices] = True
        if self._floors[index] or excess > 0:
            for tensor, old, layout in zip(tensors, before, layouts, strict=True):
                view = layout.view(tensor)
                view.copy_(torch.where(layout.spread(spared.to(view.device), view), layout.view(old), view))
        self.dead[index] = int((dead & ~spared).sum())
        self._spared[index] = spared, floored

    def pressed(self, index: int, norms: Tensor) -> Tensor:
        """Return the norms of a set as a strength is to see them.

        They are 0 for groups that the share has put back, where a lower strength would do, and infinite for
        those that the floor has, which no strength cuts: others must go for them.
        """
        if index not in self._spared:
            return norms
        spared, floored = (mask.to(norms.device) for mask in self._spared[index])
        return torch.where(floored, torch.inf, torch.where(spared, 0.0, norms))
