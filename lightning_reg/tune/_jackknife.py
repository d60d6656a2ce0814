"""How far a score depends on the samples it was measured on: the jackknife, a tenth of them at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_reg.tune._loss import size_of

__all__ = ["ALL", "HALVES", "Part", "jackknife_error", "part_of"]

#: Numbers of the blocks that samples are dealt to.
ALL = frozenset(range(10))
#: The blocks of each of two halves.
HALVES = (frozenset(range(0, 10, 2)), frozenset(range(1, 10, 2)))


def jackknife_error(without: Sequence[float]) -> float:
    r"""Return the standard error of a score from its values :math:`s_b` without each of :math:`B` blocks.

    .. math:: \sqrt{\frac{B-1}{B} \sum_b (s_b - \bar s)^2}

    For a mean over blocks of equal size this is the standard error of their mean. But a score need not be a
    mean: an area under a curve, or a correlation, is measured on nine tenths of the samples, and never on a
    tenth, in which a class may be missing. Values that are not finite are left out; the error is 0 where
    fewer than two are left.

    References:
        Tukey, "Bias and confidence in not-quite large samples", *Annals of Mathematical Statistics*, 1958.
    """
    known = [score for score in without if math.isfinite(score)]
    if len(known) < 2:
        return 0.0
    mean = math.fsum(known) / len(known)
    return math.sqrt(math.fsum((score - mean) ** 2 for score in known) * (len(known) - 1) / len(known))


def part_of(batches: Any, blocks: frozenset[int]) -> Any:
    """Return the batches as they are where all blocks are asked for, and else a part of them."""
    return batches if blocks == ALL else Part(batches, blocks)


class Part:
    """Batches with the samples of some blocks alone.

    Samples are dealt to blocks at random, and to the same blocks each time. A batch that cannot be cut along
    its first dimension, such as a batch of graphs, counts as one sample.

    Args:
        batches: all of them, in the same order each time.
        blocks: to keep.
    """

    def __init__(self, batches: Iterable[Any], blocks: frozenset[int]) -> None:
        self.batches, self.blocks = batches, torch.tensor(sorted(blocks))

    def __iter__(self) -> Iterator[Any]:
        generator, dealt = torch.Generator().manual_seed(0), 0
        for batch in self.batches:
            size = size_of(batch) if _can_be_cut(batch, size_of(batch)) else 1
            blocks = (dealt + torch.randperm(size, generator=generator)) % len(ALL)
            dealt += size
            kept = torch.isin(blocks, self.blocks).nonzero().flatten()
            if len(kept) == size:
                yield batch
            elif len(kept):
                yield _cut(batch, size, kept)


def _can_be_cut(batch: Any, size: int) -> bool:
    """Whether every tensor in it has ``size`` samples."""
    if isinstance(batch, Tensor):
        return batch.dim() == 0 or len(batch) == size
    if isinstance(batch, Mapping):
        return all(_can_be_cut(part, size) for part in batch.values())
    if isinstance(batch, list | tuple):
        return all(_can_be_cut(part, size) for part in batch)
    return batch is None or isinstance(batch, str | bool | int | float)


def _cut(batch: Any, size: int, kept: Tensor) -> Any:
    if isinstance(batch, Tensor):
        return batch[kept.to(batch.device)] if batch.dim() else batch
    if isinstance(batch, Mapping):
        return {name: _cut(part, size, kept) for name, part in batch.items()}
    if isinstance(batch, list | tuple):
        inside = any(isinstance(part, Tensor | Mapping | list | tuple) for part in batch)
        if len(batch) == size and not inside:  # names or texts, one a sample
            parts = [batch[index] for index in kept.tolist()]
        else:
            parts = [_cut(part, size, kept) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch
