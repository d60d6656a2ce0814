"""The largest grids take turns: a run of the tests has one part of each, and the next day another.

``TESTS_TURN=all`` runs them whole, and ``TESTS_TURN=3`` the part of that number.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import date
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


def turn() -> int | None:
    """The number of today's part, or None for all of them; set here once, for workers of the same run."""
    chosen = os.environ.setdefault("TESTS_TURN", str(date.today().toordinal()))
    return None if chosen == "all" else int(chosen)


def has_its_turn(parts: int, part: int, number: int | None) -> bool:
    """Whether what is marked ``turns(parts, part)`` runs today; members of a family have one part each."""
    return number is None or number % parts == part


def everyday(first: int, cells: Sequence[Any], parts: int = 1) -> list[Any]:
    """Cells as parameters: on every run so many of the first, and in slow tests the turn of the others."""
    rest = [
        pytest.param(*(cell if isinstance(cell, tuple) else [cell]), marks=pytest.mark.slow)
        for cell in part_of(cells[first:], parts, turn())
    ]
    return [*cells[:first], *rest]


def part_of(cells: Sequence[T], parts: int, number: int | None) -> list[T]:
    """Every so many of the cells, which are sorted so that neighbours differ in all settings."""
    return list(cells if number is None else cells[number % parts :: parts])
