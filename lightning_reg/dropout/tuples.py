"""A module's tuple as a list: writing an entry gives the module another tuple."""

from __future__ import annotations

import weakref
from collections.abc import MutableSequence
from typing import Any

from torch import nn

__all__ = ["tuple_of"]


class _Tuple(MutableSequence[Any]):
    """The entries of the tuple that is an attribute of a module at the moment."""

    def __init__(self, module: nn.Module, attribute: str) -> None:
        self._module = weakref.ref(module)
        self._attribute = attribute

    def _entries(self) -> tuple[Any, ...]:
        module = self._module()
        return () if module is None else tuple(module.__dict__.get(self._attribute, ()))

    def __len__(self) -> int:
        return len(self._entries())

    def __getitem__(self, index: Any) -> Any:
        return self._entries()[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        entries = list(self._entries())
        entries[index] = value
        module = self._module()
        if module is not None:
            module.__dict__[self._attribute] = tuple(entries)

    def __delitem__(self, index: Any) -> None:
        raise TypeError("a tuple keeps its length")

    def insert(self, index: int, value: Any) -> None:
        """Refuse: a tuple keeps its length."""
        raise TypeError("a tuple keeps its length")


_views: weakref.WeakKeyDictionary[nn.Module, dict[str, _Tuple]] = weakref.WeakKeyDictionary()


def tuple_of(module: nn.Module, attribute: str) -> _Tuple:
    """Return the view of one attribute, the same one each time.

    >>> net = nn.Module()
    >>> net.drops = (0.1, 0.2)
    >>> tuple_of(net, "drops")[1] = 0.5
    >>> net.drops, tuple_of(net, "drops") is tuple_of(net, "drops")
    ((0.1, 0.5), True)
    """
    return _views.setdefault(module, {}).setdefault(attribute, _Tuple(module, attribute))
