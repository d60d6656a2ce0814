"""Proximal operators of norms of groups as loops that numba compiles: each group is worked on in the cache.

The formulas are those of :mod:`lightning_reg.prox.group`. A row of a table is a tensor, or some of its
groups: addresses of weights and of moments (0 for one step for all), the first group and the one after the
last, then the shape ``(outer, groups, inner)`` of the tensor, whose slices along the middle are the groups.

Sums may be taken in any order, all else in that of the formula. They are taken in the tensor's dtype over
CHUNK numbers, and of these in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba.extending import register_jitable

from lightning_reg.tensors.loops import clamp, jit, memory

__all__ = ["shrink_groups"]

#: Numbers that are summed up in the tensor's own dtype.
CHUNK = 512
#: Weights of a group that are kept with their steps; those of a larger group are read anew in each pass.
KEPT = 2**14
#: Newton steps at most: two reach most roots, and from 0 over 20 decades of steps forty did.
MOST = 60


def _sums_in_any_order(function: Any) -> Any:
    return jit(function, fastmath={"reassoc", "contract", "arcp"})


@_sums_in_any_order
def _squares(value: Any) -> float:
    """``Σv²``."""
    total = 0.0
    for start in range(0, value.size, CHUNK):
        v, square = value[start : start + CHUNK], value.dtype.type(0)
        for i in range(v.size):
            square += v[i] * v[i]
        total += square
    return total


@_sums_in_any_order
def _bounds_of(v: Any, t: Any) -> tuple[Any, Any, Any]:
    square, mean, ratio = v.dtype.type(0), v.dtype.type(0), v.dtype.type(0)
    for i in range(v.size):
        squared = v[i] * v[i]
        square += squared
        mean += squared * t[i]
        q = v[i] / t[i]
        ratio += q * q
    return square, mean, ratio


@_sums_in_any_order
def _climb_of(v: Any, t: Any, low: Any) -> tuple[Any, Any]:
    one = v.dtype.type(1)
    phi, slope = v.dtype.type(0), v.dtype.type(0)
    for i in range(v.size):
        q = one / (t[i] + low)
        square = v[i] * q
        square *= square
        phi += square
        slope += square * q
    return phi, slope


@jit
def _bounds(value: Any, tau: Any) -> tuple[float, float, float]:
    """``Σv²``, ``Σv²τ`` and ``Σ(v/τ)²``."""
    squares, means, ratios = 0.0, 0.0, 0.0
    for start in range(0, value.size, CHUNK):
        square, mean, ratio = _bounds_of(value[start : start + CHUNK], tau[start : start + CHUNK])
        squares, means, ratios = squares + square, means + mean, ratios + ratio
    return squares, means, ratios


@jit
def _climb(value: Any, tau: Any, theta: float) -> tuple[float, float]:
    """``Σ(v/(θ + τ))²``, and the same with a third factor ``1/(θ + τ)``."""
    low, phis, slopes = value.dtype.type(theta), 0.0, 0.0
    for start in range(0, value.size, CHUNK):
        phi, slope = _climb_of(value[start : start + CHUNK], tau[start : start + CHUNK], low)
        phis, slopes = phis + phi, slopes + slope
    return phis, slopes


@register_jitable
def _read(
    row: Any, numbers: Any, group: int, first: int, like: Any, soft: float, value: Any, tau: Any
) -> None:
    """Fill ``value`` and ``tau`` with weights of one group, and with μ times their steps."""
    kind = like.dtype.type
    n, eps, mu = kind(numbers[0]), kind(numbers[1]), kind(numbers[2])
    cut, tiny = kind(soft), kind(1.1754944e-38) if like.itemsize == 4 else kind(2.2250738585072014e-308)
    outer, groups, inner = row[4], row[5], row[6]
    start, size = 0, outer * groups * inner
    if outer == 1:
        start, size = (group * inner + first) * like.itemsize, value.size
    weight, moment = memory(row[0] + start, size, like), memory(row[1] + start, size, like)
    if outer == 1 and row[1] == 0:
        for i in range(value.size):
            value[i] = weight[i]
            tau[i] = n
    elif outer == 1:
        for i in range(value.size):
            value[i] = weight[i]
            tau[i] = n / (math.sqrt(moment[i]) + eps)
    else:
        a, b = first // inner, first % inner
        for i in range(value.size):
            at = (a * groups + group) * inner + b
            value[i] = weight[at]
            tau[i] = moment[at] if row[1] != 0 else kind(0)
            b += 1
            if b == inner:
                a, b = a + 1, 0
        for i in range(value.size):
            tau[i] = n / (math.sqrt(tau[i]) + eps) if row[1] != 0 else n
    if soft != 0.0:
        for i in range(value.size):
            value[i] -= clamp(value[i], tau[i] * cut)
    for i in range(value.size):
        reach = tau[i] * mu
        tau[i] = tiny if reach < tiny else reach


@register_jitable
def _write(row: Any, group: int, first: int, like: Any, value: Any) -> None:
    """Put weights of one group back."""
    outer, groups, inner = row[4], row[5], row[6]
    if outer == 1:
        weight = memory(row[0] + (group * inner + first) * like.itemsize, value.size, like)
        for i in range(value.size):
            weight[i] = value[i]
    else:
        weight = memory(row[0], outer * groups * inner, like)
        a, b = first // inner, first % inner
        for i in range(value.size):
            weight[(a * groups + group) * inner + b] = value[i]
            b += 1
            if b == inner:
                a, b = a + 1, 0


@jit
def _pass(
    stage: Any, theta: float, row: Any, numbers: Any, group: int, like: Any, soft: float, value: Any, tau: Any
) -> tuple[float, float, float]:
    """Go over one group once; what is returned depends on the stage."""
    a, b, c = 0.0, 0.0, 0.0
    size = row[4] * row[6]
    for start in range(0, size, KEPT):
        length = min(KEPT, size - start)
        v, t = value[:length], tau[:length]
        if stage == BOUNDS or size > KEPT:
            _read(row, numbers, group, start, like, soft, v, t)
        if stage == BOUNDS:
            more, means, ratios = _bounds(v, t)
            a, b, c = a + more, b + means, c + ratios
        elif stage == LARGEST:
            for i in range(length):
                a = max(a, abs(v[i]) - t[i])
        elif stage == CLIMB:
            phi, slope = _climb(v, t, theta)
            a, b = a + phi, b + slope
        elif stage == SCALE:
            factor = like.dtype.type(theta)
            for i in range(length):
                v[i] *= factor
            _write(row, group, start, like, v)
        else:
            low = like.dtype.type(theta)
            for i in range(length):
                v[i] = v[i] * (low / (t[i] + low)) if low != 0 else like.dtype.type(0)
            _write(row, group, start, like, v)
    return a, b, c


# plain numbers would be literals, for each of which all of a pass is compiled
BOUNDS, LARGEST, CLIMB, SCALE, SHRINK = map(np.int64, range(5))


@jit
def _factor(squares: float, value: Any, mu: float) -> float:
    """``max(1 − μ/‖v‖, 0)``; where squares in float32 are too small or too large, they are taken again."""
    if not 1e-25 < squares < 1e30:
        squares = 0.0
        for i in range(value.size):
            wide = np.float64(value[i])
            squares += wide * wide
    factor = 1.0 - mu / math.sqrt(squares) if squares != 0 else 0.0
    return 0.0 if factor < 0 else factor


@jit
def shrink_groups(rows: Any, numbers: Any, like: Any, soft: float) -> None:
    """The prox of ``Σμ‖w_g‖₂ + soft·Σ|w|``; numbers: n and ε of the step, and μ."""
    value, tau = np.empty(KEPT, like.dtype), np.empty(KEPT, like.dtype)
    resolution = math.sqrt(1.2e-7 if like.itemsize == 4 else 2.2e-16) / 8
    for j in range(len(rows)):
        row, some = rows[j], numbers[j]
        size = row[4] * row[6]
        for group in range(row[2], row[3]):
            if row[1] == 0 and soft == 0.0 and row[4] == 1:
                weight = memory(row[0] + group * size * like.itemsize, size, like)
                factor = like.dtype.type(_factor(_squares(weight), weight, some[0] * some[2]))
                for i in range(size):
                    weight[i] *= factor
                continue
            squares, means, ratios = _pass(BOUNDS, 0.0, row, some, group, like, soft, value, tau)
            if ratios <= 1.0:
                _pass(SHRINK, 0.0, row, some, group, like, soft, value, tau)
                continue
            if row[1] == 0:
                _pass(SCALE, 1.0 - 1.0 / math.sqrt(ratios), row, some, group, like, soft, value, tau)
                continue
            theta = math.sqrt(squares) - means / squares
            if not 0.0 < theta < math.inf:
                theta, _, _ = _pass(LARGEST, 0.0, row, some, group, like, soft, value, tau)
            for _ in range(MOST):
                phi, slope, _ = _pass(CLIMB, theta, row, some, group, like, soft, value, tau)
                climb = phi * (math.sqrt(phi) - 1.0) / slope
                theta += climb
                if not climb > resolution * theta:
                    break
            _pass(SHRINK, theta, row, some, group, like, soft, value, tau)
