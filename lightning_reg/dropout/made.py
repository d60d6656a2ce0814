"""Tensors that are made of draws, rates and constants alone, with nothing of the data in them."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Made", "Tag"]


@dataclass(frozen=True)
class Tag:
    """What a tensor is made of.

    Attributes:
        noise: whether something drawn is in it.
        uniform: whether that is uniform, so that a probability can be compared with it.
        sites: whose rates are in it.
    """

    noise: bool = False
    uniform: bool = False
    sites: frozenset[int] = frozenset()


class Made:
    """The tags of tensors, while these live.

    >>> import torch
    >>> made, noise = Made(), torch.rand(2)
    >>> made.put(noise, Tag(noise=True))
    >>> made.of(noise).noise, made.of(noise + 1).noise, noise in made, noise + 1 in made
    (True, False, True, False)
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Tensor], Tag]] = {}

    def put(self, tensor: Tensor, tag: Tag) -> None:
        """Note what a tensor is made of."""
        self._entries[id(tensor)] = (weakref.ref(tensor), tag)

    def of(self, value: object) -> Tag:
        """What a tensor is made of; the tag of constants for all else."""
        entry = self._entries.get(id(value)) if isinstance(value, Tensor) else None
        return entry[1] if entry is not None and entry[0]() is value else Tag()

    def __contains__(self, tensor: Tensor) -> bool:
        entry = self._entries.get(id(tensor))
        return entry is not None and entry[0]() is tensor
