"""How much of a layer always stays where a share of all layers is to go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol

__all__ = ["HasFloor", "check_floor", "check_share", "floor_of"]


class HasFloor(Protocol):
    """What asks for a share of zeros, and leaves some of each layer."""

    @property
    def share(self) -> float:
        """The share of zeros."""

    @property
    def floor(self) -> int | float | None:
        """How many of a layer stay, or which share of them."""


def check_floor(who: str, floor: int | float | None) -> None:
    """Refuse what is neither a number of groups nor a share.

    Raises:
        ValueError: it is below 0, or a fraction that is not below 1.
    """
    if floor is not None and (floor < 0 or (isinstance(floor, float) and not floor < 1.0)):
        raise ValueError(
            f"{who}(floor={floor!r}) is out of range; give a number of groups, 0 or more, or a share "
            "below 1.0"
        )


def floor_of(target: HasFloor, count: int, of: Literal["weights", "groups"]) -> int:
    """Return how many of ``count`` stay.

    Where no floor is given, of groups half as many as an even cut would leave: one layer may lose more than
    another, and none becomes a bottleneck. Of weights, one.
    """
    if target.floor is None:
        floor = max(int((1.0 - target.share) / 2 * count), 1) if of == "groups" else 1
    else:
        floor = math.ceil(target.floor * count) if isinstance(target.floor, float) else target.floor
    return min(floor, count)


def check_share(
    who: str,
    target: HasFloor,
    counts: Sequence[int],
    of: Literal["weights", "groups"],
    free: Sequence[int] | None = None,
) -> None:
    """Refuse a share that the floors of layers with these ``counts`` forbid, or factors of 0.

    Args:
        who: asks for it.
        target: the share and the floor.
        counts: how many weights or groups each layer has.
        of: which of the two.
        free: how many of them no strength cuts.

    Raises:
        ValueError: the sentence says how many may be zero.
    """
    free = free or [0] * len(counts)
    floors = [max(floor_of(target, count, of), some) for count, some in zip(counts, free, strict=True)]
    most = sum(counts) - sum(floors)
    if most < math.floor(target.share * sum(counts)):
        factors = f" and {sum(free)} factors of 0" if any(free) else ""
        raise ValueError(
            f"{who} cannot be met: with floor={target.floor}{factors} at most {most} of {sum(counts)} {of} "
            "may be zero; ask for a smaller share, or for a smaller floor (at 0 whole layers may die)"
        )
