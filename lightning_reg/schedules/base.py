"""When, and how strong: schedules for a strength or a dropout rate.

A schedule is a small, picklable, pure function of the optimizer step and the length of the run, so a
resumed run needs no state of its own. Positions (``begin``, ``until``, ``milestones``) are fractions of
the run when they are floats and optimizer steps when they are integers: ``until=0.5`` is half of the run,
``until=500`` is step 500, ``until=1.0`` is the end of the run and ``until=1`` is the second step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

from typing_extensions import override

from lightning_reg.tensors.safe_globals import allow_in_checkpoints

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Constant",
    "Cosine",
    "Exponential",
    "Linear",
    "MultiStep",
    "Piecewise",
    "Polynomial",
    "Schedule",
    "ScheduleLike",
    "check_schedule",
    "evaluate",
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

    def plot(self, total_steps: int = 1000) -> Figure:
        """Draw the schedule over a run, as :func:`lightning_reg.look.plot.schedule`; needs matplotlib."""
        from lightning_reg.look import plot

        return plot.schedule(self, total_steps, label="value")

    @property
    @abstractmethod
    def positions(self) -> Sequence[Position]:
        """The positions this schedule names, to see whether it needs the run's length."""


#: What a strength or a rate may be: a number, a schedule, or any ``(step, total_steps) -> float``.
ScheduleLike: TypeAlias = "float | Schedule | Callable[[int, int | None], float]"


@dataclass(frozen=True)
class Constant(Schedule):
    """The same value throughout.

    >>> Constant(1e-4)(500, 1000)
    0.0001
    """

    value: float

    def __post_init__(self) -> None:
        _check_number("Constant", "value", self.value)

    @override
    def __call__(self, step: int, total_steps: int | None = None) -> float:
        return self.value

    @property
    @override
    def positions(self) -> Sequence[Position]:
        return ()


@dataclass(frozen=True)
class _Ramp(Schedule):
    """From ``start`` to ``end`` between two positions; constant before and after."""

    start: float
    end: float
    begin: Position = 0
    until: Position = 1.0

    def __post_init__(self) -> None:
        name = type(self).__name__
        _check_number(name, "start", self.start)
        _check_number(name, "end", self.end)
        _check_position(name, "begin", self.begin)
        _check_position(name, "until", self.until)
        if type(self.begin) is type(self.until) and self.until <= self.begin:
            raise ValueError(
                f"{name}(begin={self.begin}, until={self.until}) ends before it begins; "
                "give an `until` greater than `begin`"
            )

    @override
    def __call__(self, step: int, total_steps: int | None = None) -> float:
        begin = _in_steps(self, self.begin, total_steps)
        until = _in_steps(self, self.until, total_steps)
        if step <= begin:
            return self.start
        if step >= until:
            return self.end
        return self._between((step - begin) / (until - begin))

    @abstractmethod
    def _between(self, progress: float) -> float:
        """The value at ``progress`` in (0, 1) of the way."""

    @property
    @override
    def positions(self) -> Sequence[Position]:
        return (self.begin, self.until)


@dataclass(frozen=True)
class Linear(_Ramp):
    r"""A straight line: :math:`a + (b - a)\,u` for progress :math:`u` from ``begin`` to ``until``.

    >>> Linear(0.0, 1.0)(25, 100)
    0.25
    >>> Linear(0.0, 1.0, begin=10, until=20)(15)
    0.5
    """

    def _between(self, progress: float) -> float:
        return self.start + (self.end - self.start) * progress


@dataclass(frozen=True)
class Cosine(_Ramp):
    r"""Half a cosine wave: :math:`b + (a - b)(1 + \cos \pi u)/2`.

    >>> round(Cosine(0.0, 0.3)(50, 100), 12)
    0.15

    References:
        Loshchilov and Hutter, *SGDR: Stochastic Gradient Descent with Warm Restarts*, ICLR 2017, eq. 5.
    """

    def _between(self, progress: float) -> float:
        return self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Exponential(_Ramp):
    r"""A straight line on a logarithmic scale: :math:`a\,(b/a)^u`. Both ends are positive.

    >>> round(Exponential(1e-6, 1e-2)(50, 100), 12)
    0.0001
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start <= 0 or self.end <= 0:
            raise ValueError(
                f"Exponential({self.start}, {self.end}) needs two positive ends, since it is a straight "
                "line in the logarithm; use Linear or Polynomial to reach zero"
            )

    def _between(self, progress: float) -> float:
        return self.start * math.pow(self.end / self.start, progress)


@dataclass(frozen=True)
class Polynomial(_Ramp):
    r"""A power curve: :math:`b + (a - b)(1 - u)^p`.

    >>> Polynomial(0.0, 1.0, power=2.0)(50, 100)
    0.75
    """

    power: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_number("Polynomial", "power", self.power)
        if self.power <= 0:
            raise ValueError(f"Polynomial(power={self.power}) needs a positive power")

    def _between(self, progress: float) -> float:
        return self.end + (self.start - self.end) * math.pow(1.0 - progress, self.power)


@dataclass(frozen=True)
class MultiStep(Schedule):
    r"""Multiply by ``gamma`` at each milestone: :math:`v\,\gamma^{k}` after :math:`k` of them.

    >>> MultiStep(1.0, milestones=(100, 200), gamma=0.1)(150)
    0.1
    """

    value: float
    milestones: Sequence[Position]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        _check_number("MultiStep", "value", self.value)
        _check_number("MultiStep", "gamma", self.gamma)
        try:
            object.__setattr__(self, "milestones", tuple(self.milestones))
        except TypeError:
            raise ValueError(
                f"MultiStep(milestones={self.milestones!r}) needs a list of positions, such as [0.5, 0.75]"
            ) from None
        _check_increasing("MultiStep", "milestones", self.milestones)

    @override
    def __call__(self, step: int, total_steps: int | None = None) -> float:
        milestones = sorted(_in_steps(self, m, total_steps) for m in self.milestones)
        return self.value * math.pow(self.gamma, bisect_right(milestones, step))

    @property
    @override
    def positions(self) -> Sequence[Position]:
        return self.milestones


@dataclass(frozen=True)
class Piecewise(Schedule):
    """Straight lines through ``(position, value)`` points; constant before the first and after the last.

    >>> Piecewise([(0.0, 0.0), (0.5, 1.0), (1.0, 0.2)])(25, 100)
    0.5
    """

    points: Sequence[tuple[Position, float]]

    def __post_init__(self) -> None:
        try:
            points = tuple((position, value) for position, value in self.points)
        except (TypeError, ValueError):
            raise ValueError(
                f"Piecewise(points={self.points!r}) needs pairs of a position and a value, such as "
                "[(0.0, 1e-4), (0.5, 1e-3)]"
            ) from None
        if not points:
            raise ValueError("Piecewise(points=[]) needs at least one (position, value) pair")
        object.__setattr__(self, "points", points)
        for _, value in points:
            _check_number("Piecewise", "points", value)
        _check_increasing("Piecewise", "points", [position for position, _ in points])

    @override
    def __call__(self, step: int, total_steps: int | None = None) -> float:
        points = sorted((_in_steps(self, at, total_steps), value) for at, value in self.points)
        if step <= points[0][0]:
            return points[0][1]
        for (left, low), (right, high) in pairwise(points):
            if step < right:
                return low + (high - low) * (step - left) / (right - left)
        return points[-1][1]

    @property
    @override
    def positions(self) -> Sequence[Position]:
        return [position for position, _ in self.points]


def needs_total_steps(schedule: ScheduleLike) -> bool:
    """Whether ``schedule`` names a fraction of the run. Plain callables are not asked.

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
    value = _call(schedule, step, total_steps) if callable(schedule) else schedule
    if type(value) is not float:
        try:
            value = float(value)
        except (TypeError, ValueError):
            value = math.nan
    if not (0.0 <= value <= upper) or value == math.inf:
        limits = "0 or more" if upper == math.inf else f"between 0 and {upper:g}"
        raise ValueError(
            f"the {name} at step {step} is {value}, and a {name} is a finite number, {limits}; "
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


def _in_steps(schedule: Schedule, position: Position, total_steps: int | None) -> float:
    if isinstance(position, int) or position == 0.0:
        return position
    if total_steps is None:
        raise ValueError(
            f"{schedule!r} names a fraction of the run; give `total_steps=`, or name positions in steps "
            "(integers)"
        )
    return position * total_steps


def _check_number(owner: str, argument: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{owner}({argument}={value!r}) is not a finite number; give one")


def _check_position(owner: str, argument: str, position: Position) -> None:
    _check_number(owner, argument, position)
    if position < 0 or (isinstance(position, float) and position > 1.0):
        raise ValueError(
            f"{owner}({argument}={position}) is outside the run; give a fraction from 0.0 to 1.0 or a "
            "number of steps as an integer"
        )


def _check_increasing(owner: str, argument: str, positions: Sequence[Position]) -> None:
    for position in positions:
        _check_position(owner, argument, position)
    for left, right in pairwise(positions):
        if type(left) is type(right) and right <= left:
            raise ValueError(f"{owner}({argument}=...) goes from {left} to {right}; give them in order")
