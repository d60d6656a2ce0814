"""What always stays of each tensor while a strength is steered to a share of zero weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_reg.apply.term import Term
from lightning_reg.schedules.floors import check_share, floor_of
from lightning_reg.schedules.target_sparsity import TargetSparsity
from lightning_reg.tensors.grad_mode import without_grad
from lightning_reg.tensors.shards import is_sharded, local, max_over_shards, sum_over_shards, whole

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
    free = [term.bound.free(s.parameter) for s in term.selected]
    check_share(f"{type(term.penalty).__name__}({target!r})", target, sizes, "weights", free)


class Floors:
    """The largest weights of each tensor before a proximal step, to be put back where it leaves fewer.

    Groups have floors of their own.

    Args:
        term: the penalty at work.
        weights: about to be acted on.
    """

    def __init__(self, term: Term, weights: Sequence[Tensor]) -> None:
        self._kept: list[tuple[Tensor, int, Tensor, Tensor]] = []
        target = _target_of(term)
        if target is None:
            return
        for weight in weights:
            count = floor_of(target, weight.numel(), "weights")
            if count > 0:
                mine = local(weight.detach()).reshape(-1)
                places = _largest(weight, mine.abs(), count)
                self._kept.append((weight, count, places, mine[places]))

    @without_grad
    def put_back_(self) -> None:
        """Restore them, without a look at how many there are."""
        for weight, count, places, values in self._kept:
            mine = local(weight.detach())
            flat = mine.view(-1) if mine.is_contiguous() else mine.reshape(-1)
            now, left = flat[places], torch.count_nonzero(flat).double()
            short = (sum_over_shards(left, weight) if is_sharded(weight) else left) < count
            flat[places] = torch.where(short & (now == 0), values, now)
            if flat.data_ptr() != mine.data_ptr():
                mine.copy_(flat.view(mine.shape))


def _largest(weight: Tensor, mine: Tensor, count: int) -> Tensor:
    """Where the ``count`` largest entries of ``weight`` lie in this process's part, of sizes ``mine``."""
    if not is_sharded(weight):
        return mine.topk(count, sorted=False).indices
    if count == 1:
        edge = max_over_shards(mine.max() if mine.numel() else mine.new_zeros(()), weight)
    else:
        edge = whole(weight.detach()).abs().flatten().topk(count).values[-1]
    return (mine >= edge).nonzero().flatten()


def _target_of(term: Term) -> TargetSparsity | None:
    target = term.penalty.strength
    if not isinstance(target, TargetSparsity) or target.floor == 0:
        return None
    grouped = hasattr(term.bound, "sizes_by_layer") and target.of != "weights"
    return None if grouped else target
