"""What is known of each optimizer: the steps of its weights, the step of a decay, what would not count."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.apply.optimizers.facts import Facts, Group, learning_rate, register_optimizer, row_of
from lightning_reg.apply.optimizers.recognised import recognised, steps_twice
from lightning_reg.tensors.steps import StepSize

__all__ = [
    "Facts",
    "decay_rates",
    "euclidean_step_sizes",
    "facts_of",
    "has_metric",
    "has_one_step",
    "metric_names",
    "note_steps",
    "register_optimizer",
    "step_size",
    "step_sizes",
]


def facts_of(optimizer: Optimizer, group: Group) -> Facts:
    """Return what is known of ``optimizer`` for one of its groups."""
    kind: Any = type(optimizer)
    row, same = row_of(kind, kind.step)
    if row is not None and same and not steps_twice(kind):
        return row(optimizer, group) if callable(row) else row
    shown = recognised(optimizer, group)
    if row is None or shown != Facts():
        return shown
    return (row(optimizer, group) if callable(row) else row).without_formulas()


def metric_names() -> str:
    """The optimizers of torch whose metric is known, for error messages."""
    return "SGD, Adam, AdamW, NAdam, RAdam, Adagrad, RMSprop, Adamax, Adadelta, ASGD"


def has_metric(optimizer: Optimizer) -> bool:
    """Whether the metric of this optimizer is known, for all its groups."""
    return all(callable(facts_of(optimizer, group).metric) for group in optimizer.param_groups)


def has_one_step(optimizer: Optimizer, groups: Iterable[Group] | None = None) -> bool:
    """Whether it takes the same step on every weight of a tensor of these groups, or of all, as SGD does."""
    return all(facts_of(optimizer, group).uniform for group in groups or optimizer.param_groups)


def step_sizes(optimizer: Optimizer, group: Group, parameters: Sequence[Tensor]) -> list[StepSize]:
    """Return the step that ``optimizer`` takes on each weight per unit of lasting gradient.

    Args:
        optimizer: one for which :func:`has_metric` holds, after its ``step``.
        group: the parameter group of ``optimizer`` that holds the parameters.
        parameters: tensors that have been stepped; there is an answer for each.
    """
    metric = facts_of(optimizer, group).metric
    if not callable(metric):
        raise TypeError(
            f"the metric of {type(optimizer).__name__} is not known: {metric}; it is for {metric_names()}"
        )
    # get: a defaultdict's [] would leave an empty entry in the optimizer's checkpoint
    return metric(group, [optimizer.state.get(parameter, {}) for parameter in parameters], parameters)


def note_steps(optimizer: Optimizer, group: Group, parameters: Sequence[Tensor]) -> None:
    """Note, before the step of ``optimizer``, what :func:`step_sizes` needs and the step changes."""
    note = facts_of(optimizer, group).note
    if note is not None:
        for parameter in parameters:
            note(group, optimizer.state.get(parameter, {}), parameter)


def step_size(optimizer: Optimizer, group: Group, parameter: Tensor) -> StepSize:
    """Return the step of one parameter, see :func:`step_sizes`."""
    return step_sizes(optimizer, group, [parameter])[0]


def euclidean_step_sizes(optimizer: Optimizer, group: Group, parameters: Sequence[Tensor]) -> list[StepSize]:
    """Return the learning rate as the step of every weight."""
    return [StepSize(float(group["lr"]))] * len(parameters)


def decay_rates(optimizer: Optimizer, group: Group, parameters: Sequence[Tensor]) -> list[float]:
    """Return what a decoupled decay multiplies λ by for each tensor, before the optimizer's step."""
    rate = facts_of(optimizer, group).rate
    if not callable(rate):
        raise TypeError(f"apply='decoupled' does not work under {type(optimizer).__name__}: {rate}")
    if rate is learning_rate:
        return [float(group["lr"])] * len(parameters)
    return [rate(group, optimizer.state.get(parameter, {})) for parameter in parameters]
