"""What was seen of one rate."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lightning_reg.dropout.known import Kind

__all__ = ["Seen"]


@dataclass
class Seen:
    """How a rate was seen to act.

    Attributes:
        kind: what is dropped together.
        where: the module whose forward read it.
        rate: the rate of the last watched call.
        kept: values that were not dropped, of ``offered``; both 0 where that cannot be counted.
        offered: values that could have been dropped.
    """

    kind: Kind
    where: nn.Module | None
    rate: float
    kept: int = 0
    offered: int = 0

    def add(self, rate: float, kept: int, offered: int) -> None:
        """Count a call's values; those of another rate are forgotten."""
        if rate != self.rate:
            self.rate, self.kept, self.offered = rate, 0, 0
        self.kept += kept
        self.offered += offered

    @property
    def share(self) -> float | None:
        """The share dropped, or None where it could not be counted."""
        return 1.0 - self.kept / self.offered if self.offered else None
