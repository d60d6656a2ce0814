"""When, and how strong: schedules for a strength or a dropout rate.

A schedule is a small, picklable, pure function of the optimizer step and the length of the run, so a
resumed run needs no state of its own. Positions (``begin``, ``until``, ``milestones``) are fractions of
the run when they are floats and optimizer steps when they are integers: ``until=0.5`` is half of the run,
``until=500`` is step 500, ``until=1.0`` is the end of the run and ``until=1`` is the second step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

from lightning_reg.tensors.safe_globals import allow_in_checkpoints

if TYPE_CHECKING:
    pass

__all__ = [
    "Position",
    "Schedule",
    "ScheduleLike",
    "check_increasing",
    "check_number",
    "check_position",
    "check_schedule",
    "evaluate",
    "in_steps",
    "needs_total_steps",
]

#: A fraction of the run (``float``) or a number of optimizer steps (``int``).
Position: TypeAlias = "int | float"


class Schedule(ABC):
    """A value as a function of the optimizer step.

    Subclasses are frozen dataclasses and hold no state.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        allow_in_checkpoints(cls)

    @abstractmethod
    def __call__(self, step: int, total_steps: int | None = None) -> float:
        """Return the value at ``step`` of a run of ``total_steps`` optimizer steps.

        Args:
            step: optimizer steps taken so far; 0 before the first.
            total_steps: length of the run; needed where a position is a fraction of it.

        Raises:
            ValueError: a position is a fraction of the run, and ``total_steps`` is None.
        """

    @property
    @abstractmethod
    def positions(self) -> Sequence[Position]:
        """The positions this schedule names, to see whether it needs the run's length."""


#: What a strength or a rate may be: a number, a schedule, or any ``(step, total_steps) -> float``.
ScheduleLike: TypeAlias = "float | Schedule | Callable[[int, int | None], float]"


def needs_total_steps(schedule: ScheduleLike) -> bool:
    """Whether ``schedule`` names a fraction of the run. Plain callables are not asked.

    >>> from lightning_reg import Linear
    >>> needs_total_steps(Linear(0.0, 1.0)), needs_total_steps(Linear(0.0, 1.0, until=100))
    (True, False)
    """
    return isinstance(schedule, Schedule) and any(
        isinstance(position, float) and position != 0.0 for position in schedule.positions
    )


def evaluate(
    schedule: ScheduleLike,
    step: int,
    total_steps: int | None = None,
    *,
    name: str = "strength",
    upper: float = math.inf,
) -> float:
    """Return ``schedule`` at ``step``, checked to be a finite number between 0 and ``upper``.

    Raises:
        ValueError: the value is negative, NaN, infinite or above ``upper``; the sentence names the step.
    """
    given = _call(schedule, step, total_steps) if callable(schedule) else schedule
    value = given
    if type(value) is not float:
        try:
            value = float(value)
        except (TypeError, ValueError):
            value = math.nan
    if not (0.0 <= value <= upper) or value == math.inf:
        limits = "0 or more" if upper == math.inf else f"between 0 and {upper:g}"
        raise ValueError(
            f"the {name} at step {step} is {given!r}, and a {name} is a finite number, {limits}; "
            f"mend {schedule!r}"
        )
    return value


def _call(
    schedule: Schedule | Callable[[int, int | None], float], step: int, total_steps: int | None
) -> float:
    try:
        return schedule(step, total_steps)
    except TypeError as error:
        raise TypeError(
            f"{schedule!r} failed at step {step}; it is called as (step, total_steps), with "
            f"total_steps=None where the run's length is unknown ({error})"
        ) from error


def check_schedule(
    schedule: ScheduleLike,
    total_steps: int | None = None,
    *,
    name: str = "strength",
    upper: float = math.inf,
    samples: int = 10_000,
) -> None:
    """Evaluate ``schedule`` over the run that is about to start, so that a bad value shows before it.

    Every step is looked at in runs up to ``samples`` steps, evenly spaced ones in longer runs, the first
    and the last always.

    Raises:
        TypeError: a class is given in the place of one of its instances.
        ValueError: as :func:`evaluate`, or the run's length is needed and unknown.
    """
    if isinstance(schedule, type):
        given = schedule.__name__
        raise TypeError(f"the {name} is the class {given}; give an instance of it, as in {given}(...)")
    if not callable(schedule):
        evaluate(schedule, 0, total_steps, name=name, upper=upper)
        return
    if needs_total_steps(schedule) and total_steps is None:
        raise ValueError(
            f"{schedule!r} names a fraction of the run, and this run has no known length; set max_steps on "
            "the Trainer, or max_epochs where the DataLoader has a length, give `total_steps=` where there "
            "is one, or name positions in steps (integers)"
        )
    last = total_steps - 1 if total_steps else 0
    stride = max(1, math.ceil(last / samples))
    for step in (*range(0, last, stride), max(last, 0)):
        evaluate(schedule, step, total_steps, name=name, upper=upper)


def in_steps(schedule: Schedule, position: Position, total_steps: int | None) -> float:
    """Return a position of ``schedule`` in optimizer steps, of a run of ``total_steps``."""
    if isinstance(position, int) or position == 0.0:
        return position
    if total_steps is None:
        raise ValueError(
            f"{schedule!r} names a fraction of the run; give `total_steps=`, or name positions in steps "
            "(integers)"
        )
    return position * total_steps


def check_number(owner: str, argument: str, value: float) -> None:
    """Refuse what is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{owner}({argument}={value!r}) is not a finite number; give one")


def check_position(owner: str, argument: str, position: Position) -> None:
    """Refuse what is neither a fraction of the run nor a number of steps."""
    check_number(owner, argument, position)
    if position < 0 or (isinstance(position, float) and position > 1.0):
        raise ValueError(
            f"{owner}({argument}={position}) is outside the run; give a fraction from 0.0 to 1.0 or a "
            "number of steps as an integer"
        )


def check_increasing(owner: str, argument: str, positions: Sequence[Position]) -> None:
    """Refuse positions that are bad, mixed or not increasing."""
    for position in positions:
        check_position(owner, argument, position)
    for left, right in pairwise(positions):
        if type(left) is type(right) and right <= left:
            raise ValueError(f"{owner}({argument}=...) goes from {left} to {right}; give them in order")
