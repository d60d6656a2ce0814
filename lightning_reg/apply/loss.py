"""``apply="loss"``: add the term to what ``training_step`` returns."""

from __future__ import annotations

import copy
from collections.abc import Callable, MutableMapping
from typing import Any

from torch import Tensor, nn

from lightning_reg.apply.replaced import Replaced

__all__ = ["add_to_training_step", "remove_from_training_step"]

#: A penalty's value at this moment, given the loss that it is added to.
Value = Callable[[Tensor], Tensor]


class _TrainingStep(Replaced[Value]):
    """A module's ``training_step`` with terms added to the loss it returns."""

    name = "training_step"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.__wrapped__(*args, **kwargs)
        if isinstance(output, Tensor):
            loss = output
            for value in self.users:
                output = output + value(loss)
        elif isinstance(output, MutableMapping) and isinstance(output.get("loss"), Tensor):
            output = copy.copy(output)
            loss = output["loss"]
            for value in self.users:
                output["loss"] = output["loss"] + value(loss)
        return output  # None, which asks Lightning to skip the batch, stays None


def add_to_training_step(module: nn.Module, value: Value) -> None:
    """Make ``module.training_step`` add ``value(loss)`` to its loss, until it is removed again."""
    _TrainingStep.add(module, value)


def remove_from_training_step(module: nn.Module, value: Value) -> None:
    """Undo :func:`add_to_training_step`; the last one leaves the module as it was."""
    _TrainingStep.remove(module, value)
