"""Numbers drawn outside of torch: was this one drawn, and was anything drawn at all?"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterable
from typing import Any

from torch import nn

__all__ = ["Generators"]

#: How many uniform numbers of each generator are drawn anew, to see whether a number is one of them.
_REPLAYED = 4096


class Generators:
    """Python's and numpy's generators as they are now, those that modules hold included.

    >>> generators = Generators([])
    >>> number = random.random()
    >>> generators.drew(number), generators.drew(0.3)
    (True, False)
    >>> generators.moved()
    ["Python's random"]
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        python = random.Random()
        python.setstate(random.getstate())
        self._then: dict[str, tuple[Any, Any]] = {"Python's random": (random, python)}
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            state = numpy.random.RandomState()
            state.set_state(numpy.random.get_state())
            self._then["numpy.random"] = (numpy.random.mtrand._rand, state)
        kinds = (random.Random,) if numpy is None else _kinds(numpy)
        for module in modules:
            for name, value in module.__dict__.items():
                if isinstance(value, kinds):
                    self._then[f"{type(module).__name__}.{name}"] = (value, copy.deepcopy(value))
        self._drawn: set[float] | None = None

    def drew(self, number: float) -> bool:
        """Whether ``number`` is among the uniform numbers drawn since."""
        if self._drawn is None or number not in self._drawn:
            moved = set(self.moved())
            self._drawn = {
                value
                for name, (_, then) in self._then.items()
                if name in moved
                for value in _uniform(copy.deepcopy(then))
            }
        return number in self._drawn

    def moved(self) -> list[str]:
        """The names of the generators that were drawn from since."""
        return [name for name, (now, then) in self._then.items() if not _equal(_state(now), _state(then))]


def _kinds(numpy: Any) -> tuple[type, ...]:
    return (random.Random, numpy.random.Generator, numpy.random.RandomState)


def _uniform(generator: Any) -> list[float]:
    if isinstance(generator, random.Random):
        return [generator.random() for _ in range(_REPLAYED)]
    values: list[float] = generator.random(_REPLAYED).tolist()
    return values


def _state(generator: Any) -> Any:
    if hasattr(generator, "getstate"):
        return generator.getstate()
    if not hasattr(generator, "get_state"):
        return generator.bit_generator.state
    kind, keys, *position = generator.get_state()
    return (kind, keys.tobytes(), *position)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return isinstance(other, dict) and all(_equal(one[key], other[key]) for key in one)
    if hasattr(one, "tobytes"):
        return bool(one.tobytes() == other.tobytes())
    return bool(one == other)
