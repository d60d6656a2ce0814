"""What always stays of each tensor while a strength is steered to a share of zero weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_reg.apply.term import Term
from lightning_reg.schedules.target_sparsity import TargetSparsity
from lightning_reg.tensors.shards import is_sharded

__all__ = ["Floors", "check_floors"]


def check_floors(term: Term) -> None:
    """Refuse a share of weights that the floor forbids.

    Raises:
        ValueError: the sentence says how many may be zero.
    """
    target = _target_of(term)
    if target is None:
        return
    sizes = [s.parameter.numel() for s in term.selected]
    most = sum(size - _floor(target, size) for size in sizes)
    if most < math.floor(target.share * sum(sizes)):
        raise ValueError(
            f"{type(term.penalty).__name__}({target!r}) cannot be met: with floor={target.floor} at most "
            f"{most} of {sum(sizes)} weights may be zero; ask for a smaller share or floor"
        )


class Floors:
    """The largest weights of each tensor before a proximal step, to be put back where it leaves fewer.

    Groups have floors of their own, and a sharded tensor is left to the share.

    Args:
        term: the penalty at work.
        weights: about to be acted on.
    """

    def __init__(self, term: Term, weights: Sequence[Tensor]) -> None:
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []
        target = _target_of(term)
        if target is None:
            return
        for weight in weights:
            count = _floor(target, weight.numel())
            if count > 0 and not is_sharded(weight):
                flat = weight.detach().reshape(-1)
                places = flat.abs().topk(count, sorted=False).indices
                self._kept.append((weight, places, flat[places]))

    @torch.no_grad()
    def put_back_(self) -> None:
        """Restore them, without a look at how many there are."""
        for weight, places, values in self._kept:
            flat = weight.view(-1) if weight.is_contiguous() else weight.reshape(-1)
            now = flat[places]
            short = torch.count_nonzero(flat) < len(places)
            flat[places] = torch.where(short & (now == 0), values, now)
            if flat.data_ptr() != weight.data_ptr():
                weight.copy_(flat.view(weight.shape))


def _target_of(term: Term) -> TargetSparsity | None:
    target = term.penalty.strength
    if not isinstance(target, TargetSparsity) or target.floor == 0:
        return None
    grouped = hasattr(term.bound, "sizes_by_layer") and target.of != "weights"
    return None if grouped else target


def _floor(target: TargetSparsity, size: int) -> int:
    floor = 1 if target.floor is None else target.floor
    floor = math.ceil(floor * size) if isinstance(floor, float) else floor
    return max(min(floor, size - 1), 0)
