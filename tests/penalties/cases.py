"""One row for each penalty, and everything the laws need to know of it.

To add a penalty, add a row: the laws, the in-place forms and the engine's tests pick it up, and
``test_every_public_penalty_has_a_row`` fails until you do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lightning_reg import L1, L2, ElasticNet, L2Norm, Penalty

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
        max_step: the largest step whose prox is unique, at any strength; only where not convex.
        takes_complex: it is defined on complex weights.
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
    label: str = ""

    def __str__(self) -> str:
        return self.label or type(self.penalty).__name__


def _elastic_net(l1_ratio: float) -> Callable[[NDArray, float], float]:
    def formula(w: NDArray, strength: float) -> float:
        modulus = np.abs(w)
        return strength * float((l1_ratio * modulus + (1.0 - l1_ratio) / 2.0 * modulus**2).sum())

    return formula


CASES: list[Case] = [
    Case(L1(1.0), lambda w, strength: strength * float(np.abs(w).sum())),
    Case(L2(1.0), lambda w, strength: strength / 2.0 * float((np.abs(w) ** 2).sum()), smooth=True),
    Case(
        L2Norm(1.0),
        lambda w, strength: strength * float((np.abs(w) ** 2).sum()) ** 0.5,
        prox_in_metric=False,
    ),
    Case(ElasticNet(1.0, l1_ratio=0.3), _elastic_net(0.3), label="ElasticNet"),
    Case(ElasticNet(1.0, l1_ratio=1.0), _elastic_net(1.0), label="ElasticNet-1"),
    Case(ElasticNet(1.0, l1_ratio=0.0), _elastic_net(0.0), smooth=True, label="ElasticNet-0"),
]
