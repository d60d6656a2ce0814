"""Every cell of a grid has its turn, and every family a member on each day."""

import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.turns import everyday, has_its_turn, part_of

MARK = re.compile(r"pytest\.mark\.turns\((\d+), (\d+)\)")
FILES = sorted(
    path for path in Path(__file__).parent.rglob("test_*.py") if MARK.search(path.read_text("utf-8"))
)


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_the_parts_are_all_the_cells_each_once(parts: int) -> None:
    cells = list(range(10))
    assert sorted(cell for day in range(5, 5 + parts) for cell in part_of(cells, parts, day)) == cells
    assert part_of(cells, parts, None) == cells
    assert [sum(has_its_turn(parts, part, day) for part in range(parts)) for day in range(9)] == [1] * 9
    assert all(has_its_turn(parts, part, None) for part in range(parts))


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_a_member_of_each_marked_family_runs_on_every_day(file: Path) -> None:
    families = defaultdict(set)
    for parts, part in MARK.findall(file.read_text("utf-8")):
        families[int(parts)].add(int(part))
    for parts, found in families.items():
        assert found <= set(range(parts)), f"turns({parts}, …) counts from 0"
        if file.stem not in ALONE:
            assert found == set(range(parts)), f"no day has part {set(range(parts)) - found} of {parts}"


def test_of_the_cells_of_a_family_the_first_are_everyday_and_none_is_lost() -> None:
    first, second, third = everyday(1, ["a", ("b", 1), "c"])
    assert first == "a"
    assert (second.values, third.values) == (("b", 1), ("c",))
    assert {mark.name for cell in (second, third) for mark in cell.marks} == {"slow"}


#: Files in which some test of the same subject runs each day, beside what is marked.
ALONE = {"test_demo", "test_path"}
