"""The published schedules for a dropout rate, p as a function of the optimizer step t and the run's length T.

Each is a small frozen object like those of :mod:`lightning_reg.schedules.base`, to be given to
``DropoutScheduler``. What each was checked against is in its docstring.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import override

from lightning_reg.schedules.base import Position, Schedule, ScheduleLike, evaluate

__all__ = [
    "AnnealedDropout",
    "ByDepth",
    "CurriculumDropout",
    "DropHead",
    "EarlyDropout",
    "LateDropout",
    "schedule_range",
]


@dataclass(frozen=True)
class _Falling(Schedule):
    """A straight line from ``rate`` to 0 at ``until``, and 0 from there on."""

    rate: float
    until: Position

    def __post_init__(self) -> None:
        _check_rate(self, "rate", self.rate)
        _check_cutoff(self, "until", self.until)

    @override
    def __call__(self, step: int, total_steps: int | None = None) -> float:
        return self.rate * max(0.0, 1.0 - step / _steps(self, self.until, total_steps))

    @property
    @override
    def positions(self) -> Sequence[Position]:
        return (self.until,)


@dataclass(frozen=True)
class EarlyDropout(_Falling):
    r"""Dropout only at first: :math:`p_0 (1 - u/c)` until :math:`u = t/T` reaches :math:`c`, then 0.

    Helps networks that underfit. Checked against the authors' code (``drop_scheduler.py``, mode "early",
    schedule "linear", and the commands of its README): the shape, ``rate=0.1`` and 50 epochs of 300. There
    the ramp is ``linspace(p0, 0, n)`` with both ends included, a slope of 1/(n − 1) instead of 1/n.

    Args:
        rate: :math:`p_0` in [0, 1].
        until: :math:`c`, a fraction of the run (float) or a number of optimizer steps (int).

    Raises:
        ValueError: the rate is not in [0, 1], or ``until`` is outside the run or 0.

    >>> schedule = EarlyDropout(0.1, until=0.5)
    >>> [round(schedule(t, 100), 3) for t in (0, 25, 50, 99)]
    [0.1, 0.05, 0.0, 0.0]

    References:
        Liu et al., *Dropout Reduces Underfitting*, ICML 2023.
    """

    rate: float = 0.1
    until: Position = 50 / 300


@dataclass(frozen=True)
class LateDropout(Schedule):
    r"""Dropout only later: 0 until :math:`u = t/T` reaches :math:`c`, then :math:`p_0`.

    Helps networks that overfit. Checked against the authors' code (``drop_scheduler.py``, mode "late",
    schedule "constant", and the commands of its README): the shape, and 50 epochs of 300. There it is
    applied to stochastic depth at 0.4; ``rate=0.1`` is the default of early dropout.

    Args:
        rate: :math:`p_0` in [0, 1].
        begin: :math:`c`, a fraction of the run (float) or a number of optimizer steps (int).

    Raises:
        ValueError: the rate is not in [0, 1], or ``begin`` is outside the run or 0.

    >>> [LateDropout(0.1, begin=0.5)(t, 100) for t in (0, 49, 50, 99)]
    [0.0, 0.0, 0.1, 0.1]

    References:
        Liu et al., *Dropout Reduces Underfitting*, ICML 2023.
    """

    rate: float = 0.1
    begin: Position = 50 / 300

    def __post_init__(self) -> None:
        _check_rate(self, "rate", self.rate)
        _check_cutoff(self, "begin", self.begin)

    @override
    def __call__(self, step: int, total_steps: int | None = None) -> float:
        return self.rate if step >= _steps(self, self.begin, total_steps) else 0.0

    @property
    @override
    def positions(self) -> Sequence[Position]:
        return (self.begin,)


@dataclass(frozen=True)
class CurriculumDropout(Schedule):
    r"""A rate that rises from 0 and levels off: :math:`\bar p\,(1 - e^{-\gamma t})`.

    The paper writes the probability of keeping, :math:`(1 - \bar\theta) e^{-\gamma t} + \bar\theta`, with
    :math:`\bar p = 1 - \bar\theta`; and proposes :math:`\gamma = 10/T`. The curve is that of the
    authors' code (``_prob`` of ``evaluate_dm.py``), where γ is read from a configuration.

    Args:
        rate: the limit :math:`\bar p` in [0, 1].
        gamma: :math:`\gamma` per optimizer step; None is :math:`10/T`.

    Raises:
        ValueError: the rate is not in [0, 1], or gamma is not a positive number.

    >>> round(CurriculumDropout(0.5)(10, 100), 6)  # 0.5 (1 - 1/e)
    0.31606

    References:
        Morerio et al., *Curriculum Dropout*, ICCV 2017.
    """

    rate: float = 0.5
    gamma: float | None = None

    def __post_init__(self) -> None:
        _check_rate(self, "rate", self.rate)
        if self.gamma is not None and not (0.0 < self.gamma < math.inf):
            raise ValueError(
                f"CurriculumDropout(gamma={self.gamma!r}) is not a positive number; give one, or None "
                "for 10/T"
            )

    @override
    def __call__(self, step: int, total_steps: int | None = None) -> float:
        gamma = 10.0 / _steps(self, 1.0, total_steps) if self.gamma is None else self.gamma
        return -self.rate * math.expm1(-gamma * step)

    @property
    @override
    def positions(self) -> Sequence[Position]:
        return (1.0,) if self.gamma is None else ()


@dataclass(frozen=True)
class AnnealedDropout(_Falling):
    r"""A rate that falls to 0 along a straight line: :math:`p_0 \max(0, 1 - t/N)`.

    The abstract has the rate annealed "from a high initial value to zero over the course of training"; the
    straight line is this library's choice.

    Args:
        rate: :math:`p_0` in [0, 1].
        until: :math:`N`, a fraction of the run (float) or a number of optimizer steps (int).

    Raises:
        ValueError: the rate is not in [0, 1], or ``until`` is outside the run or 0.

    >>> [AnnealedDropout(0.5, until=100)(t) for t in (0, 50, 100, 150)]
    [0.5, 0.25, 0.0, 0.0]

    References:
        Rennie, Goel and Thomas, *Annealed Dropout Training of Deep Networks*, SLT 2014.
    """

    rate: float = 0.5
    until: Position = 1.0


@dataclass(frozen=True)
class DropHead(Schedule):
    r"""A V: from ``start`` down to 0 at the turn, then up to ``end`` at the end of the run.

    :math:`p_s (1 - u/c)` for :math:`u < c`, then :math:`p_e (u - c)/(1 - c)`. DropHead drops whole
    attention heads; on ordinary dropout sites this is the schedule's shape only.
    No code of the authors is known. The V agrees with a third party's scheduler, and the defaults are this
    library's.

    Args:
        start: :math:`p_s` in [0, 1].
        end: :math:`p_e` in [0, 1].
        turn: :math:`c`, a fraction of the run (float) or a number of optimizer steps (int).

    Raises:
        ValueError: a rate is not in [0, 1], or ``turn`` is outside the run or 0.

    >>> [round(DropHead(0.2, 0.2, turn=0.5)(t, 100), 3) for t in (0, 25, 50, 75, 100)]
    [0.2, 0.1, 0.0, 0.1, 0.2]

    References:
        Zhou et al., *Scheduled DropHead: A Regularization Method for Transformer Models*, Findings of
        EMNLP 2020.
    """

    start: float = 0.2
    end: float = 0.2
    turn: Position = 0.5

    def __post_init__(self) -> None:
        _check_rate(self, "start", self.start)
        _check_rate(self, "end", self.end)
        _check_cutoff(self, "turn", self.turn)

    @override
    def __call__(self, step: int, total_steps: int | None = None) -> float:
        turn = _steps(self, self.turn, total_steps)
        if step < turn:
            return self.start * (1.0 - step / turn)
        rest = _steps(self, 1.0, total_steps) - turn
        return self.end * min(1.0, (step - turn) / rest) if rest > 0 else 0.0

    @property
    @override
    def positions(self) -> Sequence[Position]:
        return (self.turn, 1.0)


@dataclass(frozen=True)
class ByDepth:
    r"""Deeper sites drop more: :math:`p_\ell = (\ell/L)\,p_L` for the block :math:`\ell` of :math:`L`.

    A profile over the selected sites, in module order; the deepest has the rate given. Sites of one block
    are at one depth: an entry of the outermost list of modules, or, in a list of equal stages, of the list
    inside. In the paper's words, survival is :math:`1 - (\ell/L)(1 - p_L)` with :math:`p_L` the probability
    of surviving; checked against restatements of its equation 4, not against the paper itself.

    Args:
        rate: :math:`p_L`, a number in [0, 1] or a schedule.

    Raises:
        ValueError: the rate is a number outside [0, 1].

    >>> ByDepth(0.3)
    ByDepth(rate=0.3)

    References:
        Huang et al., *Deep Networks with Stochastic Depth*, ECCV 2016, equation 4.
    """

    rate: ScheduleLike

    def __post_init__(self) -> None:
        if not callable(self.rate):
            evaluate(self.rate, 0, name="dropout rate", upper=1.0)


def schedule_range(schedule: ScheduleLike, total_steps: int | None) -> tuple[float, float]:
    """Return the lowest and the highest rate of a run, of up to a thousand steps of it."""
    if not callable(schedule):
        return float(schedule), float(schedule)
    last = total_steps or 1_000
    steps = {*range(0, last, max(1, last // 1_000)), max(0, last - 1)}
    values = [evaluate(schedule, step, total_steps, name="dropout rate") for step in steps]
    return min(values), max(values)


def _steps(schedule: Schedule, position: Position, total_steps: int | None) -> float:
    if isinstance(position, int):
        return position
    if total_steps is None:
        raise ValueError(
            f"{schedule!r} names a fraction of the run; give `total_steps=`, or name positions in steps "
            "(integers)"
        )
    return position * total_steps


def _check_rate(schedule: Schedule, argument: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise ValueError(
            f"{type(schedule).__name__}({argument}={value!r}) is not a probability; give a number from 0 to 1"
        )


def _check_cutoff(schedule: Schedule, argument: str, position: Position) -> None:
    number = isinstance(position, (int, float)) and not isinstance(position, bool)
    if not number or not 0 < position <= (1.0 if isinstance(position, float) else math.inf):
        raise ValueError(
            f"{type(schedule).__name__}({argument}={position!r}) is not inside the run; give a fraction "
            "above 0.0 and up to 1.0, or a positive number of steps as an integer"
        )
