r"""Proximal operators of norms of groups as loops that numba compiles: each group is worked on in the cache.

The formulas are those of :mod:`lightning_reg.prox.group`. A row of a table is a tensor, or some of its
groups: addresses of weights and of moments (0 for one step for all), the first group and the one after the
last, then the shape ``(outer, groups, inner)`` of the tensor, whose slices along the middle are the groups.

A weight's threshold is :math:`\mu\eta = c/r` with one number :math:`c = \mu n` and its own
:math:`r = \sqrt v + \epsilon`, so that each pass divides once: :math:`1/(\theta + c/r) = r/(c + \theta r)`.

Sums may be taken in any order, all else in that of the formula. They are taken in the tensor's dtype over
CHUNK numbers, and of these in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba.extending import register_jitable

from lightning_reg.prox.root_by_moments import root_by_moments
from lightning_reg.tensors.loops import clamp, jit, memory

__all__ = ["shrink_groups"]

#: Numbers that are summed up in the tensor's own dtype.
CHUNK = 512
#: Weights of a group that are kept with their steps; those of a larger group are read anew in each pass.
KEPT = 2**14
#: What a root counts as at most, which an infinite moment would exceed: times θ it stays a number.
LONGEST = 1e18
#: Newton steps at most: two reach most roots, and from 0 over 20 decades of steps forty did.
MOST = 60

_root_by_moments = register_jitable(root_by_moments)


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
def _moments_of(v: Any, r: Any, c: Any) -> tuple[Any, Any, Any, Any, Any]:
    zero = v.dtype.type(0)
    zeroth, first, second, third, ratio = zero, zero, zero, zero, zero
    inverse = v.dtype.type(1) / c
    for i in range(v.size):
        tau = c / r[i]
        moment = v[i] * v[i]
        zeroth += moment
        moment *= tau
        first += moment
        moment *= tau
        second += moment
        third += moment * tau
        q = v[i] * (r[i] * inverse)
        ratio += q * q
    return zeroth, first, second, third, ratio


@_sums_in_any_order
def _climb_of(v: Any, r: Any, c: Any, low: Any) -> tuple[Any, Any]:
    phi, slope = v.dtype.type(0), v.dtype.type(0)
    for i in range(v.size):
        q = r[i] / (c + low * r[i])
        square = v[i] * q
        square *= square
        phi += square
        slope += square * q
    return phi, slope


@jit
def _moments(value: Any, root: Any, c: Any) -> tuple[float, float, float, float, float]:
    """``Σv²``, ``Σv²τ``, ``Σv²τ²``, ``Σv²τ³`` and ``Σ(v/τ)²``, with ``τ = c/r``."""
    zeroth, first, second, third, ratio = 0.0, 0.0, 0.0, 0.0, 0.0
    for start in range(0, value.size, CHUNK):
        more = _moments_of(value[start : start + CHUNK], root[start : start + CHUNK], c)
        zeroth, first, second = zeroth + more[0], first + more[1], second + more[2]
        third, ratio = third + more[3], ratio + more[4]
    return zeroth, first, second, third, ratio


@jit
def _climb(value: Any, root: Any, c: Any, theta: float) -> tuple[float, float]:
    """``Σ(v/(θ + c/r))²``, and the same with a third factor ``1/(θ + c/r)``."""
    low, phis, slopes = value.dtype.type(theta), 0.0, 0.0
    for start in range(0, value.size, CHUNK):
        phi, slope = _climb_of(value[start : start + CHUNK], root[start : start + CHUNK], c, low)
        phis, slopes = phis + phi, slopes + slope
    return phis, slopes


@register_jitable
def _is_in_place(row: Any, soft: float) -> Any:
    """Whether a group's weights lie side by side, and are worked on where they are."""
    return row[4] == 1 and soft == 0.0


@register_jitable
def _read(
    row: Any, numbers: Any, group: int, first: int, like: Any, soft: float, value: Any, root: Any
) -> None:
    """Fill ``root`` with those in the steps of one group, and ``value`` with its weights, if it is a copy."""
    kind = like.dtype.type
    n, eps, longest = kind(numbers[0]), kind(numbers[1]), kind(LONGEST)
    outer, groups, inner = row[4], row[5], row[6]
    start, size = 0, outer * groups * inner
    if outer == 1:
        start, size = (group * inner + first) * like.itemsize, value.size
    weight, moment = memory(row[0] + start, size, like), memory(row[1] + start, size, like)
    if outer == 1:
        for i in range(root.size):
            long = math.sqrt(moment[i]) + eps if row[1] != 0 else kind(1)
            root[i] = longest if long > longest else long
        if not _is_in_place(row, soft):
            for i in range(value.size):
                value[i] = weight[i]
    else:
        a, b = first // inner, first % inner
        for i in range(value.size):
            at = (a * groups + group) * inner + b
            value[i] = weight[at]
            root[i] = moment[at] if row[1] != 0 else kind(0)
            b += 1
            if b == inner:
                a, b = a + 1, 0
        for i in range(value.size):
            long = math.sqrt(root[i]) + eps if row[1] != 0 else kind(1)
            root[i] = longest if long > longest else long
    if soft != 0.0:
        cut = n * kind(soft)
        for i in range(value.size):
            value[i] -= clamp(value[i], cut / root[i])


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


@register_jitable
def _reach(numbers: Any, like: Any) -> Any:
    """The number c, from 1.2e-38 on in float32."""
    kind = like.dtype.type
    return max(kind(numbers[0]) * kind(numbers[2]), kind(1.2e-38) if like.itemsize == 4 else kind(2.3e-308))


@register_jitable
def _part(row: Any, group: int, start: int, length: int, like: Any, soft: float, value: Any) -> Any:
    """Some weights of a group, where they are or where they are to be copied."""
    part = value[:length]
    if _is_in_place(row, soft):
        part = memory(row[0] + (group * row[6] + start) * like.itemsize, length, like)
    return part


@jit
def _begin(
    row: Any, numbers: Any, group: int, like: Any, soft: float, value: Any, root: Any
) -> tuple[float, float, float, float, float]:
    """Go over one group for the first time, and return what :func:`_moments` does."""
    zeroth, first, second, third, ratio = 0.0, 0.0, 0.0, 0.0, 0.0
    size = row[4] * row[6]
    for start in range(0, size, KEPT):
        length = min(KEPT, size - start)
        v, r = _part(row, group, start, length, like, soft, value), root[:length]
        _read(row, numbers, group, start, like, soft, v, r)
        more = _moments(v, r, _reach(numbers, like))
        zeroth, first, second = zeroth + more[0], first + more[1], second + more[2]
        third, ratio = third + more[3], ratio + more[4]
    return zeroth, first, second, third, ratio


@jit
def _pass(
    stage: Any,
    theta: float,
    row: Any,
    numbers: Any,
    group: int,
    like: Any,
    soft: float,
    value: Any,
    root: Any,
) -> tuple[float, float]:
    """Go over one group once more; what is returned depends on the stage."""
    first, second = 0.0, 0.0
    kind, c = like.dtype.type, _reach(numbers, like)
    size = row[4] * row[6]
    for start in range(0, size, KEPT):
        length = min(KEPT, size - start)
        v, r = _part(row, group, start, length, like, soft, value), root[:length]
        if size > KEPT:
            _read(row, numbers, group, start, like, soft, v, r)
        if stage == LARGEST:
            for i in range(length):
                first = max(first, abs(v[i]) - c / r[i])
        elif stage == CLIMB:
            phi, slope = _climb(v, r, c, theta)
            first, second = first + phi, second + slope
        else:
            low = kind(theta)
            if stage == SCALE:
                for i in range(length):
                    v[i] *= low
            else:
                for i in range(length):
                    reach = low * r[i]
                    v[i] = v[i] * (reach / (c + reach)) if low != 0 else kind(0)
            if not _is_in_place(row, soft):
                _write(row, group, start, like, v)
    return first, second


# plain numbers would be literals, for each of which all of a pass is compiled
LARGEST, CLIMB, SCALE, SHRINK = map(np.int64, range(4))


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
    value, root = np.empty(KEPT, like.dtype), np.empty(KEPT, like.dtype)
    eps = 1.2e-7 if like.itemsize == 4 else 2.2e-16
    resolution = math.sqrt(eps) / 8
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
            squares, means, seconds, thirds, ratios = _begin(row, some, group, like, soft, value, root)
            if ratios <= 1.0:
                _pass(SHRINK, 0.0, row, some, group, like, soft, value, root)
                continue
            if row[1] == 0:
                _pass(SCALE, 1.0 - 1.0 / math.sqrt(ratios), row, some, group, like, soft, value, root)
                continue
            theta = _root_by_moments(squares, means, seconds, thirds, eps)
            if theta >= 0.0:
                _pass(SHRINK, theta, row, some, group, like, soft, value, root)
                continue
            theta = math.sqrt(squares) - means / squares
            if not 0.0 < theta < math.inf:
                theta, _ = _pass(LARGEST, 0.0, row, some, group, like, soft, value, root)
            for _ in range(MOST):
                phi, slope = _pass(CLIMB, theta, row, some, group, like, soft, value, root)
                climb = phi * (math.sqrt(phi) - 1.0) / slope
                theta += climb
                if not climb > resolution * theta:
                    break
            _pass(SHRINK, theta, row, some, group, like, soft, value, root)
