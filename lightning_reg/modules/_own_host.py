"""What a module that carries penalties knows of the run."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.hosts.host import Host
from lightning_reg.hosts.lightning_host import LightningHost

__all__ = ["NoRun", "OwnHost", "check_init", "counted_once", "warn_of_bare_loss"]


class NoRun(Host):
    """No Trainer yet."""

    def step(self) -> int:
        return 0

    def optimizers(self) -> None:
        return None


class OwnHost(LightningHost):
    """The run that fits the module, which may also step optimizers that Lightning does not see."""

    def optimizers(self) -> list[Optimizer] | None:
        """Those in sight; None for the loss, which trains what others step as well."""
        if getattr(self.module, "apply_penalties", "loss") == "loss":
            return None
        return super().optimizers()


def check_init(module: Any) -> None:
    """Refuse a module that was made without its base class's ``__init__``."""
    if "penalties" not in vars(module):
        raise TypeError(
            f"{type(module).__name__}.__init__ leaves out RegularizedModule's; call "
            "super().__init__(penalties) there"
        )


def warn_of_bare_loss(module: Any, through_loss: Sequence[object]) -> None:
    """Say that no loss of the run has been regularized, where something acts through it."""
    if acting := [*through_loss, *module.forward_penalties]:
        warnings.warn(
            f"{type(module).__name__}.training_step returns its loss without {acting[0]!r}, which has not "
            "acted; end it with return self.regularize(loss), or write it as task_loss",
            stacklevel=2,
        )


def counted_once(module: Any, total: Tensor) -> Tensor:
    """Return the total of a module's penalties; it warns, in a backward pass, if they act beside the loss."""
    if module.apply_penalties != "loss" and total.requires_grad and module._trainer is not None:

        def warn(_: Tensor) -> None:
            warnings.warn(
                f"{type(module).__name__}.penalty() is a part of the loss, and apply="
                f"{module.apply_penalties!r} acts beside it, so that the penalties count twice; leave it out "
                "of the loss, or use apply='loss'",
                stacklevel=2,
            )

        total.register_hook(warn)  # type: ignore[no-untyped-call]
    return total
