"""What a way in tells the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

from torch import nn
from torch.optim import Optimizer

from lightning_reg.apply import Apply, Term

__all__ = ["Host"]


class Host(ABC):
    """What a way in tells the engine: its clock, its optimizers, and where gradients are complete."""

    @abstractmethod
    def step(self) -> int:
        """Optimizer steps taken: the clock of schedules."""

    @abstractmethod
    def optimizers(self) -> Iterable[Optimizer] | None:
        """Those whose tensors count in a value; None where all trainable ones do."""

    def length(self, total_steps: int | None) -> int | None:
        """The run's length in :meth:`step`, of which ``total_steps`` is what was last known."""
        return total_steps

    def toggled(self) -> Mapping[nn.Parameter, bool] | None:
        """Which tensors are trainable, though their ``requires_grad`` is off for the moment."""
        return None

    def acts_inside(self, apply: Apply, optimizer: Optimizer) -> bool:
        """Whether what comes before the update is done in the step, since the host calls nobody before it."""
        return True

    def announces(self) -> bool:
        """Whether the host calls :meth:`Engine.announce` before each step that counts."""
        return False

    def check(self, term: Term, optimizer: Optimizer, said: bool) -> bool:
        """Look once more, before a step; return whether that is enough. ``said``: it makes its gradients."""
        return True

    def look(self, optimizer: Optimizer) -> None:  # noqa: B027 - most hosts have one
        """Look once more, where the gradients of an optimizer's first step are complete."""

    def stepped(self, optimizer: Optimizer) -> None:  # noqa: B027 - most hosts count by themselves
        """A step is over, and was taken."""

    def is_saved(self, name: str) -> bool:
        """Whether the checkpoint that is being loaded has an entry whose name ends so, as far as is known."""
        return True

    def detached(self) -> None:  # noqa: B027 - most hosts leave nothing
        """Leave no trace."""
