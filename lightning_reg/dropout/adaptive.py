"""A rate that follows the gap between training and validation."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["GapControl", "GapState"]


@dataclass(frozen=True)
class GapState:
    """The rate, and the direction it is moving in: 1, −1, or 0 at rest."""

    rate: float
    moving: int = 0


@dataclass(frozen=True)
class GapControl:
    """Steps the rate towards a target gap, with hysteresis.

    At rest while the gap is within ``band`` of ``target``; outside of it, a step of ``step`` up (the gap is
    too wide) or down (too narrow) at each look, on until the gap has crossed ``target``.

    Args:
        target: the gap wanted, in the metric's unit.
        band: how far the gap may stray before anything happens.
        step: change of the rate a look.
        low: lowest rate.
        high: highest rate.

    Raises:
        ValueError: a number is not finite or out of order.

    >>> control = GapControl(target=0.1, band=0.05, step=0.1, low=0.0, high=0.5)
    >>> control.next(GapState(0.2), gap=0.3)
    GapState(rate=0.3..., moving=1)
    >>> control.next(GapState(0.2), gap=0.12)
    GapState(rate=0.2, moving=0)
    """

    target: float
    band: float
    step: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.low < self.high <= 1.0:
            raise ValueError(
                f"low={self.low!r} and high={self.high!r} are no range of rates; give 0 <= low < high <= 1"
            )
        if not (0.0 < self.step <= 1.0):
            raise ValueError(f"step={self.step!r} is no change of a rate; give a number above 0, up to 1")
        if not (0.0 <= self.band < float("inf")):
            raise ValueError(f"hysteresis={self.band!r} is not a finite number of 0 or more; give one")
        if not (abs(self.target) < float("inf")):
            raise ValueError(f"target={self.target!r} is not a finite number; give the gap you want")

    def next(self, state: GapState, gap: float) -> GapState:
        """Return the state after one look at ``gap``; a NaN gap changes nothing."""
        error = gap - self.target
        if error != error:
            return state
        side = (error > 0) - (error < 0)
        moving = state.moving
        if side != moving:  # crossed the target, or at rest
            moving = side if abs(error) > self.band else 0
        rate = min(self.high, max(self.low, state.rate + moving * self.step))
        return replace(state, rate=rate, moving=moving)
