"""One row for each penalty, and everything the laws need to know of it.

To add a penalty, add a row: the laws, the in-place forms and the engine's tests pick it up, and
``test_every_public_penalty_has_a_row`` fails until you do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lightning_reg import (
    L0,
    L1,
    L2,
    L2SP,
    MCP,
    SCAD,
    SLOPE,
    ElasticNet,
    GroupLasso,
    GroupMCP,
    GroupSCAD,
    Hoyer,
    HoyerSquare,
    L2Norm,
    LHalf,
    LInf,
    LogSum,
    NuclearNorm,
    Orthogonality,
    OverlappingGroupLasso,
    Penalty,
    SparseGroupLasso,
    SpectralNorm,
    TotalVariation,
)

#: Shapes that every penalty meets: a scalar, nothing, a vector, a matrix, a convolution's kernel.
SHAPES: tuple[tuple[int, ...], ...] = ((), (0, 3), (1,), (5,), (3, 4), (2, 3, 2, 2))


@dataclass(frozen=True)
class Case:
    """A penalty, and what is true of it.

    Attributes:
        penalty: an instance; its own strength is not used, the laws pass one.
        formula: the value computed without torch, ``(weights, strength) -> float``.
        shapes: shapes of tensors that it takes.
        smooth: differentiable everywhere.
        convex: convex, so that its prox is firmly non-expansive.
        has_prox: it knows its proximal operator,
        prox_in_metric: with one step for each weight too.
        max_step: the longest step that the laws try; where not convex, the longest whose prox minimises what
            it should, at strengths up to 3.
        takes_complex: it is defined on complex weights.
        in_pieces: it has a kernel of its own, which goes over weights through small reused buffers.
        kinks_at_zero: it is differentiable where no weight is zero.
        same_when_bound: bound to a module it is the same function, with nothing to remember.
        label: how the tests call it.
    """

    penalty: Penalty
    formula: Callable[[NDArray, float], float] = field(repr=False)
    shapes: tuple[tuple[int, ...], ...] = SHAPES
    smooth: bool = False
    convex: bool = True
    has_prox: bool = True
    prox_in_metric: bool = True
    max_step: float = 10.0
    takes_complex: bool = True
    kinks_at_zero: bool = True
    in_pieces: bool = False
    same_when_bound: bool = True
    label: str = ""

    def __str__(self) -> str:
        return self.label or type(self.penalty).__name__


def _elastic_net(l1_ratio: float) -> Callable[[NDArray, float], float]:
    def formula(w: NDArray, strength: float) -> float:
        modulus = np.abs(w)
        return strength * float((l1_ratio * modulus + (1.0 - l1_ratio) / 2.0 * modulus**2).sum())

    return formula


def _rows(w: NDArray) -> NDArray:
    """Groups of ``(out, in, ...)`` as rows; a vector's entries are groups of one."""
    return np.abs(w).reshape(len(w) if w.ndim else 1, -1) if w.size else np.zeros((0, 1))


def _group_lasso(w: NDArray, strength: float) -> float:
    rows = _rows(w)
    return strength * float(rows.shape[1] ** 0.5 * ((rows**2).sum(1) ** 0.5).sum())


def _ratio(w: NDArray) -> float:
    length = float((np.abs(w) ** 2).sum()) ** 0.5
    return float(np.abs(w).sum()) / length if length else 0.0


def _mcp(w: NDArray, strength: float, gamma: float = 3.0) -> float:
    t = np.abs(w)
    inner = strength * t - t**2 / (2 * gamma)
    return float(np.where(t <= gamma * strength, inner, gamma * strength**2 / 2).sum())


def _scad(w: NDArray, strength: float, a: float = 3.7) -> float:
    t = np.abs(w)
    middle = (2 * a * strength * t - t**2 - strength**2) / (2 * (a - 1))
    flat = strength**2 * (a + 1) / 2
    return float(np.where(t <= strength, strength * t, np.where(t <= a * strength, middle, flat)).sum())


def _matrix(w: NDArray) -> NDArray:
    return w.reshape(w.shape[0], -1) if w.ndim >= 2 else w.reshape(1, -1)


def _orthogonality(form: str) -> Callable[[NDArray, float], float]:
    def formula(w: NDArray, strength: float) -> float:
        m = _matrix(w)
        inner, outer = m.T @ m - np.eye(m.shape[1]), m @ m.T - np.eye(m.shape[0])
        short = outer if m.shape[0] <= m.shape[1] else inner
        value = {
            "soft": (short**2).sum(),
            "double": (inner**2).sum() + (outer**2).sum(),
            "off-diagonal": (np.abs(short - np.diag(np.diag(short))) ** 2).sum(),
            "srip": np.abs(np.linalg.eigvalsh(short)).max(initial=0.0),
        }[form]
        return strength * float(value)

    return formula


def _singular(w: NDArray) -> NDArray:
    return np.linalg.svd(_matrix(w), compute_uv=False)


#: Matrices; a Gram matrix of nothing is the identity's, and no one asks.
FULL: tuple[tuple[int, ...], ...] = ((1,), (5,), (3, 4), (4, 3), (2, 3, 2, 2))

CASES: list[Case] = [
    Case(L1(1.0), lambda w, strength: strength * float(np.abs(w).sum()), in_pieces=True),
    Case(
        L2(1.0),
        lambda w, strength: strength / 2.0 * float((np.abs(w) ** 2).sum()),
        smooth=True,
        in_pieces=True,
    ),
    Case(
        L2Norm(1.0),
        lambda w, strength: strength * float((np.abs(w) ** 2).sum()) ** 0.5,
    ),
    Case(ElasticNet(1.0, l1_ratio=0.3), _elastic_net(0.3), in_pieces=True, label="ElasticNet"),
    Case(ElasticNet(1.0, l1_ratio=1.0), _elastic_net(1.0), in_pieces=True, label="ElasticNet-1"),
    Case(ElasticNet(1.0, l1_ratio=0.0), _elastic_net(0.0), smooth=True, in_pieces=True, label="ElasticNet-0"),
    Case(GroupLasso(1.0), _group_lasso),
    Case(
        SparseGroupLasso(1.0, l1_ratio=0.4),
        lambda w, strength: _group_lasso(w, 0.6 * strength) + 0.4 * strength * float(np.abs(w).sum()),
    ),
    Case(
        OverlappingGroupLasso(1.0, groups=("rows", "tensor", "weights"), level_factors=(0.6, 0.4, 0.3)),
        lambda w, strength: (
            _group_lasso(w, 0.6 * strength)
            + strength * (0.4 * w.size**0.5 * float((w**2).sum()) ** 0.5 + 0.3 * float(np.abs(w).sum()))
        ),
        max_step=1.0,  # up to 100 times one weight's step to another's, which takes some 20 turns
        takes_complex=False,
    ),
    Case(
        LInf(1.0, groups="rows"),
        lambda w, strength: strength * float(_rows(w).max(1, initial=0.0).sum()),
        takes_complex=False,
        kinks_at_zero=False,
    ),
    Case(
        GroupMCP(1.0, gamma=2.5),
        lambda w, strength: sum(
            _mcp(np.linalg.norm(row), strength * len(row) ** 0.5, 2.5) for row in _rows(w)
        ),
        convex=False,
        max_step=2.4,
        takes_complex=False,
    ),
    Case(
        GroupSCAD(1.0, a=3.4),
        lambda w, strength: sum(
            _scad(np.linalg.norm(row), strength * len(row) ** 0.5, 3.4) for row in _rows(w)
        ),
        convex=False,
        max_step=2.3,
        takes_complex=False,
    ),
    Case(MCP(1.0), _mcp, convex=False, max_step=2.99, takes_complex=False),
    Case(SCAD(1.0), _scad, convex=False, max_step=2.69, takes_complex=False),
    Case(
        L0(1.0),
        lambda w, strength: strength * float((w != 0).sum()),
        convex=False,
        prox_in_metric=False,
        takes_complex=False,
    ),
    Case(
        LHalf(1.0),
        lambda w, strength: strength * float((np.abs(w) ** 0.5).sum()),
        convex=False,
        takes_complex=False,
    ),
    Case(
        LogSum(1.0, eps=0.7),
        lambda w, strength: strength * float(np.log1p(np.abs(w) / 0.7).sum()),
        convex=False,
        takes_complex=False,
    ),
    Case(
        Hoyer(1.0),
        lambda w, strength: strength * _ratio(w),
        convex=False,
        has_prox=False,
        prox_in_metric=False,
        takes_complex=False,
    ),
    Case(
        HoyerSquare(1.0),
        lambda w, strength: strength * _ratio(w) ** 2,
        convex=False,
        has_prox=False,
        prox_in_metric=False,
        takes_complex=False,
    ),
    Case(
        SLOPE(1.0, last=0.3),
        lambda w, strength: (
            strength * float(np.sort(np.abs(w).ravel())[::-1] @ np.linspace(1.0, 0.3, w.size))
        ),
        kinks_at_zero=False,
        prox_in_metric=False,
        takes_complex=False,
    ),
    Case(
        TotalVariation(1.0),
        lambda w, strength: strength * float(np.abs(np.diff(w)).sum()),
        shapes=SHAPES[1:],
        kinks_at_zero=False,
        prox_in_metric=False,
        takes_complex=False,
    ),
    Case(
        TotalVariation(1.0, dim=(0, -1)),
        lambda w, strength: strength * float(np.abs(np.diff(w)).sum() + np.abs(np.diff(w, axis=0)).sum()),
        shapes=FULL,
        kinks_at_zero=False,
        has_prox=False,
        prox_in_metric=False,
        takes_complex=False,
        label="TotalVariation-2d",
    ),
    Case(
        NuclearNorm(1.0),
        lambda w, strength: strength * float(_singular(w).sum()),
        shapes=FULL,
        kinks_at_zero=False,
        prox_in_metric=False,
        takes_complex=False,
    ),
    Case(
        SpectralNorm(1.0),
        lambda w, strength: strength * float(_singular(w).max(initial=0.0)),
        shapes=FULL,
        kinks_at_zero=False,
        same_when_bound=False,
        prox_in_metric=False,
        takes_complex=False,
    ),
    *(
        Case(
            Orthogonality(1.0, form=form),
            _orthogonality(form),
            shapes=FULL,
            convex=False,
            has_prox=False,
            prox_in_metric=False,
            takes_complex=False,
            same_when_bound=form != "srip",
            label=f"Orthogonality-{form}",
        )
        for form in ("soft", "double", "srip", "off-diagonal")
    ),
    # on a bare tensor, which has no starting point, it is L2; see test_matrix_penalties.py
    Case(
        L2SP(1.0),
        lambda w, strength: strength / 2.0 * float((np.abs(w) ** 2).sum()),
        smooth=True,
        same_when_bound=False,
    ),
]
