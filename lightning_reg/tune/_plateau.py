"""The learning rate of a point in batches, halved where noise keeps a measure from falling."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch.optim import Optimizer

__all__ = ["HALVINGS", "Plateau"]

#: Halvings after which no more is to be had, where nothing else ends a point.
HALVINGS = 7


@dataclass
class Plateau:
    """Looks at a measure after each epoch.

    Args:
        progress: the share of the lowest before by which it must have fallen to count as progress.
        wait: looks without progress, after which the learning rate is halved.

    Attributes:
        halvings: of the learning rate, so far.
    """

    progress: float
    wait: int
    halvings: int = field(default=0, init=False)
    _reached: float = field(default=float("inf"), init=False)
    _looks: int = field(default=0, init=False)

    def look_(self, measure: float, optimizer: Optimizer) -> None:
        """Halve the learning rate after ``wait`` looks without progress."""
        self._looks += 1
        if self._reached == float("inf") or self._reached - measure > self.progress * abs(self._reached):
            self._reached, self._looks = measure, 0
        elif self._looks >= self.wait:
            self._looks = 0
            self.halvings += 1
            for group in optimizer.param_groups:
                group["lr"] = 0.5 * group["lr"]
