"""Tensors that several processes hold in parts: FSDP2's and tensor parallelism's ``DTensor``.

What is done to each weight by itself is done on the part that this process holds. A sum over weights is a
collective, and what needs a tensor whole gathers it. Every process makes the same collectives in the same
order, also where its part is empty. On any other tensor each function here is trivial.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor

from lightning_reg.tensors.grad_mode import without_grad

__all__ = [
    "box",
    "check_whole",
    "entries",
    "is_flattened",
    "is_sharded",
    "local",
    "local_parts",
    "max_over_shards",
    "over_shards",
    "part",
    "placed_as",
    "placed_like",
    "shard",
    "split_dims",
    "sum_over_shards",
    "whole",
]


def is_sharded(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a ``DTensor``; asked by its interface, since importing the class is slow."""
    return hasattr(tensor, "to_local")


def is_flattened(tensor: Tensor) -> bool:
    """Whether FSDP1 has flattened ``tensor``: what a process holds of it is a vector without its shape."""
    return hasattr(tensor, "_fsdp_flattened")


def check_whole(tensors: Iterable[Tensor], what: str) -> None:
    """Refuse tensors whose shape, or all of whose weights, another framework keeps to itself.

    Raises:
        ValueError: one of them is FSDP1's or of DeepSpeed's stage 3; the sentence names ``what`` is refused.
    """
    for tensor in tensors:
        if is_flattened(tensor):
            raise ValueError(
                f"FullyShardedDataParallel (FSDP1) flattens parameters, and {what} needs them whole; use "
                "FSDP2 (ModelParallelStrategy in Lightning), or a penalty of single weights, such as L1, "
                "with apply='gradient', 'decoupled' or 'proximal'"
            )
        if hasattr(tensor, "ds_tensor"):
            raise ValueError(
                f"DeepSpeed's stage 3 leaves empty parameters, and {what} needs them whole; use stage 1 or "
                "2, or FSDP2 (ModelParallelStrategy in Lightning)"
            )


def local(tensor: Tensor) -> Tensor:
    """Return the part of ``tensor`` that this process holds, sharing its storage; maybe an empty one."""
    sharded: Any = tensor
    return sharded.to_local() if is_sharded(tensor) else tensor


def shard(tensor: Tensor) -> tuple[int, ...]:
    """Return which part of ``tensor`` this process holds; replicas have the same, and ``()`` is the whole."""
    sharded: Any = tensor
    if not is_sharded(tensor):
        return ()
    coordinates = sharded.device_mesh.get_coordinate() or ()
    return tuple(i for i, p in zip(coordinates, sharded.placements, strict=True) if not p.is_replicate())


def whole(tensor: Tensor) -> Tensor:
    """Return all of ``tensor``, gathered from the processes; differentiable."""
    sharded: Any = tensor
    return sharded.full_tensor() if is_sharded(tensor) else tensor


def part(full: Tensor, like: Tensor) -> Tensor:
    """Return what this process holds of a whole tensor that is laid out as ``like``; a view."""
    if not is_sharded(like):
        return full
    for dim, (first, size) in enumerate(box(like)):
        full = full.narrow(dim, first, size)
    return full


def placed_like(mine: Tensor, like: Tensor) -> Tensor:
    """Return the tensor of which every process holds its ``mine``, shared out as ``like``: undoes part."""
    if not is_sharded(like):
        return mine
    from torch.distributed.tensor import DTensor

    sharded: Any = like
    return DTensor.from_local(
        mine, sharded.device_mesh, sharded.placements, shape=like.shape, stride=like.stride()
    )


def placed_as(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a sharded tensor with the placements of another; itself where they are the same."""
    sharded, other = cast(Any, tensor), cast(Any, like)
    same = sharded.placements == other.placements
    return tensor if same else sharded.redistribute(placements=other.placements)


def split_dims(tensor: Tensor) -> set[int]:
    """Return the dimensions along which the processes share out ``tensor``."""
    sharded: Any = tensor
    if not is_sharded(tensor):
        return set()
    sizes = sharded.device_mesh.shape
    return {p.dim for p, n in zip(sharded.placements, sizes, strict=True) if n > 1 and hasattr(p, "dim")}


def box(tensor: Tensor) -> list[tuple[int, int]]:
    """Return where this process's part begins in each dimension of the whole, and how long it is.

    Raises:
        ValueError: the part is not a box of the whole, as with an uneven split of one dimension in two ways.
    """
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    sharded: Any = tensor
    shape, offset = compute_local_shape_and_global_offset(
        sharded.shape, sharded.device_mesh, sharded.placements
    )
    found = [(first if size else 0, size) for first, size in zip(offset, shape, strict=True)]
    if local(tensor.detach()).shape != torch.Size(shape):
        raise ValueError(
            f"a tensor of shape {tuple(tensor.shape)} is placed as {sharded.placements}, whose parts are not "
            "the boxes that torch computes; shard its dimensions evenly, or leave it out of select="
        )
    return found


def over_shards(function: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """Return a sum over weights, ``function(tensor)``, from every process's own part; differentiable."""
    if not is_sharded(tensor):
        return function(tensor)
    return sum_over_shards(function(local(tensor)), tensor)


def local_parts(tensors: Iterable[Any]) -> list[Tensor]:
    """Return :func:`local` of each tensor."""
    return [t.to_local() if hasattr(t, "to_local") else t for t in tensors]


def sum_over_shards(value: Tensor, like: Tensor) -> Tensor:
    """Return the sum of every process's ``value`` of its part of ``like``, the same on all; differentiable.

    Summing the parts by hand also holds where a part is empty: torch 2.13's backward of a ``DTensor`` sum
    does not (``output with shape [1, 5] doesn't match the broadcast shape [0, 5]``).
    """
    return _reduced(value, like, "sum")


def max_over_shards(value: Tensor, like: Tensor) -> Tensor:
    """Return the largest of every process's ``value`` of its part of ``like``, entry by entry."""
    return _reduced(value.detach(), like, "max")


def _reduced(value: Tensor, like: Tensor, how: str) -> Tensor:
    from torch.distributed.tensor import DTensor, Partial, Replicate

    sharded: Any = like
    placements = [Replicate() if p.is_replicate() else Partial(how) for p in sharded.placements]
    total: Any = DTensor.from_local(value, sharded.device_mesh, placements)
    for dim, placement in enumerate(placements):  # torch warns of a mesh reduced in more than one dimension
        if placement.is_partial():
            placements[dim] = Replicate()
            total = total.redistribute(placements=placements)
    reduced: Tensor = total.to_local()
    return reduced


@without_grad
def entries(tensor: Tensor, index: Tensor) -> Tensor:
    """Return the entries of the flattened ``tensor`` at ``index``, the same on all processes."""
    if not is_sharded(tensor):
        return tensor.flatten()[index]
    mine = local(tensor)
    here, places = torch.ones_like(index, dtype=torch.bool), torch.zeros_like(index)
    where = torch.unravel_index(index, tensor.shape)
    for coordinate, (first, size) in zip(where, box(tensor), strict=True):
        here &= (coordinate >= first) & (coordinate < first + size)
        places = places * size + coordinate - first
    found = torch.zeros_like(index, dtype=tensor.dtype)
    found[here] = mine.flatten()[places[here]]
    return sum_over_shards(found, tensor)
