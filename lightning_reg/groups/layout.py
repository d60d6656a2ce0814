"""How a tensor falls into groups: sums over each group, and one number a group spread over its weights.

A layout holds no weights. Most groups are slices of a tensor, possibly after a dimension is split in two (the
gates of an LSTM, the heads of an attention): views, so that nothing is copied. Any other partition is a
tensor of labels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from lightning_reg.tensors.precision import accumulator, norm, norms

__all__ = ["Labels", "Layout", "Slices", "dims_of", "singles"]


class Layout(ABC):
    """A partition of a tensor's weights into ``count`` groups."""

    @property
    @abstractmethod
    def count(self) -> int:
        """The number of groups."""

    @property
    @abstractmethod
    def sizes(self) -> float | Tensor:
        """Weights in each group: one number, or ``(count,)``."""

    @abstractmethod
    def view(self, weight: Tensor) -> Tensor:
        """Return ``weight`` in the shape that the other methods take; never a copy."""

    @abstractmethod
    def norm(self, view: Tensor) -> Tensor:
        """Return the Euclidean norm of each group, ``(count,)``, in float32 or wider."""

    @abstractmethod
    def sum(self, view: Tensor) -> Tensor:
        """Return the sum over each group, ``(count,)``."""

    @abstractmethod
    def amax(self, view: Tensor) -> Tensor:
        """Return the largest entry of each group, ``(count,)``."""

    @abstractmethod
    def amin(self, view: Tensor) -> Tensor:
        """Return the smallest entry of each group, ``(count,)``."""

    @abstractmethod
    def spread(self, per_group: Tensor, view: Tensor) -> Tensor:
        """Return ``per_group``, ``(count,)``, so that it broadcasts against ``view``."""

    @abstractmethod
    def matrix(self, view: Tensor) -> Tensor:
        """Return the groups as rows, ``(count, widest)``, filled up with zeros; a copy."""

    @abstractmethod
    def unmatrix(self, matrix: Tensor, view: Tensor) -> Tensor:
        """Undo :meth:`matrix`: the entries of the rows, shaped as ``view``."""

    def is_empty(self, view: Tensor) -> bool:
        """Whether there are no weights at all."""
        return not view.numel()

    def pieces(self, *views: Tensor, size: int) -> Sequence[tuple[Tensor, ...]]:
        """Cut views of one shape, between groups, into pieces of about ``size`` weights."""
        return [views]


@dataclass(frozen=True)
class Slices(Layout):
    """Groups are the slices of a view along its kept dimensions.

    Args:
        shape: the shape to see the tensor in: its own, or with dimensions split.
        keep: the dimensions of ``shape`` that tell groups apart; none of them for one group in all.
        each: how many weights an entry stands for: 1, or more where it is the norm of a slice.

    >>> layout = Slices((2, 3), keep=(0,))
    >>> layout.norm(torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0]]))
    tensor([5., 0.])
    """

    shape: tuple[int, ...]
    keep: tuple[int, ...]
    each: int = 1

    @property
    def count(self) -> int:
        """The number of groups."""
        return prod(self.shape[dim] for dim in self.keep)

    @property
    def sizes(self) -> float:
        """Weights in each group."""
        return float(self.each * prod(size for dim, size in enumerate(self.shape) if dim not in self.keep))

    def of_norms(self, shape: Sequence[int], norms: Sequence[int]) -> Slices | None:
        """Return the groups of a tensor that holds the norms of slices, where each group is whole slices.

        Args:
            shape: of the weight that this lays out.
            norms: of the tensor of norms: that of the weight, or 1, in each dimension.

        >>> Slices((2, 3, 4), keep=(0,)).of_norms((6, 4), (6, 1))
        Slices(shape=(2, 3, 1), keep=(0,), each=4)
        """
        dims = dims_of(tuple(shape), self.shape)
        if dims is None:
            return None
        split = list(self.shape)
        for size, kept, parts in zip(shape, norms or [1] * len(shape), dims, strict=True):
            for dim in parts if kept != size else ():
                split[dim] = 1
        if any(split[dim] != self.shape[dim] for dim in self.keep):
            return None
        return Slices(tuple(split), self.keep, prod(shape) // max(1, prod(norms)))

    @property
    def _reduced(self) -> tuple[int, ...]:
        return tuple(dim for dim in range(len(self.shape)) if dim not in self.keep)

    def view(self, weight: Tensor) -> Tensor:
        """Return ``weight`` with its dimensions split."""
        return weight if weight.shape == self.shape else weight.view(self.shape)

    def norm(self, view: Tensor) -> Tensor:
        """Return the Euclidean norm of each group."""
        dtype = accumulator(view.dtype)
        if not self._reduced:
            return (view.abs() if dtype is None else view.abs().to(dtype)).reshape(-1)
        if not self.keep:
            return norm(view).reshape(-1)
        return norms(view, self._reduced).reshape(-1)

    def sum(self, view: Tensor) -> Tensor:
        """Return the sum over each group."""
        return (view.sum(self._reduced) if self._reduced else view.clone()).reshape(-1)

    def amax(self, view: Tensor) -> Tensor:
        """Return the largest entry of each group."""
        return (view.amax(self._reduced) if self._reduced else view).reshape(-1)

    def amin(self, view: Tensor) -> Tensor:
        """Return the smallest entry of each group."""
        return (view.amin(self._reduced) if self._reduced else view).reshape(-1)

    def spread(self, per_group: Tensor, view: Tensor) -> Tensor:
        """Return one number a group, with dimensions of one where groups are reduced."""
        return per_group.reshape([size if dim in self.keep else 1 for dim, size in enumerate(view.shape)])

    def matrix(self, view: Tensor) -> Tensor:
        """Return the groups as rows."""
        return view.permute((*self.keep, *self._reduced)).reshape(self.count, int(self.sizes))

    def unmatrix(self, matrix: Tensor, view: Tensor) -> Tensor:
        """Return rows as a view."""
        order = (*self.keep, *self._reduced)
        back = [order.index(dim) for dim in range(len(order))]
        return matrix.reshape([view.shape[dim] for dim in order]).permute(back)

    def pieces(self, *views: Tensor, size: int) -> Sequence[tuple[Tensor, ...]]:
        """Cut along the first kept dimension."""
        if not self.keep or views[0].numel() <= size:
            return [views]
        dim = self.keep[0]
        length = max(1, size * views[0].shape[dim] // views[0].numel())
        return list(zip(*(torch.split(view, length, dim) for view in views), strict=True))


def singles(weight: Tensor) -> Slices:
    """Return each weight as a group."""
    return Slices(tuple(weight.shape), tuple(range(weight.dim())))


@dataclass(frozen=True, eq=False)
class Labels(Layout):
    """Groups are given by a label for each weight.

    Args:
        labels: integers 0 to count − 1, shaped as the tensor; −1 for a weight that is in no group.

    Raises:
        ValueError: labels that are not integers, or below −1.

    >>> layout = Labels(torch.tensor([[0, 1, 1, -1]]))
    >>> layout.norm(torch.tensor([[2.0, 3.0, 4.0, 9.0]]))
    tensor([2., 5., 9.])
    >>> layout.sizes
    tensor([1., 2., 0.])
    """

    labels: Tensor
    _index: Tensor = field(init=False, repr=False)
    _sizes: Tensor = field(init=False, repr=False)
    _position: Tensor = field(init=False, repr=False)
    _widest: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.labels.is_floating_point() or self.labels.is_complex() or self.labels.dtype == torch.bool:
            raise ValueError(f"group labels are of dtype {self.labels.dtype}; give integers from 0, or -1")
        if self.labels.numel() and int(self.labels.min()) < -1:
            raise ValueError(f"a group label is {int(self.labels.min())}; give integers from 0, or -1")
        last = int(self.labels.max()) if self.labels.numel() else -1
        # weights in no group make one of size 0, whose penalty is √0
        labels = torch.where(self.labels < 0, last + 1, self.labels).long()
        free = bool((self.labels < 0).any())
        counts = torch.bincount(labels.flatten(), minlength=last + 1 + free)
        order = torch.argsort(labels.flatten(), stable=True)
        starts = counts.cumsum(0) - counts
        position = torch.empty_like(order)
        position[order] = torch.arange(order.numel(), device=order.device) - starts[labels.flatten()[order]]
        sizes = counts.to(torch.get_default_dtype())
        if free:
            sizes[-1] = 0.0
        object.__setattr__(self, "_index", labels)
        object.__setattr__(self, "_sizes", sizes)
        object.__setattr__(self, "_position", position.view(labels.shape))
        object.__setattr__(self, "_widest", int(counts.max()) if counts.numel() else 0)

    @property
    def count(self) -> int:
        """The number of groups, that of the weights in none included."""
        return self._sizes.numel()

    @property
    def sizes(self) -> Tensor:
        """Weights in each group; 0 for those in none."""
        return self._sizes

    def view(self, weight: Tensor) -> Tensor:
        """Return ``weight`` as it is."""
        return weight

    def norm(self, view: Tensor) -> Tensor:
        """Return the Euclidean norm of each group, scaled so that squares neither overflow nor vanish."""
        dtype = accumulator(view.dtype)
        modulus = view.abs() if dtype is None else view.abs().to(dtype)
        with torch.no_grad():
            scale = self.amax(modulus)
            scale = torch.where(scale > 0, scale, 1.0)
        squares = self.sum((modulus / self.spread(scale, view)).square())
        # the root of 0 has no gradient, and the norm's is taken to be 0
        return scale * torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)

    def sum(self, view: Tensor) -> Tensor:
        """Return the sum over each group."""
        total: Tensor = view.new_zeros(self.count).index_add(0, self._index.flatten(), view.flatten())
        return total

    def amax(self, view: Tensor) -> Tensor:
        """Return the largest entry of each group."""
        start = view.new_full((self.count,), -torch.inf)
        return start.scatter_reduce(0, self._index.flatten(), view.flatten(), "amax")

    def amin(self, view: Tensor) -> Tensor:
        """Return the smallest entry of each group."""
        return -self.amax(-view)

    def spread(self, per_group: Tensor, view: Tensor) -> Tensor:
        """Return each weight's number."""
        return per_group[self._index]

    def matrix(self, view: Tensor) -> Tensor:
        """Return the groups as rows, filled up with zeros."""
        matrix = view.new_zeros(self.count, self._widest)
        return matrix.index_put((self._index.flatten(), self._position.flatten()), view.flatten())

    def unmatrix(self, matrix: Tensor, view: Tensor) -> Tensor:
        """Return each weight's entry."""
        return matrix[self._index, self._position]


def dims_of(shape: tuple[int, ...], view: tuple[int, ...]) -> list[list[int]] | None:
    """Return which dimensions of a view each dimension of a tensor is split into; None where none line up."""
    groups: list[list[int]] = []
    dim = 0
    for length in shape:
        group: list[int] = []
        size = 1
        while dim < len(view) and (not group or size < length):
            group.append(dim)
            size *= view[dim]
            dim += 1
        if size != length or not group:
            return None
        groups.append(group)
    return groups if dim == len(view) else None
