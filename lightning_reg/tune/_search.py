"""One number to find within a budget: a coarse grid, then values beside the best one so far."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

__all__ = ["following", "search"]

#: What is to be low; of tuples the first number, and the next where the first are equal.
Loss = TypeVar("Loss", float, tuple[float, float])


def search(
    measure: Callable[[float], Loss], low: float, high: float, points: int, log: bool
) -> dict[float, Loss]:
    """Return what ``measure`` said at ``points`` values, lower being better.

    Half of them are a grid from ``low`` to ``high``. Each of the others is chosen by :func:`following`.

    Args:
        measure: of a value; a number or a tuple, without NaN.
        low: where the grid begins.
        high: where it ends.
        points: how many values.
        log: whether distances are those of logarithms.
    """
    first = max(min(3, points), -(-points // 2))
    steps = [i / max(first - 1, 1) for i in range(first)]
    grid = [low * (high / low) ** step if log else low + (high - low) * step for step in steps]
    seen: dict[float, Loss] = {}
    while len(seen) < points:
        value = grid[len(seen)] if len(seen) < first else following(seen, log, 0.01 * low)
        if value in seen:
            break
        seen[value] = measure(value)
    return seen


def following(seen: dict[float, Loss], log: bool, floor: float = 0.0) -> float:
    """Return the next value to try: beyond the best where it is at an end, else halfway to a neighbour.

    Of the two neighbours it is the farther one, on a tie the better. Strengths do not go below ``floor``,
    under which they do next to nothing; rates, where ``log`` is False, do not leave their range.

    >>> following({1.0: 3.0, 10.0: 2.0, 100.0: 1.0}, log=True)
    1000.0
    >>> round(following({1.0: 3.0, 100.0: 1.0, 1000.0: 2.0}, log=True), 6)
    10.0
    >>> following({0.1: 2.0, 0.4: 1.0, 0.5: 3.0}, log=False)
    0.25
    """
    values = sorted(seen)
    at = min(range(len(values)), key=lambda i: (seen[values[i]], values[i]))
    best = values[at]
    if len(values) == 1:
        return best * 10.0 if log else best / 2
    if log and at == len(values) - 1:
        return best * (best / values[at - 1])
    if log and at == 0 and best > floor:
        return best * (best / values[1])

    def rank(other: float) -> tuple[float, Loss]:
        distance = abs(math.log(other / best)) if log else abs(other - best)
        return -round(distance, 9), seen[other]

    other = min((values[i] for i in (at - 1, at + 1) if 0 <= i < len(values)), key=rank)
    return math.sqrt(best * other) if log else (best + other) / 2
