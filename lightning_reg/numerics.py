"""Sums over weights that neither overflow nor lose bits in 16-bit floats; and work outside of autograd."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = ["accumulator", "norm", "real_dtype", "sum_of_squares", "wide", "without_grad"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def without_grad(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """``torch.no_grad()`` for functions that call each other: only the outermost pays for it."""

    @wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if not torch.is_grad_enabled():
            return function(*args, **kwargs)
        with torch.no_grad():
            return function(*args, **kwargs)

    return wrapped


def norm(weight: Tensor, order: float = 2.0) -> Tensor:
    """Return the vector norm over all entries, accumulated in float32 or wider; its gradient at 0 is 0.

    >>> norm(torch.ones(100_000, dtype=torch.float16), 1)
    tensor(100000.)
    """
    total: Tensor = torch.linalg.vector_norm(weight, order, dtype=accumulator(weight.dtype))
    return total


def sum_of_squares(weight: Tensor) -> Tensor:
    """Return the sum of the squared moduli, accumulated in float32 or wider."""
    if weight.is_complex():
        weight = torch.view_as_real(weight)
    dtype = accumulator(weight.dtype)
    return (weight if dtype is None else weight.to(dtype)).square().sum()


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
