"""Loops over single weights, compiled by numba: each goes over its tensors once.

A loop takes a table with a row for each tensor, or for a piece of one: addresses, then the number of weights.
An address of 0 stands for no tensor. ``like`` is an empty array of their dtype.

No loop may be compiled with fastmath: reassociated, ``u − clamp(u)`` is no longer 0 where nothing is clamped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numba
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import intrinsic

__all__ = ["add_sign", "jit", "memory", "soft_threshold"]

_F = TypeVar("_F", bound=Callable[..., Any])


def jit(function: _F, **options: Any) -> _F:
    """Compile at the first call; keep the code for later processes where there is a place to keep it."""
    options = {"nogil": True, "error_model": "numpy", **options}
    try:
        compiled: _F = numba.njit(function, cache=True, **options)
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        compiled = numba.njit(function, **options)
    return compiled


@intrinsic
def _pointer(_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.voidptr(address), generate


@jit
def memory(address: int, size: int, like: Any) -> Any:
    """The numbers at an address."""
    return carray(_pointer(address), size, like.dtype)  # type: ignore[call-arg]  # an intrinsic's context


@jit
def _sign(weight: Any) -> Any:
    """Its sign; 0 and NaN as they are."""
    return math.copysign(type(weight)(1), weight) if abs(weight) > 0 else weight


@jit
def _clamp(value: Any, limit: Any) -> Any:
    """The nearest number within ±limit; NaN where one of them is."""
    return value if abs(value) <= limit else math.copysign(limit, value)


@jit
def add_sign(rows: Any, _: Any, like: Any, alpha: float, scaled: float) -> None:
    """``target += alpha · sign(weight) + scaled · weight``; rows: target, weight, size."""
    kind = like.dtype.type
    pull, by_weight = kind(alpha), kind(scaled)
    for row in range(len(rows)):
        target = memory(rows[row, 0], rows[row, 2], like)
        weight = memory(rows[row, 1], rows[row, 2], like)
        if rows[row, 0] == rows[row, 1]:  # two names of one tensor would keep the loop from being vectorised
            for i in range(target.size):
                w = target[i]
                target[i] = (w + by_weight * w) + pull * _sign(w)
        elif scaled != 0.0:
            for i in range(target.size):
                w = weight[i]
                target[i] = (target[i] + by_weight * w) + pull * _sign(w)
        else:
            for i in range(target.size):
                target[i] += pull * _sign(weight[i])


@jit
def soft_threshold(rows: Any, numbers: Any, like: Any, threshold: float, shrink: float) -> None:
    """``w ← S(w, η·threshold) / (1 + η·shrink)``, ``η = n/(√v + ε)``; rows: w, v, size; numbers: n, ε."""
    kind = like.dtype.type
    one = kind(1)
    for row in range(len(rows)):
        weight = memory(rows[row, 0], rows[row, 2], like)
        cut, less = kind(threshold * numbers[row, 0]), kind(shrink * numbers[row, 0])
        if rows[row, 1] == 0:
            for i in range(weight.size):
                w = weight[i]
                weight[i] = (w - _clamp(w, cut)) / (one + less)
            continue
        moment, eps = memory(rows[row, 1], rows[row, 2], like), kind(numbers[row, 1])
        if threshold == 0.0:
            for i in range(weight.size):
                weight[i] /= one + less / (math.sqrt(moment[i]) + eps)
        elif shrink == 0.0:
            for i in range(weight.size):
                w = weight[i]
                weight[i] = w - _clamp(w, cut / (math.sqrt(moment[i]) + eps))
        else:
            for i in range(weight.size):
                w, root = weight[i], math.sqrt(moment[i]) + eps
                weight[i] = (w - _clamp(w, cut / root)) / (one + less / root)
