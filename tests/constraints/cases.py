"""One row for each constraint, and what is true of its set; ``test_laws.py`` holds the laws of projections.

To add a constraint, add a row: ``test_every_public_constraint_has_a_row`` fails until you do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lightning_reg import NM, Box, KeepLargest, L1Ball, MaxNorm, MaxRank, NonNegative, Simplex, UnitNorm
from lightning_reg.constraints import Constraint


@dataclass(frozen=True)
class Case:
    """A constraint, and what is true of its set.

    Attributes:
        constraint: an instance, whose set leaves out some of the matrices that the laws draw.
        holds: whether a matrix ``(out, in)`` lies in the set, computed without torch, to 1e-9.
        convex: the set is convex, so that its projection makes no angle above a right one with what is in it.
        elementwise: each weight is projected by itself.
    """

    constraint: Constraint
    holds: Callable[[NDArray], bool] = field(repr=False)
    convex: bool = True
    elementwise: bool = False

    def __str__(self) -> str:
        return type(self.constraint).__name__


#: They have a state, or no set of their own; their tests are files in this folder.
WITH_A_STATE = {"NormBudget", "Refit"}
CASES = [
    Case(MaxNorm(0.6), lambda w: bool((np.linalg.norm(w, axis=1) <= 0.6 + 1e-9).all())),
    Case(UnitNorm(), lambda w: bool(np.allclose(np.linalg.norm(w, axis=1), 1.0)), convex=False),
    Case(NonNegative(), lambda w: bool((w >= 0.0).all()), elementwise=True),
    Case(Box(-0.3, 0.2), lambda w: bool(((w >= -0.3) & (w <= 0.2)).all()), elementwise=True),
    Case(L1Ball(1.5), lambda w: bool(np.abs(w).sum() <= 1.5 + 1e-9)),
    Case(Simplex(0.7), lambda w: bool((w >= 0.0).all() and np.isclose(w.sum(), 0.7, rtol=1e-9))),
    Case(MaxRank(2), lambda w: bool(np.linalg.matrix_rank(w, tol=1e-9) <= 2), convex=False),
    Case(KeepLargest(0.5, begin=0, until=1), lambda w: bool((w == 0.0).sum() >= w.size // 2), convex=False),
    Case(NM(1, 2), lambda w: bool(((w.reshape(-1, 2) != 0.0).sum(1) <= 1).all()), convex=False),
]
