"""Proximal operators of non-convex penalties as loops that numba compiles.

The formulas are those of :mod:`lightning_reg.prox.nonconvex`, which says where they are from.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba.extending import register_jitable

from lightning_reg.prox.nonconvex import HALF_MOST, HALF_START
from lightning_reg.tensors.loops import clamp, proximal

__all__ = ["firm_threshold", "half_threshold", "scad_threshold"]


@register_jitable
def _firm(weight: Any, step: Any, strength: Any, gamma: Any) -> Any:
    one = type(weight)(1)
    step = gamma if step > gamma else step
    rest = one - step / gamma
    shrunk = (weight - clamp(weight, step * strength)) / (rest if rest > 0 else one)
    return shrunk if abs(weight) <= gamma * strength else weight


@register_jitable
def _firm_up_to(step: Any, strength: Any, gamma: Any) -> Any:
    return (gamma if step > gamma else step) * strength


@register_jitable
def _scad(weight: Any, step: Any, strength: Any, a: Any) -> Any:
    one = type(weight)(1)
    most = a - one
    step = most if step > most else step
    rest, cut = most - step, step * strength
    middle = (most * weight - math.copysign(a * cut, weight)) / (rest if rest > 0 else one)
    bent = weight - clamp(weight, cut) if abs(weight) <= (one + step) * strength else middle
    return bent if abs(weight) <= a * strength else weight


@register_jitable
def _scad_up_to(step: Any, strength: Any, a: Any) -> Any:
    most = a - type(a)(1)
    return (most if step > most else step) * strength


@register_jitable
def _climbed(z: Any, rho: Any) -> Any:
    kind = type(z)
    square = z * z
    return (kind(2) * square * z - rho) / (kind(3) * square - kind(1))


@register_jitable
def _half(weight: Any, step: Any, strength: Any, _: Any) -> Any:
    kind = type(weight)
    modulus = abs(weight)
    rho = kind(0.5) * (step * strength) / modulus / math.sqrt(modulus)
    z = rho * (kind(HALF_START[3]) + rho * kind(HALF_START[4]))
    z = kind(HALF_START[0]) + rho * (kind(HALF_START[1]) + rho * (kind(HALF_START[2]) + z))
    z = _climbed(_climbed(_climbed(z, rho), rho), rho)
    # no branch, which would keep the loop from being vectorised
    return kind(0) if (modulus == 0) | (rho >= kind(HALF_MOST)) else weight * (z * z)


@register_jitable
def _half_up_to(step: Any, strength: Any, _: Any) -> Any:
    return type(step)(1.5) * _cube_root(step * strength) ** 2


@register_jitable
def _cube_root(value: Any) -> Any:
    """Of a number from 0 on. In float32 a third of its exponent and Halley's steps, which vectorise."""
    kind = type(value)
    if kind(1e-300) != 0:  # float64
        return value ** kind(1.0 / 3.0)
    start = np.float32(value).view(np.int32) // 3 + np.int32(709921077)
    root = kind(np.int32(start).view(np.float32))
    root = _nearer_cube_root(_nearer_cube_root(root, value), value)
    return value if (value == 0) | (value == kind(np.inf)) else root


@register_jitable
def _nearer_cube_root(root: Any, value: Any) -> Any:
    cube = root * root * root
    return root * (cube + value + value) / (cube + cube + value)


firm_threshold = proximal(_firm, _firm_up_to)
scad_threshold = proximal(_scad, _scad_up_to)
half_threshold = proximal(_half, _half_up_to)
