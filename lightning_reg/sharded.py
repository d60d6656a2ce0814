"""Tensors that several processes hold in parts: FSDP2's and tensor parallelism's ``DTensor``.

What is done to each weight by itself is done on the part that this process holds. A sum over weights is a
collective.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

__all__ = ["is_sharded", "local", "local_parts", "sum_over_shards"]


def is_sharded(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a ``DTensor``; asked by its interface, since importing the class is slow."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """Return the part of ``tensor`` that this process holds, sharing its storage; maybe an empty one."""
    sharded: Any = tensor
    return sharded.to_local() if is_sharded(tensor) else tensor


def local_parts(tensors: Iterable[Any]) -> list[Tensor]:
    """Return :func:`local` of each tensor."""
    return [t.to_local() if hasattr(t, "to_local") else t for t in tensors]


def sum_over_shards(value: Tensor, like: Tensor) -> Tensor:
    """Return the sum of every process's ``value`` of its part of ``like``, the same on all; differentiable.

    Summing the parts by hand also holds where a part is empty: torch 2.13's backward of a ``DTensor`` sum
    does not (``output with shape [1, 5] doesn't match the broadcast shape [0, 5]``).
    """
    from torch.distributed.tensor import DTensor, Partial, Replicate

    sharded: Any = like
    placements = [Replicate() if p.is_replicate() else Partial() for p in sharded.placements]
    total: Tensor = DTensor.from_local(value, sharded.device_mesh, placements).full_tensor()
    return total
