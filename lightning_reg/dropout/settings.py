"""Settings of steering, and what is refused of them."""

from __future__ import annotations

from typing import Literal, TypeAlias

__all__ = ["Compiled", "RateInEval", "check_settings", "nearest_level"]

#: What to do with rates that are a graph for each value under ``torch.compile``.
Compiled: TypeAlias = Literal["levels", "hold", "refuse"]
#: The rate in evaluation, for dropout that is on in it, too.
RateInEval: TypeAlias = "Literal['built', 'scheduled'] | float"


def check_settings(compile_levels: int, compiled: Compiled, rate_in_eval: RateInEval) -> None:
    """Refuse settings that are not understood.

    Raises:
        ValueError: naming the setting.
    """
    if isinstance(compile_levels, bool) or not isinstance(compile_levels, int) or compile_levels < 1:
        raise ValueError(f"compile_levels={compile_levels!r} is not a number of levels; give 1 or more")
    if compiled not in ("levels", "hold", "refuse"):
        raise ValueError(f"compiled={compiled!r} is not understood; use 'levels', 'hold' or 'refuse'")
    if rate_in_eval in ("built", "scheduled"):
        return
    if isinstance(rate_in_eval, (bool, str)) or not 0.0 <= rate_in_eval <= 1.0:
        raise ValueError(
            f"rate_in_eval={rate_in_eval!r} is not understood; use 'built', 'scheduled' or a rate from 0 to 1"
        )


def nearest_level(number: float, low: float, high: float, levels: int) -> float:
    """Return the nearest of ``levels`` numbers, evenly spaced over the run's range.

    >>> nearest_level(0.33, 0.0, 0.9, 4)
    0.3
    """
    width = high - low
    if width <= 0 or levels == 1:
        return (high + low) / 2
    steps = levels - 1
    return low + round((number - low) / width * steps) * width / steps
