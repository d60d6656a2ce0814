"""Small CPU tensors copied into one vector, so that an operation is one call for all of them.

On a small network the calls take the time, and not the numbers. Buffers are kept by each thread, since fresh
memory would cost a page fault every 4 KiB.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_reg.tensors.shards import is_sharded

__all__ = ["PACK", "SMALL", "end_to_end", "in_bounds", "is_small", "packs", "scratch"]

#: Elements up to which a tensor goes with others into one call.
SMALL = 2**14
#: Elements in a vector of a pack, and packs that each thread keeps: 4 MiB in float32 of two vectors each.
PACK, PACKS = 2**17, 4
#: Shapes in which a thread remembers its buffers, since a view takes as long as an operation on it.
VIEWS = 256


def is_small(tensor: Tensor) -> bool:
    """Whether a tensor costs more calls than work, so that it goes with others."""
    return tensor.numel() <= SMALL


def end_to_end(weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the same weights with the small ones laid end to end, with the graph to those given."""
    found: list[Tensor] = []
    together: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for weight in weights:
        if is_small(weight) and not is_sharded(weight):
            together.setdefault((weight.dtype, weight.device), []).append(weight)
        else:
            found.append(weight)
    for alike in together.values():
        found.append(alike[0] if len(alike) == 1 else torch.cat([weight.flatten() for weight in alike]))
    return found


def packs(rows: Sequence[tuple[Tensor, ...]], changed: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield the columns of ``rows``, each as one vector; what is done to the first ``changed`` goes back.

    Args:
        rows: small CPU tensors, of one shape in a row and of one dtype in a column.
        changed: how many columns are written to.
    """
    for some in in_bounds(rows, PACK):
        if len(some) == 1 and all(tensor.is_contiguous() for tensor in some[0]):
            yield some[0]
            continue
        vectors, views = scratch.pack(some)
        tensors = [tensor for column in zip(*some, strict=True) for tensor in column]
        torch._foreach_copy_(views, tensors)
        yield vectors
        count = changed * len(some)
        torch._foreach_copy_(tensors[:count], views[:count])


def in_bounds(rows: Sequence[tuple[Tensor, ...]], most: int) -> Iterator[Sequence[tuple[Tensor, ...]]]:
    """Yield runs of rows with ``most`` elements in a column at most, or of one row."""
    first, size = 0, 0
    for i, row in enumerate(rows):
        size += row[0].numel()
        if size > most and i > first:
            yield rows[first:i]
            first, size = i, row[0].numel()
    if rows:
        yield rows[first:]


class _Scratch(threading.local):
    """Buffers kept by each thread."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, torch.dtype], Tensor] = {}
        self._views: dict[tuple[int, torch.dtype, torch.Size], Tensor] = {}
        self._packs: dict[tuple[object, ...], tuple[tuple[Tensor, ...], list[Tensor]]] = {}

    def __call__(self, index: int, like: Tensor) -> Tensor:
        """Return buffer ``index`` in the shape of ``like``; what it held is gone."""
        if not like.is_cpu:  # torch's allocator keeps accelerator memory at hand
            return torch.empty_like(like)
        key = (index, like.dtype, like.shape)
        found = self._views.get(key)
        if found is None:
            found = self._views[key] = self._view(*key)
        return found

    @torch.inference_mode(False)  # whose tensors could not be written to outside of it
    def _view(self, index: int, dtype: torch.dtype, shape: torch.Size) -> Tensor:
        size = shape.numel()
        buffer = self._kept.get((index, dtype))
        if buffer is None or buffer.numel() < size:
            buffer = self._kept[index, dtype] = torch.empty(size, dtype=dtype)
            self._views.clear()  # of smaller buffers, which go
        elif len(self._views) >= VIEWS:
            self._views.clear()
        return buffer[:size].view(shape)

    def pack(self, rows: Sequence[tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """Return a vector for each column, and views of them in the shapes of the tensors."""
        key = (*[tensor.dtype for tensor in rows[0]], *[row[0].shape for row in rows])
        found = self._packs.get(key)
        if found is None:
            if len(self._packs) == PACKS:
                self._packs.clear()
            sizes = [row[0].numel() for row in rows]
            vectors = tuple(_empty(sum(sizes), tensor.dtype) for tensor in rows[0])
            views = [
                part.view(row[0].shape)
                for vector in vectors
                for part, row in zip(torch.split(vector, sizes), rows, strict=True)
            ]
            found = self._packs[key] = vectors, views
        return found


@torch.inference_mode(False)  # whose tensors could not be written to outside of it
def _empty(size: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(size, dtype=dtype)


scratch = _Scratch()
