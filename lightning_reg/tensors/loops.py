"""Loops over single weights, compiled by numba: each goes over its tensors once.

A loop takes a table with a row for each tensor, or for a piece of one: addresses, then the number of weights.
An address of 0 stands for no tensor. ``like`` is an empty array of their dtype.

No loop may be compiled with fastmath: reassociated, ``u − clamp(u)`` is no longer 0 where nothing is clamped.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import intrinsic, register_jitable

__all__ = ["add_sign", "by_step", "clamp", "elastic_net", "jit", "memory", "proximal", "soft_threshold"]

#: What a weight divided by its threshold is multiplied with at most: a threshold of 0 gives no NaN.
MOST = 1e30

_F = TypeVar("_F", bound=Callable[..., Any])


def _sources() -> int:
    """A number that changes with any file whose functions loops are made of."""
    folder = Path(__file__).parents[1]
    names = ("tensors/loops", "prox/_loops", "prox/_group_loops", "prox/nonconvex", "prox/root_by_moments")
    return zlib.crc32(b"".join((folder / f"{name}.py").read_bytes() for name in names))


_SOURCES = _sources()


def jit(function: _F, **options: Any) -> _F:
    """Compile at the first call; keep the code for later processes where there is a place to keep it."""
    options = {"nogil": True, "error_model": "numpy", **options}
    try:
        compiled: Any = numba.njit(function, cache=True, **options)
        kept = compiled._cache._cache_file
        # numba knows code by the file of its outermost function alone
        kept._source_stamp = kept._source_stamp, _SOURCES
    except (RuntimeError, AttributeError):  # no folder can be written to, or another numba
        compiled = numba.njit(function, **options)
    return compiled  # type: ignore[no-any-return]


@intrinsic
def _pointer(_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.voidptr(address), generate


@register_jitable
def memory(address: int, size: int, like: Any) -> Any:
    """The numbers at an address."""
    return carray(_pointer(address), size, like.dtype)  # type: ignore[call-arg]  # an intrinsic's context


@register_jitable
def _sign(weight: Any) -> Any:
    """Its sign; 0 and NaN as they are."""
    return math.copysign(type(weight)(1), weight) if abs(weight) > 0 else weight


@register_jitable
def clamp(value: Any, limit: Any) -> Any:
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


@register_jitable
def _held(weight: Any, average: Any, inverse: Any, share: Any) -> Any:
    """The average of ``weight / threshold``, moved on and within ±1, see prox/dual_averaging."""
    one = type(weight)(1)
    ratio = weight * min(inverse, type(weight)(MOST))
    # as torch.lerp: from 1 towards more than 1 it is never rounded to less
    way = ratio - average
    moved = average + share * way if share < type(weight)(0.5) else ratio - way * (one - share)
    return math.copysign(one, moved) if abs(moved) > 1 else moved


def proximal(prox: Callable[..., Any], cut: Callable[..., Any]) -> Callable[..., None]:
    """A loop that lets each weight take its proximal step, where no average holds it at zero.

    It takes rows of weight, average, moment and size; numbers n and ε for the step ``n/(√v + ε)``, n alone
    where there is no moment, and the share of the average that is new; an empty array; two parameters. Where
    there is no average, ``prox`` alone acts.

    Args:
        prox: the result for a weight, from its step and both parameters.
        cut: up to where that is 0, from the same.
    """
    linear = cut is by_step  # then its inverse takes no division for each weight

    def loop(rows: Any, numbers: Any, like: Any, first: float, second: float) -> None:
        kind = like.dtype.type
        a, b, one = kind(first), kind(second), kind(1)
        for row in range(len(rows)):
            size = rows[row, 3]
            weight, average = memory(rows[row, 0], size, like), memory(rows[row, 1], size, like)
            moment = memory(rows[row, 2], size, like)
            n, eps, share = kind(numbers[row, 0]), kind(numbers[row, 1]), kind(numbers[row, 2])
            if rows[row, 1] == 0:
                if rows[row, 2] == 0:
                    for i in range(size):
                        weight[i] = prox(weight[i], n, a, b)
                else:
                    for i in range(size):
                        weight[i] = prox(weight[i], n / (math.sqrt(moment[i]) + eps), a, b)
            elif rows[row, 2] == 0:
                inverse = one / cut(n, a, b)
                for i in range(size):
                    held = _held(weight[i], average[i], inverse, share)
                    average[i] = held
                    weight[i] = kind(0) if abs(held) < 1 else prox(weight[i], n, a, b)
            else:
                by_root = min(one / (n * a), kind(MOST))
                for i in range(size):
                    root = math.sqrt(moment[i]) + eps
                    eta = n / root
                    inverse = root * by_root if linear else one / cut(eta, a, b)
                    held = _held(weight[i], average[i], inverse, share)
                    average[i] = held
                    weight[i] = kind(0) if abs(held) < 1 else prox(weight[i], eta, a, b)

    return jit(loop)


@register_jitable
def _soft(weight: Any, step: Any, threshold: Any, _: Any) -> Any:
    return weight - clamp(weight, step * threshold)


@register_jitable
def _shrunk(weight: Any, step: Any, threshold: Any, shrink: Any) -> Any:
    # a step may be infinite, and times 0 is NaN
    soft = weight if threshold == 0 else _soft(weight, step, threshold, shrink)
    return soft / (type(weight)(1) + step * shrink)


@register_jitable
def by_step(step: Any, threshold: Any, _: Any) -> Any:
    """Return the threshold of a proximal operator that takes the step times λ."""
    return step * threshold


soft_threshold = proximal(_soft, by_step)
elastic_net = proximal(_shrunk, by_step)
