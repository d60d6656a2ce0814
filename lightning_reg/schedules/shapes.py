"""The schedules: constants, ramps and steps; each a frozen dataclass."""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from typing_extensions import override

from lightning_reg.schedules.base import (
    Position,
    Schedule,
    check_increasing,
    check_number,
    check_position,
    in_steps,
)

__all__ = ["Constant", "Cosine", "Exponential", "Linear", "MultiStep", "Piecewise", "Polynomial"]


@dataclass(frozen=True)
class Constant(Schedule):
    """The same value throughout.

    >>> Constant(1e-4)(500, 1000)
    0.0001
    """

    value: float

    def __post_init__(self) -> None:
        check_number("Constant", "value", self.value)

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
        check_number(name, "start", self.start)
        check_number(name, "end", self.end)
        check_position(name, "begin", self.begin)
        check_position(name, "until", self.until)
        if type(self.begin) is type(self.until) and self.until <= self.begin:
            raise ValueError(
                f"{name}(begin={self.begin}, until={self.until}) ends before it begins; "
                "give an `until` greater than `begin`"
            )

    @override
    def __call__(self, step: int, total_steps: int | None = None) -> float:
        begin = in_steps(self, self.begin, total_steps)
        until = in_steps(self, self.until, total_steps)
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
        check_number("Polynomial", "power", self.power)
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
        check_number("MultiStep", "value", self.value)
        check_number("MultiStep", "gamma", self.gamma)
        try:
            object.__setattr__(self, "milestones", tuple(self.milestones))
        except TypeError:
            raise ValueError(
                f"MultiStep(milestones={self.milestones!r}) needs a list of positions, such as [0.5, 0.75]"
            ) from None
        check_increasing("MultiStep", "milestones", self.milestones)

    @override
    def __call__(self, step: int, total_steps: int | None = None) -> float:
        milestones = sorted(in_steps(self, m, total_steps) for m in self.milestones)
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
            check_number("Piecewise", "points", value)
        check_increasing("Piecewise", "points", [position for position, _ in points])

    @override
    def __call__(self, step: int, total_steps: int | None = None) -> float:
        points = sorted((in_steps(self, at, total_steps), value) for at, value in self.points)
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
