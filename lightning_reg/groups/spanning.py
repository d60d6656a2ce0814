"""Groups of a tensor that several processes hold in parts.

Where every group lies whole on one process, the layout of that process's part is a plain one, and nothing is
sent. Elsewhere each reduction ends with one all-reduce of a number a group, and every process then holds the
numbers of all groups.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from lightning_reg.groups.layout import Labels, Layout, Slices, dims_of
from lightning_reg.tensors.shards import box, is_sharded, local, max_over_shards, split_dims, sum_over_shards

__all__ = ["Spanning", "local_layout", "spanning_layout"]


def local_layout(tensor: Tensor, layout: Layout) -> Layout:
    """Return the groups of the part of ``tensor`` that this process holds.

    A plain layout holds this process's own groups; a :class:`Spanning` one holds all groups.

    Args:
        tensor: any; of one that is not sharded the layout is the one given.
        layout: the groups of the whole tensor.
    """
    split = split_dims(tensor)
    if not split:
        return layout
    if isinstance(layout, Slices):
        dims = dims_of(tuple(tensor.shape), layout.shape)
        # every process must come to the same answer, hence none that depends on where a cut falls
        if dims is not None and all(len(dims[d]) == 1 and dims[d][0] in layout.keep for d in split):
            where, shape = box(tensor), list(layout.shape)
            for d in split:
                shape[dims[d][0]] = where[d][1]
            return replace(layout, shape=tuple(shape))
    return spanning_layout(tensor, layout)


def spanning_layout(tensor: Tensor, layout: Layout) -> Layout:
    """Return the groups of a part of ``tensor``, as a layout that holds the numbers of all groups."""
    return _of_box(layout, tensor, box(tensor)) if is_sharded(tensor) else layout


def _of_box(layout: Layout, tensor: Tensor, where: list[tuple[int, int]]) -> Spanning:
    """The groups of a box of ``tensor``: where it begins in each dimension, and how long it is."""
    if isinstance(layout, Slices):
        cut = _cut(tuple(tensor.shape), layout, where)
        if cut is not None:
            return Spanning(layout, *cut, tensor)
        labels = _labels(tuple(tensor.shape), layout, where)
    else:
        # what is in no group is in one of size 0, the last
        index = layout.spread(torch.arange(layout.count, device=_device(layout)), torch.empty(0))
        labels = _narrow(index, where)
    here = Labels(labels.to(tensor.device))
    return Spanning(layout, here, (layout.count,), (0,), (here.count,), tensor)


@dataclass(frozen=True, eq=False)
class Spanning(Layout):
    """The groups of a tensor, some of which several processes hold in parts.

    Its methods take this process's part, and return the numbers of all groups, the same on all processes. A
    sum and a norm are differentiable.

    Args:
        all: the layout of the whole tensor.
        here: the layout of this process's part.
        shape: all groups as an array.
        first: where this process's groups begin in it.
        size: how many they are along each of its dimensions.
        shards: the tensor.
    """

    all: Layout
    here: Layout
    shape: tuple[int, ...]
    first: tuple[int, ...]
    size: tuple[int, ...]
    shards: Tensor

    @property
    def count(self) -> int:
        """The number of groups, over all processes."""
        return self.all.count

    @property
    def sizes(self) -> float | Tensor:
        """Weights in each group, over all processes."""
        return self.all.sizes

    def is_empty(self, view: Tensor) -> bool:
        """Whether there are no weights on any process."""
        return not self.shards.numel()

    def view(self, weight: Tensor) -> Tensor:
        """Return this process's part as its layout takes it."""
        return self.here.view(local(weight))

    def norm(self, view: Tensor) -> Tensor:
        """Return the Euclidean norm of each group; in float64 the square of a float32 does not overflow."""
        norms = self.here.norm(view)
        squares = sum_over_shards(self._place(norms.double().square()), self.shards)
        # the root of 0 has no gradient, and the norm's is taken to be 0
        total = torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)
        return torch.where(squares.isnan(), squares, total).to(norms.dtype)

    def sum(self, view: Tensor) -> Tensor:
        """Return the sum over each group."""
        return sum_over_shards(self._place(self.here.sum(view)), self.shards)

    def amax(self, view: Tensor) -> Tensor:
        """Return the largest entry of each group; without gradient."""
        nothing = view.new_full((self.here.count,), -torch.inf)
        largest = self.here.amax(view) if view.numel() else nothing
        return max_over_shards(self._place(largest, -torch.inf), self.shards)

    def amin(self, view: Tensor) -> Tensor:
        """Return the smallest entry of each group; without gradient."""
        return -self.amax(-view)

    def spread(self, per_group: Tensor, view: Tensor) -> Tensor:
        """Return the numbers of this process's groups, so that they broadcast against ``view``."""
        mine = per_group.reshape(self.shape)
        for dim, (first, size) in enumerate(zip(self.first, self.size, strict=True)):
            mine = mine.narrow(dim, first, size)
        return self.here.spread(mine.reshape(-1), view)

    def matrix(self, view: Tensor) -> Tensor:
        """Refuse: a row would need what other processes hold."""
        raise NotImplementedError("groups that span processes are no rows of one matrix; gather the tensor")

    def unmatrix(self, matrix: Tensor, view: Tensor) -> Tensor:
        """Refuse, as :meth:`matrix`."""
        raise NotImplementedError("groups that span processes are no rows of one matrix; gather the tensor")

    def _place(self, mine: Tensor, fill: float = 0.0) -> Tensor:
        """Put the numbers of this process's groups among those of all."""
        pad: list[int] = []
        for total, first, size in zip(self.shape, self.first, self.size, strict=True):
            pad = [first, total - first - size, *pad]
        padded = torch.nn.functional.pad(mine.reshape(self.size), pad, value=fill) if any(pad) else mine
        return padded.reshape(-1)


def _cut(
    shape: tuple[int, ...], layout: Slices, where: list[tuple[int, int]]
) -> tuple[Slices, tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
    """The slices of a box, and the place of its groups among all; None where a cut crosses a split."""
    dims = dims_of(shape, layout.shape)
    if dims is None:
        return None
    sizes, firsts = list(layout.shape), [0] * len(layout.shape)
    for (first, size), length, group in zip(where, shape, dims, strict=True):
        inner = prod(layout.shape[dim] for dim in group[1:])
        if size != length:
            if first % inner or size % inner:
                return None
            firsts[group[0]], sizes[group[0]] = first // inner, size // inner
    keep = sorted(layout.keep)
    return (
        replace(layout, shape=tuple(sizes)),
        tuple(layout.shape[dim] for dim in keep),
        tuple(firsts[dim] for dim in keep),
        tuple(sizes[dim] for dim in keep),
    )


def _labels(shape: tuple[int, ...], layout: Slices, where: list[tuple[int, int]]) -> Tensor:
    """The group of each weight of a box."""
    kept = [n if dim in layout.keep else 1 for dim, n in enumerate(layout.shape)]
    index = torch.arange(layout.count).reshape(kept)
    dims = dims_of(shape, layout.shape)
    if dims is None:
        return _narrow(index.expand(layout.shape).reshape(shape), where)
    # dimensions that tell no groups apart stay of length one, so that no index of the whole tensor is made
    told = [any(dim in layout.keep for dim in group) for group in dims]
    index = index.expand(
        [layout.shape[dim] if tells else 1 for tells, group in zip(told, dims, strict=True) for dim in group]
    )
    index = index.reshape([n if tells else 1 for n, tells in zip(shape, told, strict=True)])
    some = [pair if tells else (0, 1) for pair, tells in zip(where, told, strict=True)]
    return _narrow(index, some).expand([size for _, size in where]).contiguous()


def _narrow(index: Tensor, where: list[tuple[int, int]]) -> Tensor:
    for dim, (first, size) in enumerate(where):
        index = index.narrow(dim, first, size)
    return index.contiguous()


def _device(layout: Layout) -> torch.device | None:
    return layout.sizes.device if isinstance(layout.sizes, Tensor) else None
