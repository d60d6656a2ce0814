"""Schedules against values worked out by hand."""

from __future__ import annotations

import math
import pickle
from itertools import pairwise
from typing import Any

import pytest

from lightning_reg import (
    L1,
    Constant,
    Cosine,
    Exponential,
    Linear,
    MultiStep,
    Piecewise,
    Polynomial,
    Schedule,
)
from lightning_reg.schedules.base import check_schedule, evaluate, in_steps, needs_total_steps

EVERY: list[Schedule] = [
    Constant(0.3),
    Linear(0.0, 1.0),
    Cosine(0.2, 1.0, begin=0.1, until=0.6),
    Exponential(1e-6, 1e-2, until=500),
    Polynomial(0.0, 1.0, power=2.0),
    MultiStep(1.0, milestones=(0.5, 0.75)),
    Piecewise([(0, 0.0), (0.5, 1.0), (1.0, 0.2)]),
]


def test_the_list_above_is_complete() -> None:
    def concrete(cls: type) -> set[type]:
        below = {found for child in cls.__subclasses__() for found in concrete(child)}
        return below or {cls}

    ours = {cls for cls in concrete(Schedule) if cls.__module__ == Cosine.__module__}
    assert {type(schedule) for schedule in EVERY} == ours


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Constant(0.3), {0: 0.3, 500: 0.3, 1000: 0.3, 5000: 0.3}),
        (Linear(0.0, 1.0), {0: 0.0, 1: 0.001, 250: 0.25, 999: 0.999, 1000: 1.0, 1500: 1.0}),
        (Linear(1.0, 0.5), {0: 1.0, 500: 0.75, 1000: 0.5}),
        (Linear(2.0, 4.0, begin=0.2, until=0.7), {0: 2.0, 200: 2.0, 450: 3.0, 700: 4.0, 900: 4.0}),
        (Linear(2.0, 4.0, begin=10, until=20), {9: 2.0, 10: 2.0, 15: 3.0, 20: 4.0}),
        (Linear(2.0, 4.0, begin=100, until=0.5), {100: 2.0, 300: 3.0, 500: 4.0}),
        (Linear(0.0, 1.0, until=1), {0: 0.0, 1: 1.0}),  # the integer 1 is a step, not the end
        (Cosine(0.0, 1.0), {0: 0.0, 500: 0.5, 1000: 1.0, 250: (1 - math.sqrt(0.5)) / 2}),
        (Cosine(3.0, 1.0, until=300), {0: 3.0, 100: 2.5, 200: 1.5, 300: 1.0}),
        (Exponential(1e-6, 1e-2), {0: 1e-6, 250: 1e-5, 500: 1e-4, 750: 1e-3, 1000: 1e-2}),
        (Exponential(8.0, 1.0, until=30), {10: 4.0, 20: 2.0, 30: 1.0}),
        (Polynomial(0.0, 1.0), {0: 0.0, 500: 0.875, 1000: 1.0}),
        (Polynomial(1.0, 0.0, power=2.0), {0: 1.0, 500: 0.25, 900: 0.01, 1000: 0.0}),
        (Polynomial(0.0, 1.0, power=1.0), {250: 0.25}),
        (MultiStep(1.0, (100, 200)), {0: 1.0, 99: 1.0, 100: 0.1, 199: 0.1, 200: 0.01, 9999: 0.01}),
        (MultiStep(2.0, (0.5,), gamma=3.0), {499: 2.0, 500: 6.0}),
        (MultiStep(1.0, (100, 0.5), gamma=2.0), {99: 1.0, 100: 2.0, 499: 2.0, 500: 4.0}),
        (MultiStep(1.0, ()), {0: 1.0, 9: 1.0}),
        (Piecewise([(0.0, 0.0), (0.5, 1.0), (1.0, 0.2)]), {0: 0.0, 250: 0.5, 500: 1.0, 750: 0.6, 1000: 0.2}),
        (Piecewise([(100, 1.0), (300, 3.0)]), {0: 1.0, 100: 1.0, 200: 2.0, 300: 3.0, 999: 3.0}),
        (Piecewise([(100, 1.0), (0.5, 5.0)]), {300: 3.0}),
        (Piecewise([(7, 0.4)]), {0: 0.4, 7: 0.4, 8: 0.4}),
    ],
    ids=repr,
)
def test_against_hand_values(schedule: Schedule, values: dict[int, float]) -> None:
    for step, value in values.items():
        assert schedule(step, 1000) == pytest.approx(value, rel=1e-12, abs=1e-15)


def test_fractions_follow_the_runs_length_and_steps_do_not() -> None:
    assert Linear(0.0, 1.0, until=0.5)(100, 400) == Linear(0.0, 1.0, until=0.5)(1000, 4000) == 0.5
    assert Linear(0.0, 1.0, until=200)(100, 400) == Linear(0.0, 1.0, until=200)(100, None) == 0.5


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_pickled_copied_and_hashed(schedule: Schedule) -> None:
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule and hash(again) == hash(schedule)
    assert [again(step, 1000) for step in range(0, 1001, 50)] == [
        schedule(step, 1000) for step in range(0, 1001, 50)
    ]


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_frozen(schedule: Schedule) -> None:
    with pytest.raises(AttributeError):
        schedule.value = 1.0  # type: ignore[attr-defined]


@pytest.mark.parametrize("shape", [Linear, Cosine, Exponential, Polynomial])
@pytest.mark.parametrize(("start", "end"), [(0.1, 2.0), (2.0, 0.1)])
def test_ramps_are_monotone_and_stay_between_their_ends(shape: Any, start: float, end: float) -> None:
    values = [shape(start, end, begin=0.1, until=0.9)(step, 1000) for step in range(0, 1001)]
    steps = [b - a for a, b in pairwise(values)]
    assert all(step >= 0 for step in steps) if end > start else all(step <= 0 for step in steps)
    assert values[0] == start and values[-1] == end
    assert min(start, end) <= min(values) and max(values) <= max(start, end)


# --- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: Constant(math.nan), r"Constant\(value=nan\)"),
        (lambda: Constant("x"), "not a finite number"),  # type: ignore[arg-type]
        (lambda: Constant(True), "not a finite number"),
        (lambda: Linear(0.0, math.inf), r"Linear\(end=inf\)"),
        (lambda: Linear(math.nan, 1.0), r"Linear\(start=nan\)"),
        (lambda: Linear(0.0, 1.0, begin=-5), "outside the run"),
        (lambda: Linear(0.0, 1.0, until=1.5), "outside the run"),
        (lambda: Linear(0.0, 1.0, until=math.nan), "not a finite number"),
        (lambda: Linear(0.0, 1.0, begin=0.6, until=0.5), "ends before it begins"),
        (lambda: Cosine(0.0, 1.0, begin=5, until=5), "ends before it begins"),
        (lambda: Exponential(0.0, 1.0), "two positive ends"),
        (lambda: Exponential(-1.0, 1.0), "two positive ends"),
        (lambda: Exponential(1.0, -1.0), "two positive ends"),
        (lambda: Polynomial(0.0, 1.0, power=0.0), "positive power"),
        (lambda: Polynomial(0.0, 1.0, power=math.inf), "not a finite number"),
        (lambda: MultiStep(1.0, (200, 100)), "in order"),
        (lambda: MultiStep(1.0, (100, 100)), "in order"),
        (lambda: MultiStep(1.0, (0.5, 1.5)), "outside the run"),
        (lambda: MultiStep(1.0, (0.5,), gamma=math.nan), "gamma"),
        (lambda: MultiStep(1.0, 100), "milestones"),  # type: ignore[arg-type]
        (lambda: Piecewise([]), "at least one"),
        (lambda: Piecewise([(0.5, 1.0), (0.2, 0.0)]), "in order"),
        (lambda: Piecewise([0.5, 1.0]), "pairs"),  # type: ignore[list-item]
        (lambda: Piecewise([(0.5, math.nan)]), "not a finite number"),
    ],
)
def test_bad_arguments_at_construction(build: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()


def test_which_schedules_need_the_runs_length() -> None:
    assert needs_total_steps(Linear(0.0, 1.0))
    assert needs_total_steps(MultiStep(1.0, (100, 0.5)))
    assert needs_total_steps(Piecewise([(0, 1.0), (1.0, 2.0)]))
    assert not needs_total_steps(Linear(0.0, 1.0, begin=0.0, until=100))
    assert not needs_total_steps(MultiStep(1.0, (100, 200)))
    assert not needs_total_steps(Constant(1.0)) and not needs_total_steps(1.0)


@pytest.mark.parametrize("schedule", [s for s in EVERY if needs_total_steps(s)], ids=repr)
def test_a_run_of_unknown_length_is_refused_where_it_matters(schedule: Schedule) -> None:
    with pytest.raises(ValueError, match="total_steps"):
        check_schedule(schedule, None)
    with pytest.raises(ValueError, match="total_steps"):
        schedule(300, None)


@pytest.mark.parametrize(
    "schedule",
    [Constant(0.3), Linear(0.0, 1.0, until=100), lambda step, total: 0.1 * step],
    ids=["constant", "steps", "callable"],
)
def test_a_run_of_unknown_length_is_fine_where_it_does_not(schedule: Any) -> None:
    check_schedule(schedule, None)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1e-9, None, "x"])
def test_a_bad_value_at_step_700_is_found_before_the_run(bad: Any) -> None:
    def schedule(step: int, total_steps: int | None) -> Any:
        return bad if step == 700 else 0.1

    with pytest.raises(ValueError, match="strength at step 700"):
        check_schedule(schedule, 1000)
    check_schedule(schedule, 700)  # its last step is 699
    with pytest.raises(ValueError, match="strength at step 700"):
        evaluate(schedule, 700, 1000)


def test_each_step_of_a_short_run_is_looked_at() -> None:
    asked: list[int] = []
    check_schedule(lambda step, total: float(not asked.append(step)), 6)
    assert asked == [0, 1, 2, 3, 4, 5]


def test_the_beginning_of_a_run_needs_no_length_of_it() -> None:
    assert in_steps(Constant(1.0), 0.0, None) == 0
    assert in_steps(Constant(1.0), 0.5, 10) == 5.0
    with pytest.raises(ValueError, match="fraction of the run"):
        in_steps(Constant(1.0), 0.5, None)


def test_an_exponential_of_ends_below_one() -> None:
    assert Exponential(0.5, 0.125)(50, 100) == pytest.approx(0.25)


def test_a_class_in_the_place_of_a_schedule_is_named() -> None:
    with pytest.raises(TypeError, match=r"the strength is the class Linear; give an instance of it"):
        check_schedule(Linear, 1000)


def test_a_long_run_is_sampled_to_its_last_step() -> None:
    asked: list[int] = []
    check_schedule(lambda step, total: float(not asked.append(step)), 1_000_000)
    assert asked[0] == 0 and asked[-1] == 999_999 and len(asked) <= 10_002
    assert max(b - a for a, b in pairwise(asked)) <= 101


def test_evaluate_takes_numbers_schedules_and_callables() -> None:
    assert evaluate(0.5, 3) == 0.5
    assert evaluate(2, 3) == 2.0 and isinstance(evaluate(2, 3), float)
    assert evaluate(Linear(0.0, 1.0), 5, 10) == 0.5
    assert evaluate(lambda step, total: step / (total or 1), 5, 10) == 0.5


def test_an_upper_limit_is_held_and_named() -> None:
    assert evaluate(1.0, 0, name="rate", upper=1.0) == 1.0
    with pytest.raises(ValueError, match=r"rate at step 0 is 1.5.*between 0 and 1"):
        evaluate(1.5, 0, name="rate", upper=1.0)


@pytest.mark.parametrize("strength", [-1.0, math.nan, math.inf, -0.001])
def test_a_penalty_refuses_a_bad_strength(strength: float) -> None:
    with pytest.raises(ValueError, match=r"L1\(strength="):
        L1(strength)


@pytest.mark.parametrize("strength", ["1e-4", None, True, [1e-4]])
def test_a_penalty_refuses_a_strength_of_another_kind(strength: Any) -> None:
    with pytest.raises(TypeError, match=r"L1\(strength="):
        L1(strength)
