"""One site in a run: what its rate is multiplied by, whose steps it counts, and how it is set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from lightning_reg.dropout.rules import Rule
from lightning_reg.dropout.sites import DropoutSite
from lightning_reg.dropout.steering import release, steer

__all__ = ["Clock", "Steered"]

#: Whose steps a site counts: the number of an optimizer, or None for all of them.
Clock: TypeAlias = "int | None"


@dataclass(eq=False)
class Steered:
    """A site that a schedule steers.

    Attributes:
        site: the site.
        factor: what the schedule's number is multiplied by.
        clock: whose steps it counts.
        rule: the forward with a tensor for a rate, or None for a rate that is a plain number.
        row: the row of the table of rates that ``rule`` reads.
        levels: whether the number is given in a few levels, a graph each.
        others_write: whether somebody else has written the rate, too.
    """

    site: DropoutSite
    factor: float
    clock: Clock
    rule: Rule | None
    row: int
    levels: bool
    others_write: bool = False
    taken: bool = False
    _original: Any = None
    _written: float | None = None
    #: where the module holds the rate, if a plain number can be put there
    _store: dict[str, Any] | None = None

    def take(self, holder: object, rates: list[Tensor]) -> None:
        """Keep what is to be put back, and steer from now on; once more gives another table."""
        site = self.site
        if not self.taken:
            self._original = site._read()
        self.taken = True
        if site.owner is site.module:
            if not site.keeps and type(self._original).__module__ != "numpy":
                self._store = site.module.__dict__
            row = rates[self.row] if self.rule is not None else None
            steer(site.module, site.attribute, holder, rule=self.rule, rates=row)

    def write(self, rate: float) -> None:
        """Set the rate."""
        store, attribute = self._store, self.site.attribute
        if store is not None and store.get(attribute) is self._written:
            store[attribute] = self._written = rate
            return
        self._written = self.site._exchange(self.look(), rate)

    def look(self) -> Any:
        """Notice whether somebody else has written the rate; return what stands there."""
        held = self.site._read()
        if self._written is not None and held != self._written:
            self.others_write = True
        return held

    def put_back(self, holder: object) -> None:
        """Leave the rate and the class as built."""
        if self.taken and self.site.owner is self.site.module:
            release(self.site.module, self.site.attribute, holder)
        elif self.taken:
            self.site._write(self._original)
        self.taken = False
