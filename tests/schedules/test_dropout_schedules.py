import math

import numpy as np
import pytest

from lightning_reg import Linear
from lightning_reg.dropout import (
    AnnealedDropout,
    ByDepth,
    CurriculumDropout,
    DropHead,
    EarlyDropout,
    LateDropout,
)
from lightning_reg.schedules.base import check_schedule, needs_total_steps
from lightning_reg.schedules.dropout import schedule_range


@pytest.mark.parametrize(
    ("schedule", "at"),
    [
        # worked out by hand from the formulas, for a run of 300 steps
        (EarlyDropout(), {0: 0.1, 25: 0.05, 40: 0.02, 50: 0.0, 299: 0.0}),
        (EarlyDropout(0.4, until=100), {0: 0.4, 75: 0.1, 100: 0.0}),
        (LateDropout(), {0: 0.0, 49: 0.0, 50: 0.1, 299: 0.1}),
        (CurriculumDropout(0.5), {0: 0.0, 30: 0.5 * (1 - 1 / math.e), 300: 0.5 * (1 - math.exp(-10))}),
        (CurriculumDropout(0.2, gamma=math.log(2)), {1: 0.1, 2: 0.15, 3: 0.175}),
        (AnnealedDropout(0.5), {0: 0.5, 75: 0.375, 150: 0.25, 300: 0.0}),
        (AnnealedDropout(0.5, until=0.5), {75: 0.25, 150: 0.0, 200: 0.0}),
        (DropHead(0.2, 0.4), {0: 0.2, 75: 0.1, 150: 0.0, 225: 0.2, 300: 0.4, 400: 0.4}),
        (DropHead(0.2, 0.4, turn=1.0), {150: 0.1, 300: 0.0}),
        (EarlyDropout(1.0), {0: 1.0}),
        (LateDropout(0.0), {299: 0.0}),
        (DropHead(0.3, 0.1, turn=60), {0: 0.3, 30: 0.15, 60: 0.0, 180: 0.05, 300: 0.1}),
    ],
)
def test_values_by_hand(schedule, at):
    check_schedule(schedule, 300, upper=1.0)
    assert {step: schedule(step, 300) for step in at} == pytest.approx(at, abs=1e-15)


def test_early_dropout_against_the_authors_ramp():
    # theirs: np.linspace(rate, 0, iterations until the cutoff), both ends included
    theirs = np.linspace(0.1, 0, 5000)
    ours = [EarlyDropout()(t, 30_000) for t in range(5000)]
    assert np.abs(theirs - ours).max() <= 0.1 / 4999


def test_curriculum_is_one_minus_the_papers_probability_of_keeping():
    keep, gamma = 0.3, 1e-3
    for t in (0, 10, 1000):
        assert CurriculumDropout(1 - keep, gamma)(t) == pytest.approx(
            1 - ((1 - keep) * math.exp(-gamma * t) + keep)
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EarlyDropout(1.5), r"EarlyDropout\(rate=1.5\) is not a probability"),
        (lambda: LateDropout(float("nan")), "is not a probability"),
        (lambda: DropHead(0.1, -0.1), r"DropHead\(end=-0.1\)"),
        (lambda: EarlyDropout(until=0), "not inside the run"),
        (lambda: AnnealedDropout(until=1.5), "not inside the run"),
        (lambda: LateDropout(begin=0.0), "not inside the run"),
        (lambda: EarlyDropout(0.1, "half"), r"EarlyDropout\(until='half'\) is not inside the run"),
        (lambda: EarlyDropout(0.1, True), "not inside the run"),
        (lambda: CurriculumDropout(gamma=0.0), "not a positive number"),
        (lambda: CurriculumDropout(gamma=math.inf), "not a positive number"),
        (lambda: ByDepth(2.0), "between 0 and 1"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_fractions_need_the_length_of_the_run():
    for schedule in (EarlyDropout(), LateDropout(), CurriculumDropout(), AnnealedDropout(), DropHead()):
        assert needs_total_steps(schedule)
        with pytest.raises(ValueError, match="names a fraction of the run"):
            schedule(1)
    assert not needs_total_steps(AnnealedDropout(until=10))
    assert ByDepth(Linear(0.0, 0.2)).rate == Linear(0.0, 0.2)


def test_the_range_of_a_run_is_that_of_its_steps() -> None:
    assert schedule_range(DropHead(0.2, 0.1), 100) == (0.0, 0.2)  # its turn

    def rises(step: int, total_steps: int | None) -> float:
        return step / 10_000

    assert schedule_range(rises, 10) == (0.0, 9 / 10_000)
    assert schedule_range(rises, 5_001) == (0.0, 5_000 / 10_000)  # of up to a thousand steps, and the last
    assert schedule_range(rises, None) == (0.0, 999 / 10_000)
    assert schedule_range(0.3, 10) == (0.3, 0.3)
    assert schedule_range(lambda step, total: 0.5 * (step == 3), 10) == (0.0, 0.5)  # each of a few steps
    assert schedule_range(lambda step, total: 0.5 * (step == 4_999), 5_000) == (0.0, 0.5)
