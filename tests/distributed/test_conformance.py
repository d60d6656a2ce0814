"""The conformance table: every run agrees with the loop or is refused, and docs/conformance.md says so."""

from __future__ import annotations

import itertools
import operator

import pytest

import lightning_reg.penalties
from lightning_reg import Penalty
from tests.distributed.cells import (
    APPLY,
    CLIPPING,
    FAMILIES,
    OPTIMIZERS,
    TOLERANCES,
    TURNS,
    Cell,
    crossed,
    reference,
    takes,
    without,
)
from tests.distributed.conformance import COLUMNS, PARTS, cells_of
from tests.distributed.page import DIFFERS, PAGE, PASSED, Results, judge, read, render, run
from tests.support import relative
from tests.turns import everyday, turn


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run(tmp_path_factory.mktemp("conformance"), turn())


@pytest.mark.slow
@pytest.mark.xdist_group("conformance")
def test_no_run_is_silently_different(results: Results) -> None:
    assert not {cell: result for cell, result in results.items() if result.startswith(DIFFERS)}


@pytest.mark.slow
@pytest.mark.xdist_group("conformance")
def test_the_page_says_what_came_of_the_runs(results: Results) -> None:
    page = PAGE.read_text()
    whole = {**read(page), **results}
    assert page == render(whole), "run python -m tests.distributed.page, and look what changed"


def test_the_page_is_as_a_run_of_the_whole_table_writes_it() -> None:
    page = PAGE.read_text()
    assert page == render(read(page)), "run python -m tests.distributed.page, and look what changed"


@pytest.mark.parametrize("more", everyday(1, [0, 1, 4]))
def test_every_part_of_the_table_has_every_kind_of_cell(more: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(more):  # penalties that are yet to come
        monkeypatch.setitem(FAMILIES, f"another {number}", FAMILIES["L1"])
    launches = [name for name in COLUMNS if name != "spawn"]
    parts = [[cell for name in launches for cell in cells_of(name, number)] for number in range(PARTS)]
    whole = [cell for name in launches for cell in cells_of(name)]
    assert sorted(map(repr, whole)) == sorted(repr(cell) for one in parts for cell in one)
    for one in parts:
        for kinds in (
            itertools.product(("strategy",), ("apply", "precision", "accumulate", "clip", "optimizer")),
            [("family",), ("apply", "precision"), ("apply", "optimizer"), ("precision", "clip")],
        ):
            for kind in kinds:
                of = operator.attrgetter(*kind)
                assert {of(cell) for cell in one} == {of(cell) for cell in whole}, kind
    spawned = [cells_of("spawn", number) for number in range(6)]
    assert set(itertools.chain(*spawned)) == set(cells_of("spawn"))
    assert [len(cells) for cells in spawned] == [0, len(FAMILIES) * len(APPLY)] * 3


def test_every_public_penalty_is_in_the_table() -> None:
    public = (getattr(lightning_reg.penalties, name) for name in lightning_reg.penalties.__all__)
    penalties = {cls for cls in public if issubclass(cls, Penalty) and cls is not Penalty}
    missing = {type(penalty) for penalty in FAMILIES.values()} ^ penalties
    assert not missing, "give each a line in FAMILIES, tests/distributed/cells.py"


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_strong_enough_to_be_seen_in_every_setting(family: str) -> None:
    widest = max(tolerance for tolerance, _ in TOLERANCES.values())
    for apply, optimizer, accumulate, clip in itertools.product(APPLY, OPTIMIZERS, (1, 2), CLIPPING):
        if takes(family, apply, optimizer):
            cell = Cell(family, apply, "single device", "64-true", optimizer, accumulate, clip)
            moved = relative(without(cell), reference(cell))
            assert moved > 2 * widest, f"{cell}: give {family} another strength in cells.py, FAMILIES"


@pytest.mark.parametrize("more", [0, 1])
def test_the_settings_meet_in_pairs(more: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(more):  # penalties that are yet to come
        monkeypatch.setitem(FAMILIES, f"another {number}", FAMILIES["L1"])
    cells = crossed("single device")
    rows = itertools.product(TOLERANCES, (1, 2), CLIPPING, APPLY)
    assert {(c.precision, c.accumulate, c.clip, c.apply) for c in cells} == set(rows)
    with_gradient = [family for family in list(FAMILIES)[:TURNS] if FAMILIES[family].has_gradient]
    for family in with_gradient:
        mine = [cell for cell in cells if cell.family == family]
        assert {cell.precision for cell in mine} == set(TOLERANCES)
        assert {cell.accumulate for cell in mine} == {1, 2}
        assert {cell.clip for cell in mine} == set(CLIPPING)
        assert {cell.optimizer for cell in mine} == {"SGD", "Adam"}
    for optimizer, apply in itertools.product(("SGD", "Adam"), APPLY):
        mine = [cell for cell in cells if (cell.optimizer, cell.apply) == (optimizer, apply)]
        assert {cell.precision for cell in mine} == set(TOLERANCES)


def test_the_judge_can_say_no() -> None:
    cell = Cell("L1", "gradient", "DDP, 2", "64-true")
    right = reference(cell)
    assert judge(cell, [right, right]) == PASSED
    assert judge(cell, ["a sentence", "a sentence"]) == "a sentence"
    wrong = [
        [without(cell)] * 2,
        [right * (1 + 1e-9)] * 2,
        [right * float("nan")] * 2,
        [right, right * (1 + 1e-15)],
        ["a sentence", right],
        [right, "a sentence"],
        ["a sentence", "another"],
    ]
    assert all(judge(cell, found).startswith(DIFFERS) for found in wrong)


def test_the_page_has_a_note_for_each_refusal() -> None:
    text = PAGE.read_text()
    assert DIFFERS not in text
    for line in text[text.index("## Refusals") :].splitlines():
        if line[:1].isdigit():
            number, sentence = line.split(". ", 1)
            assert f"<sup>{number}</sup>" in text
            assert len(sentence) > 40
