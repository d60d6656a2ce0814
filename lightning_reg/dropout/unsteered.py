"""Randomness that no rate steers: where it was seen, in words."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from lightning_reg.dropout.calls import tensors
from lightning_reg.dropout.generators import Generators
from lightning_reg.dropout.holders import name_of_hidden, perhaps

__all__ = ["LITERAL", "Unsteered"]

#: What the sentence says about a rate that is written in the code, or that no watched number holds.
LITERAL = " with a rate of "


class Unsteered:
    """Collects the dropouts with rates in the code, and the draws that no rate went into.

    Args:
        root: the module that is watched.
        names: the names of its modules, by identity.
    """

    def __init__(self, root: nn.Module, names: dict[int, str]) -> None:
        self.root, self.names = root, names
        self.generators = Generators(root.modules())
        #: whether a number in Python was compared with one that was drawn there
        self.compared_drawn = False
        #: each sentence, and the names of what may hold its rate
        self._literal: dict[str, list[str]] = {}
        self._draws: dict[int, str] = {}

    def literal(self, where: nn.Module | None, name: str, rate: float | None) -> None:
        """A function dropped by a rate that no watched number held."""
        holder = self.root if where is None else where
        path = self._name(holder)
        names = [] if path is None else [f"{path}.{one}" if path else one for one in perhaps(holder, rate)]
        names = names or perhaps(self.root, rate)
        written = "its own" if rate is None else f"{rate:g}"
        self._literal.setdefault(f"{self._place(where)}: {name}{LITERAL}{written} in the code", names)

    def draw(self, where: nn.Module | None, name: str, output: Any) -> None:
        """Something was drawn; :meth:`explained` takes it back."""
        place = f"{self._place(where)}: {name}"
        for tensor in tensors(output):
            if id(tensor) in self._draws:  # of a tensor that is gone
                self._literal.setdefault(self._draws.pop(id(tensor)), [])
            self._draws[id(tensor)] = place

    def explained(self, given: list[Tensor]) -> None:
        """What was drawn met a rate."""
        for tensor in given:
            self._draws.pop(id(tensor), None)

    def passed_on(self, given: list[Tensor], output: Tensor) -> None:
        """``output`` was made of what was drawn."""
        source = next((self._draws.pop(id(t)) for t in given if id(t) in self._draws), None)
        if source is not None:
            self._draws[id(output)] = source

    def said(self, rates: Collection[str] = ()) -> list[str]:
        """The sentences; the names in ``rates`` are known to be of other places."""
        said: list[str] = []
        for text, names in self._literal.items():
            others = [name for name in names if name not in rates]
            said.append(f"{text} (perhaps {', '.join(others)})" if others else text)
        said.extend(dict.fromkeys(self._draws.values()))
        moved = self.generators.moved()
        if moved and not self.compared_drawn:
            said.extend(f"{name} is drawn from" for name in moved)
        return said

    def _name(self, module: nn.Module) -> str | None:
        known = self.names.get(id(module))
        return name_of_hidden(self.root, module) if known is None else known

    def _place(self, where: nn.Module | None) -> str:
        where = self.root if where is None else where
        return f"{self._name(where) or 'the root'} ({type(where).__name__})"
