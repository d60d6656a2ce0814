"""Tensors that several processes hold in parts: FSDP2's and tensor parallelism's ``DTensor``.

What is done to each weight by itself is done on the part that this process holds. A sum over weights is a
collective.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["is_sharded", "local", "whole"]


def is_sharded(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a ``DTensor``; asked by its interface, since importing the class is slow."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """Return the part of ``tensor`` that this process holds, sharing its storage; maybe an empty one."""
    sharded: Any = tensor
    return sharded.to_local() if is_sharded(tensor) else tensor


def whole(value: Tensor) -> Tensor:
    """Return a plain tensor with the whole of ``value``, the same on every process; differentiable."""
    sharded: Any = value
    return sharded.full_tensor() if is_sharded(value) else value
