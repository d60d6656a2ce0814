"""What the functions of this room refuse before anything is trained, each in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_reg.penalties import Penalty
from lightning_reg.select.grammar import called, in_short

__all__ = [
    "check_counts",
    "check_module",
    "check_penalty",
    "check_ranges",
    "check_score",
    "check_trainer",
    "scored",
]


def check_module(module: object, caller: str, *, functions: bool = True) -> None:
    """Refuse what cannot be trained.

    Args:
        module: what was given.
        caller: the function that trains it.
        functions: whether it may be a function that makes a module.

    Raises:
        TypeError: it is no module, or has no ``training_step``.
    """
    if isinstance(module, nn.Module):
        if not callable(getattr(module, "training_step", None)):
            raise TypeError(
                f"{caller} trains a LightningModule, and {type(module).__name__} has no training_step; wrap "
                "it, as in RegularizedRegressor(module, []) or RegularizedClassifier(module, 10, []) for ten "
                "classes"
            )
    elif not (functions and callable(module)):
        hint = f"{module.__name__}(...)" if isinstance(module, type) else "an instance"
        also = ", or a function that makes one" if functions else ""
        raise TypeError(f"{caller} trains a LightningModule, and got {in_short(module)}; give {hint}{also}")


def check_penalty(penalty: object, caller: str) -> None:
    """Refuse what is not one penalty.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(penalty, Penalty):
        return
    inside = getattr(penalty, "penalty", None)
    hint = "give one such as L1(0.0)"
    if isinstance(inside, Penalty):
        hint = f"it holds one: give {inside!r}"
    elif isinstance(penalty, type) and issubclass(penalty, Penalty):
        hint = f"it is the class: give {penalty.__name__}(0.0)"
    elif isinstance(penalty, list | tuple):
        hint = "call it for each, or use compare for several kinds"
    raise TypeError(f"{caller} takes one penalty, and {in_short(penalty)} is none; {hint}")


def check_score(score: object) -> None:
    """Refuse a score that cannot be called.

    Raises:
        TypeError: it is no function.
    """
    if score is not None and not callable(score):
        raise TypeError(
            f"score={score!r} is not a function; give (module, batches) -> number, such as accuracy from "
            "lightning_reg.tune"
        )


def check_trainer(options: object) -> None:
    """Refuse a Trainer where its options belong.

    Raises:
        TypeError: it is no dict.
    """
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(
            f"trainer={in_short(options)} is not a dict of options; each run makes a Trainer of its own, so "
            'give such as trainer={"accelerator": "cpu"}'
        )


def check_counts(least: int = 1, /, **counts: Any) -> None:
    """Refuse what is not a whole number, ``least`` or more.

    Raises:
        TypeError: one of them is no whole number.
        ValueError: one of them is less.
    """
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"{name}={count!r} is not a whole number; give one, {least} or more")
        if count < least:
            raise ValueError(f"{name}={count} is too few; give {least} or more")


def check_ranges(name: str, ranges: Any, *, positive: bool) -> None:
    """Refuse what is not ``{name: (lowest, highest)}``.

    Raises:
        TypeError: it is no dict of pairs.
        ValueError: a pair is no range.
    """
    pairs = ranges.values() if isinstance(ranges, Mapping) else [ranges]
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise TypeError(
            f'{name}={in_short(ranges)} is no dict of ranges; give such as {{"l1": (1e-6, 1e-2)}}'
        )
    for key, (low, high) in ranges.items():
        if not (low > 0.0 if positive else low >= 0.0) or not low < high:
            least = "0 < lowest" if positive else "0 <= lowest"
            raise ValueError(f"{name}[{key!r}]={(low, high)} is no range; give {least} < highest")


def scored(score: Any, module: nn.Module, batches: Any) -> float:
    """Return what the user's score says of a module.

    Raises:
        TypeError: it takes other arguments, or returns no number.
    """
    value = called(score, module, batches, told=score, name="a module", how="score(module, batches)")
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"score={score!r} returned {in_short(value)}, which is not a number") from error
