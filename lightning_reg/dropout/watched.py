"""Numbers that are watched: they know which site they came from, and pass that on through arithmetic.

Each has a second value besides its own, what it would be at the rate that is wanted, and arithmetic takes
both along. Everything computes with the number's own value, until it is known to be a rate.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import Any, Protocol

from lightning_reg.dropout.calls import mapped

__all__ = ["Observer", "as_wanted", "is_watched", "plain", "site_of", "wanted", "watched"]

_COMPARISONS = {"__lt__": operator.lt, "__le__": operator.le, "__gt__": operator.gt, "__ge__": operator.ge}
#: What numpy calls the comparisons, with a number on the left and on the right.
_OF_NUMPY = {
    "less": ("__lt__", "__gt__"),
    "less_equal": ("__le__", "__ge__"),
    "greater": ("__gt__", "__lt__"),
    "greater_equal": ("__ge__", "__le__"),
}
_BINARY = ("add", "sub", "mul", "truediv", "pow")
_SITE = "_lightning_reg_site"


class Observer(Protocol):
    """Who is told what becomes of a watched number."""

    def compared(self, site: int, other: object) -> bool:
        """The number was compared in Python with ``other``; whether that makes it a rate."""

    def converted(self, site: int, value: float) -> None:
        """The number was turned into a plain one, ``float(rate)``."""


def watched(value: Any, site: int, observer: Observer, wanted: Any = None) -> Any:
    """Return a number equal to ``value`` that is watched, or None for a type that cannot be.

    Args:
        value: the number.
        site: where it came from.
        observer: who is told what becomes of it.
        wanted: what it would be at the rate wanted; ``value`` by default.

    >>> class Print:
    ...     def compared(self, site, other):
    ...         print(site, other)
    ...         return True
    >>> number = watched(0.5, 3, Print(), wanted=0.9)
    >>> number + 0.0, number < 0.7
    3 0.7
    (0.5, False)
    """
    cls = _class_for(type(value))
    if cls is None:
        return None
    number = cls(value)
    number.__dict__[_SITE] = (site, observer, value, value if wanted is None else wanted)
    return number


def is_watched(value: object) -> bool:
    """Whether ``value`` is a watched number."""
    return type(value) in _made


def site_of(value: Any, observer: Observer) -> int | None:
    """Return the site that a watched number came from, if ``observer`` watches it."""
    held = _held(value)
    return held[0] if held is not None and held[1] is observer else None


def plain(value: Any) -> Any:
    """Return the number that was given to :func:`watched`, or ``value`` itself."""
    held = _held(value)
    return value if held is None else held[2]


def wanted(value: Any) -> Any:
    """Return what a watched number would be at the rate wanted, or ``value`` itself."""
    held = _held(value)
    return value if held is None else held[3]


def as_wanted(rates: list[Any], given: Any) -> Any:
    """Return arguments with the rates wanted for the watched numbers in ``rates``; all else as it is."""
    asked = {id(rate) for rate in rates}
    return mapped(lambda value: wanted(value) if id(value) in asked else value, given)


def _held(value: Any) -> Any:
    """What is known of a watched number, or None."""
    return value.__dict__.get(_SITE) if type(value) in _made else None


_classes: dict[type, type] = {}
_made: set[type] = set()


def _class_for(base: type) -> type | None:
    while base.__module__.startswith("lightning_reg") and issubclass(base, float):
        base = base.__mro__[1]  # a rate that is steered already is a float
    if base not in _classes:
        numpy = sys.modules.get("numpy")
        allowed = () if numpy is None else (numpy.float64, numpy.float32, numpy.float16)
        if base not in (int, float, *allowed):
            return None
        _classes[base] = _make(base)
        _made.add(_classes[base])
    return _classes[base]


def _make(base: Any) -> type:
    body: dict[str, Any] = {"__reduce_ex__": _reduce, "__deepcopy__": lambda self, memo: plain(self)}
    if base in (int, float):
        body["__array_priority__"] = 1e9  # numpy's numbers and arrays leave operators to us, functions not
    else:
        body["__array_ufunc__"] = _by_numpy
        body["item"] = lambda self: _passed_on(self, plain(self).item(), float(wanted(self)))
    body["__float__"] = _to_float(base)
    for name, compare in _COMPARISONS.items():
        body[name] = _comparison(base, name, compare)
    for stem in _BINARY:
        function = getattr(operator, stem)
        body[f"__{stem}__"] = _arithmetic(base, f"__{stem}__", function)
        body[f"__r{stem}__"] = _arithmetic(base, f"__r{stem}__", _swapped(function))
    for function in (operator.neg, operator.pos, operator.abs):
        name = f"__{function.__name__}__"
        body[name] = _unary(base, name, function)
    if base is not int:
        body["__round__"] = _rounded(base)
    return type(f"Watched{base.__name__.capitalize()}", (base,), body)


def _comparison(base: Any, name: str, compare: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        site, observer, value, asked = self.__dict__[_SITE]
        result = compare(value, other) if _is_numpy(other) else getattr(base, name)(self, other)
        if result is not NotImplemented and observer.compared(site, other):
            return compare(asked, other)
        return result

    return method


def _arithmetic(base: Any, name: str, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        value, asked = self.__dict__[_SITE][2:]
        if _is_array(other):
            return function(value, other)
        result = getattr(base, name)(self, other)
        if result is NotImplemented:
            if not (isinstance(other, float) or _is_numpy(other)):
                return result
            result = function(value, plain(other))
        return _passed_on(self, result, result if asked is value else function(asked, wanted(other)))

    return method


def _swapped(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda a, b: function(b, a)


def _unary(base: Any, name: str, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda self: _passed_on(self, getattr(base, name)(self), function(self.__dict__[_SITE][3]))


def _rounded(base: Any) -> Callable[..., Any]:
    def method(self: Any, digits: Any = None) -> Any:
        number = base.__round__(self, digits)
        return _passed_on(self, number, round(self.__dict__[_SITE][3], digits))

    return method


def _by_numpy(self: Any, function: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
    """What a function of numpy's gives for numbers of numpy's that are watched."""
    names = _OF_NUMPY.get(function.__name__)
    if names is not None and method == "__call__" and not kwargs:
        left, right = inputs
        return getattr(left, names[0])(right) if left is self else getattr(self, names[1])(left)
    return getattr(function, method)(*map(plain, inputs), **kwargs)


def _passed_on(self: Any, result: Any, asked: Any) -> Any:
    site, observer = self.__dict__[_SITE][:2]
    number = watched(result, site, observer, asked)
    return result if number is None else number


def _to_float(base: Any) -> Callable[[Any], float]:
    def method(self: Any) -> float:
        site, observer = self.__dict__[_SITE][:2]
        value: float = base.__float__(self)
        observer.converted(site, value)
        return value

    return method


def _reduce(self: Any, protocol: Any) -> Any:
    value = plain(self)
    return value.__reduce_ex__(protocol) if hasattr(value, "built") else (type(value), (value,))


def _is_numpy(value: object) -> bool:
    return type(value).__module__ == "numpy"


def _is_array(value: object) -> bool:
    return type(value).__name__ == "ndarray" and _is_numpy(value)
