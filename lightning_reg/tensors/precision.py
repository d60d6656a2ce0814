"""Sums over weights that neither overflow nor lose bits in 16-bit floats."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_reg.tensors.chunks import pieces

__all__ = ["accumulator", "norm", "real_dtype", "sum_of_squares", "wide"]

#: Entries that a norm adds up at a time.
ROW = 2**14


def norm(weight: Tensor, order: float = 2.0) -> Tensor:
    """Return the vector norm over all entries, accumulated in float32 or wider; its gradient at 0 is 0.

    Of a large tensor it is the norm of its rows' norms: on CPUs torch 2.13 adds up the entries one after the
    other in float32, and the 1-norm of 38.6 million normal numbers is 11 % short on one thread.

    >>> norm(torch.ones(100_000, dtype=torch.float16), 1)
    tensor(100000.)
    """
    dtype = accumulator(weight.dtype)
    if weight.numel() <= ROW or not weight.is_cpu:
        total: Tensor = torch.linalg.vector_norm(weight, order, dtype=dtype)
        return total
    if order == 1 and not (weight.requires_grad and torch.is_grad_enabled()):  # a fourth of the time
        return torch.stack([piece.abs().sum(dtype=dtype) for (piece,) in pieces(weight)]).sum()
    if weight.dim() > 1 and weight.shape[0] * ROW >= weight.numel():
        rows = torch.linalg.vector_norm(weight, order, dim=tuple(range(1, weight.dim())), dtype=dtype)
        return norm(rows, order)
    flat = weight.flatten()
    rest = flat.numel() % ROW
    rows = torch.linalg.vector_norm(flat[rest:].view(-1, ROW), order, dim=1, dtype=dtype)
    first = torch.linalg.vector_norm(flat[:rest], order, dim=0, keepdim=True, dtype=dtype)
    return norm(torch.cat([first, rows]), order)


def sum_of_squares(weight: Tensor) -> Tensor:
    """Return the sum of the squared moduli, accumulated in float32 or wider."""
    if weight.is_complex():
        weight = torch.view_as_real(weight)
    if weight.requires_grad and torch.is_grad_enabled():
        return wide(weight).square().sum()
    return torch.stack([wide(piece).square().sum() for (piece,) in pieces(weight)]).sum()


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of a complex dtype's parts, and any other dtype as it is."""
    return dtype.to_real() if dtype.is_complex else dtype


def accumulator(dtype: torch.dtype) -> torch.dtype | None:
    """Return the wider dtype to sum a 16-bit one in, or None: its own will do."""
    # a float16 sum overflows at 65,504, and the square of 256 alone does
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else None


def wide(weight: Tensor) -> Tensor:
    """Return a 16-bit tensor in float32, and any other as it is."""
    dtype = accumulator(weight.dtype)
    return weight if dtype is None else weight.to(dtype)
