"""What has to be known of an optimizer: an open registry, one row for each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeAlias

from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.tensors.steps import StepSize

__all__ = ["Facts", "Group", "State", "add_row", "learning_rate", "register_optimizer", "row_of"]

#: A parameter group of an optimizer, and what the optimizer keeps of a parameter.
Group: TypeAlias = dict[str, Any]
State: TypeAlias = dict[str, Any]
#: The steps of the tensors given, after the optimizer's step; each with its state.
Metric: TypeAlias = Callable[[Group, Sequence[State], Sequence[Tensor]], list[StepSize]]
Note: TypeAlias = Callable[[Group, State, Tensor], None]
#: What λ is multiplied by in a decoupled decay of one tensor, before the optimizer's step.
Rate: TypeAlias = Callable[[Group, State], float]


def learning_rate(group: Group, state: State) -> float:
    """Return the learning rate of a group."""
    return float(group["lr"])


@dataclass(frozen=True)
class Facts:
    """What is known of an optimizer, or of one of its groups; a text is the reason why something is not.

    Attributes:
        metric: the step of each weight per unit of a lasting gradient.
        uniform: whether all weights of a tensor have the same step.
        rate: the factor of a decoupled decay.
        placed: why weights that are changed after its step would not stay so; None where they do.
        gradient: why a gradient added before its step would not count; None where it does.
        loss: why a term of the loss would not count; None where it does.
        instead: what to do where a mode is refused, if it is not another mode.
        note: notes of a tensor, before the step, what the metric needs and the step changes.
    """

    metric: Metric | str = "its step for each weight is not known"
    uniform: bool = False
    rate: Rate | str = learning_rate
    placed: str | None = None
    gradient: str | None = None
    loss: str | None = None
    instead: str | None = None
    note: Note | None = None

    def without_formulas(self) -> Facts:
        """Return what holds of a subclass with a ``step`` of its own."""
        metric = Facts.metric if callable(self.metric) else self.metric
        return replace(self, metric=metric, uniform=False, note=None)


#: The facts, or how they follow from the options of an optimizer and of a group of it.
Row: TypeAlias = Facts | Callable[[Optimizer, Group], Facts]

#: By class, or by name: of the package and of the class, whatever module of the package holds it.
_ROWS: dict[type[Optimizer] | str, Row] = {}


def add_row(name: type[Optimizer] | str, row: Row) -> None:
    """Make a row of the registry, or put another in its place."""
    _ROWS[name if isinstance(name, type) else _name(*name.rsplit(".", 1))] = row
    row_of.cache_clear()


def register_optimizer(
    optimizer: type[Optimizer] | str,
    *,
    metric: Callable[[Group, State], float | Tensor] | None = None,
    rate: Callable[[Group, State], float] | None = None,
) -> None:
    r"""Tell how an optimizer steps, so that ``"proximal"`` and ``"decoupled"`` are right under it.

    Subclasses that keep its ``step`` are known with it.

    Args:
        optimizer: the class, or ``"package.Class"``, which is then not imported.
        metric: ``(group, state) -> step``, called after a step with the parameter group and the state of one
            parameter: the step :math:`\eta` that it takes on each weight per unit of a gradient that lasts,
            a number or a tensor shaped as the weight. Without it ``apply="proximal"`` is refused.
        rate: ``(group, state) -> number``, called before a step: what ``apply="decoupled"`` multiplies λ by.
            Without it ``group["lr"]``.

    Raises:
        TypeError: something else than a class of optimizers or a name.
        ValueError: a name without its package.

    >>> import torch
    >>> from lightning_reg import L1, attach, register_optimizer
    >>> class SignlessSGD(torch.optim.SGD):
    ...     def step(self, closure=None):
    ...         return super().step(closure)
    >>> register_optimizer(SignlessSGD, metric=lambda group, state: group["lr"])
    >>> model = torch.nn.Linear(3, 1)
    >>> handle = attach(model, SignlessSGD(model.parameters(), lr=0.1), L1(0.1), apply="proximal")
    """
    is_class = isinstance(optimizer, type) and issubclass(optimizer, Optimizer)
    if not is_class and not isinstance(optimizer, str):
        raise TypeError(
            f"{optimizer!r} is not a class of optimizers; give one, such as torch.optim.Adam, or "
            "'package.Class'"
        )
    if isinstance(optimizer, str) and "." not in optimizer:
        raise ValueError(f"{optimizer!r} does not say whose it is; give 'package.Class'")
    facts = Facts(rate=rate or learning_rate)
    if metric is not None:
        of_one = metric

        def of_all(group: Group, states: Sequence[State], parameters: Sequence[Tensor]) -> list[StepSize]:
            return [StepSize.of(of_one(group, state)) for state in states]

        facts = replace(facts, metric=of_all)
    add_row(optimizer, facts)


@cache
def row_of(cls: type[Optimizer], step: Callable[..., Any]) -> tuple[Row | None, bool]:
    """Return the row of the class or of its nearest base with one, and whether it steps as that does."""
    known: Any
    for known in cls.__mro__:
        row = _ROWS.get(known) or _ROWS.get(_name(known.__module__, known.__qualname__))
        if row is not None:
            return row, inspect.unwrap(step) is inspect.unwrap(known.step)
    return None, False


def _name(module: str, name: str) -> str:
    return f"{module.partition('.')[0]}.{name}"
