"""Names in logs, each of them once."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

__all__ = ["numbered"]


def numbered(names: Iterable[str]) -> list[str]:
    """Return the names in order, with a number from the second of a name on.

    >>> numbered(["l1", "l2", "l1"])
    ['l1', 'l2', 'l1_2']
    """
    taken: dict[str, None] = {}
    for name in names:
        candidates = (name if i == 1 else f"{name}_{i}" for i in count(1))
        taken[next(candidate for candidate in candidates if candidate not in taken)] = None
    return list(taken)
