"""Sums over weights that neither overflow nor lose bits in 16-bit floats."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_reg.tensors.chunks import pieces

__all__ = ["accumulator", "norm", "norms", "real_dtype", "sum_of_squares", "wide"]

#: Entries that a norm adds up at a time.
ROW = 2**14
#: A norm in float32 from here on has lost nothing of weights whose squares are too small for that.
_SMALL = 1e-12


def norm(weight: Tensor, order: float = 2.0) -> Tensor:
    """Return the vector norm over all entries, accumulated in float32 or wider; its gradient at 0 is 0.

    Of a large tensor it is the norm of its rows' norms: on CPUs torch 2.13 adds up the entries one after the
    other in float32, and the 1-norm of 38.6 million normal numbers is 11 % short on one thread.

    >>> norm(torch.ones(100_000, dtype=torch.float16), 1)
    tensor(100000.)
    """
    dtype = accumulator(weight.dtype)
    if weight.numel() <= ROW or not weight.is_cpu:
        return norms(weight, None, order)
    if order == 1 and not (weight.requires_grad and torch.is_grad_enabled()):  # a fourth of the time
        return torch.stack([piece.abs().sum(dtype=dtype) for (piece,) in pieces(weight)]).sum()
    if weight.dim() > 1 and weight.shape[0] * ROW >= weight.numel():
        return norm(norms(weight, tuple(range(1, weight.dim())), order), order)
    flat = weight.flatten()
    rest = flat.numel() % ROW
    rows, first = norms(flat[rest:].view(-1, ROW), 1, order), norms(flat[:rest], None, order)
    return norm(torch.cat([first.reshape(1), rows]), order)


def norms(weight: Tensor, dim: int | tuple[int, ...] | None, order: float = 2.0) -> Tensor:
    """Return the vector norms along ``dim``, in float32 or wider.

    On CPUs their squares neither overflow, as those of 2e19 do in float32, nor vanish, as those of 1e-23 do.

    >>> norms(torch.tensor([[3e30, 4e30], [3e-30, 4e-30]]), 1)
    tensor([5.0000e+30, 5.0000e-30])
    """
    found: Tensor = torch.linalg.vector_norm(weight, order, dim=dim, dtype=accumulator(weight.dtype))
    exact = order in (1.0, math.inf) or found.dtype == torch.float64
    if exact or not weight.numel() or not _may_look_at(found):
        return found
    doubtful = ~((found > _SMALL) & found.isfinite())
    if not bool(doubtful.any()):
        return found
    largest = torch.linalg.vector_norm(weight.detach(), math.inf, dim=dim)
    if not bool((doubtful & (largest > 0)).any()):  # all of them are zero
        return found
    again = weight.to(torch.promote_types(weight.dtype, torch.float64))
    result: Tensor = torch.linalg.vector_norm(again, order, dim=dim).to(found.dtype)
    return result


def _may_look_at(tensor: Tensor) -> bool:
    """Whether a look at its numbers neither waits for a device nor breaks a trace."""
    traced = torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None
    return tensor.is_cpu and not traced


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
