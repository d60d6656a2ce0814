"""What is steered and what is not, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["DropoutReport", "some"]


@dataclass
class DropoutReport:
    """What became of the selected places.

    Attributes:
        steered: each place with its rate when it was watched, and the share then dropped, where it could be
            counted.
        waiting: places of known classes that no forward has reached.
        unread: numbers that could have been rates, and that no forward was seen to use so.
        named: what is not steered, or not by this alone, and why.
        held: numbers that keep their built rate under ``torch.compile``, as asked for.
        randomness: randomness that no rate steers, as sentences.

    >>> places = [("drop.p", 0.3, 0.29), ("blocks.0.p", 0.1, 0.12), ("blocks.1.p", 0.1, 0.09)]
    >>> print(DropoutReport(steered=places, waiting=["head.p"]))
    steered: drop.p (dropped 0.29 at 0.3), blocks.*.p (2 places, dropped 0.09 to 0.12 at 0.1)
    not reached yet: head.p
    """

    steered: list[tuple[str, float, float | None]] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    named: dict[str, str] = field(default_factory=dict)
    held: list[str] = field(default_factory=list)
    randomness: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every place is steered."""
        literal = any(" with a rate of " in text for text in self.randomness)
        return bool(self.steered or self.held) and not (self.waiting or self.named or literal)

    def __str__(self) -> str:
        lines = [
            ("steered", _steered(self.steered)),
            ("not reached yet", self.waiting),
            ("not steered", [f"{name} ({why})" for name, why in self.named.items()]),
            ("held at the built rate under torch.compile", self.held),
            ("not used as rates", self.unread),
            ("randomness without a rate", self.randomness),
        ]
        return "\n".join(f"{title}: {some(entries, 12)}" for title, entries in lines if entries)


def some(names: Sequence[str], most: int = 6) -> str:
    """List names, and say how many more there are."""
    return f"{', '.join(names[:most])}{f' and {len(names) - most} more' if len(names) > most else ''}"


def _steered(entries: Sequence[tuple[str, float, float | None]]) -> list[str]:
    """A line for the places whose names differ in numbers alone, where they had one rate."""
    alike: dict[tuple[str, str], list[tuple[str, float | None]]] = {}
    for name, rate, share in entries:
        form = ".".join("*" if part.isdigit() else part for part in name.split("."))
        alike.setdefault((form, f"{rate:.3g}"), []).append((name, share))
    lines = []
    for (form, at), places in alike.items():
        shares = sorted({f"{share:.3g}" for _, share in places if share is not None}, key=float)
        dropped = f"dropped {' to '.join(dict.fromkeys([shares[0], shares[-1]]))} " if shares else ""
        name, many = (form, f"{len(places)} places, ") if len(places) > 1 else (places[0][0], "")
        lines.append(f"{name} ({many}{dropped}at {at})")
    return lines
