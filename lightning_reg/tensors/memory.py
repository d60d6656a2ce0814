"""Tensors without values, and tensors whose entries share a place in memory."""

from __future__ import annotations

from torch import Tensor

from lightning_reg.tensors.shards import local

__all__ = ["check_steppable", "check_values"]


def check_values(name: str, tensor: Tensor) -> None:
    """Refuse a tensor on the meta device.

    Raises:
        ValueError: the sentence names it.
    """
    if tensor.is_meta:
        raise ValueError(
            f"{name} is on the meta device, which holds no values; load or initialize it first, as by "
            "module.to_empty(device=...)"
        )


def check_steppable(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that no optimizer can step: without values, or expanded from a smaller one.

    Raises:
        ValueError: the sentence names it.
    """
    check_values(name, tensor)
    part = local(tensor.detach())
    if any(size > 1 and stride == 0 for size, stride in zip(part.shape, part.stride(), strict=True)):
        raise ValueError(
            f"several entries of {name} share one place in memory, so that no optimizer can step them; make "
            "it of its own memory, nn.Parameter(weight.contiguous()), or train the tensor that it expands"
        )
