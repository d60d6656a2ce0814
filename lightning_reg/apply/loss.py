"""``apply="loss"``: add the term to what ``training_step`` returns."""

from __future__ import annotations

import copy
from collections.abc import Callable, MutableMapping
from typing import Any

from torch import Tensor, nn

__all__ = ["add_to_training_step", "remove_from_training_step"]

#: A penalty's value at this moment, given the loss that it is added to.
Value = Callable[[Tensor], Tensor]


class _TrainingStep:
    """A module's ``training_step`` with terms added to the loss it returns.

    One object serves all the terms on a module, so that they can be taken away in any order. A copy or
    pickle of the module holds the original method.
    """

    def __init__(self, module: nn.Module) -> None:
        self.shadowed = "training_step" in vars(module)
        self.__wrapped__: Callable[..., Any] = module.training_step  # type: ignore[assignment]
        self.terms: list[Value] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.__wrapped__(*args, **kwargs)
        if isinstance(output, Tensor):
            loss = output
            for value in self.terms:
                output = output + value(loss)
        elif isinstance(output, MutableMapping) and isinstance(output.get("loss"), Tensor):
            output = copy.copy(output)
            loss = output["loss"]
            for value in self.terms:
                output["loss"] = output["loss"] + value(loss)
        return output  # None, which asks Lightning to skip the batch, stays None

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.__wrapped__, memo)

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self.__wrapped__,)


def _itself(method: Callable[..., Any]) -> Callable[..., Any]:
    return method


def add_to_training_step(module: nn.Module, value: Value) -> None:
    """Make ``module.training_step`` add ``value(loss)`` to its loss, until it is removed again."""
    step = vars(module).get("training_step")
    if not isinstance(step, _TrainingStep):
        step = _TrainingStep(module)
        object.__setattr__(module, "training_step", step)
    step.terms.append(value)


def remove_from_training_step(module: nn.Module, value: Value) -> None:
    """Undo :func:`add_to_training_step`; the last one leaves the module as it was."""
    attribute = vars(module).get("training_step")
    step = attribute
    while step is not None and not isinstance(step, _TrainingStep):  # wrapped by someone else since
        step = getattr(step, "__wrapped__", None)
    if not isinstance(step, _TrainingStep) or value not in step.terms:
        return
    step.terms.remove(value)
    outermost = attribute is step
    if outermost and not step.terms:
        if step.shadowed:
            object.__setattr__(module, "training_step", step.__wrapped__)
        else:
            object.__delattr__(module, "training_step")
