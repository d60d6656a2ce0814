r"""The metric of an optimizer: how far it moves each weight per unit of gradient.

A proximal step solves :math:`\arg\min_x \tfrac12 \sum_i (x_i - w_i)^2/\eta_i + \Omega(x)`. Its fixed points
minimise loss plus penalty only if :math:`\eta_i` is the step that the optimizer itself takes on weight
:math:`i` per unit of a lasting gradient. With a constant gradient :math:`g`, momentum sums to

- SGD: :math:`\eta = lr\,(1 - d)/(1 - \mu)` (dampening :math:`d`; without momentum :math:`lr`),
  Nesterov :math:`lr\,/(1 - \mu)`;
- Adam, AdamW, NAdam: :math:`lr/(\sqrt{\hat v} + \epsilon)`, ``amsgrad`` with the largest :math:`\hat v`;
- RAdam: :math:`lr\,r_t/(\sqrt{v} + \epsilon)\cdot\sqrt{1-\beta_2^t}`, and :math:`lr` while un-rectified;
- Adagrad: :math:`lr_t/(\sqrt{s} + \epsilon)` with :math:`lr_t = lr/(1 + (t-1)\,lr\_decay)`;
- RMSprop: :math:`lr/((1 - \mu)(\sqrt{v} + \epsilon))`, ``centered`` with :math:`v - \bar g^2`
  (which a full-batch gradient that stays constant, as it does at a penalised solution, drives to 0: measured
  to diverge there, so train with mini-batches or without ``centered``).

Reference: Yun, Lozano and Yang, *Adaptive Proximal Gradient Methods for Structured Neural Networks*,
NeurIPS 2021, for the prox in an adaptive metric; the momentum factors follow from each update in
``torch.optim``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RAdam, RMSprop

from lightning_reg.tensors.precision import wide
from lightning_reg.tensors.shards import is_sharded, local, whole

__all__ = [
    "StepSize",
    "euclidean_step_sizes",
    "has_metric",
    "has_one_step",
    "metric_names",
    "step_size",
    "step_sizes",
]


class StepSize(NamedTuple):
    r"""The step of every weight of a tensor, :math:`\eta = n/(a\sqrt{v - m^2} + \epsilon)`, kept in parts.

    Kept in parts because the whole would be a copy of the tensor; :meth:`on` makes it a piece at a time.

    Attributes:
        numerator: :math:`n`; the whole step where ``second_moment`` is None.
        second_moment: :math:`v`, shaped as the weight, or None for one step for all.
        root_scale: :math:`a`.
        eps: :math:`\epsilon`.
        mean: :math:`m`, shaped as the weight, or None for 0.
    """

    numerator: float
    second_moment: Tensor | None = None
    root_scale: float = 1.0
    eps: float = 0.0
    mean: Tensor | None = None

    @classmethod
    def of(cls, step: float | Tensor) -> StepSize:
        """Return a step given as one number, or as one number for each weight."""
        if isinstance(step, Tensor) and step.dim():
            return cls(1.0, step.reciprocal().square_())
        return cls(float(step))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that :meth:`on` takes pieces of."""
        return tuple(part for part in (self.second_moment, self.mean) if part is not None)

    def on(self, moments: Sequence[Tensor], out: Tensor | None = None, factor: float = 1.0) -> Tensor:
        """Return ``factor`` times the step for a piece, given the same piece of each of :attr:`tensors`."""
        second_moment = moments[0]
        if len(moments) == 2:
            centred = second_moment.addcmul(moments[1], moments[1], value=-1.0).clamp_(min=0.0)
            eta = torch.sqrt(centred, out=out)
        else:
            eta = torch.sqrt(second_moment, out=out)
        # n/(a√x + ε) is (n/a)/(√x + ε/a), with one pass less
        if self.eps:
            eta.add_(self.eps / self.root_scale)
        numerator = torch.tensor(factor * self.numerator / self.root_scale, dtype=torch.float64)
        return torch.div(numerator, eta, out=eta)

    def taking(self, tensors: Sequence[Tensor]) -> StepSize:
        """Return the same with these in the place of :attr:`tensors`."""
        if not tensors:
            return self
        second_moment, mean = (*tensors, None)[:2]
        return self._replace(second_moment=second_moment, mean=mean)

    def wide(self) -> StepSize:
        """Return the same in float32 or wider."""
        return self.taking([wide(tensor) for tensor in self.tensors])

    def local(self) -> StepSize:
        """Return the steps of the weights that this process holds of a sharded tensor."""
        if self.second_moment is None or not is_sharded(self.second_moment):
            return self
        return self.taking([local(tensor) for tensor in self.tensors])

    def whole(self) -> StepSize:
        """Return the steps of all weights of a sharded tensor, gathered."""
        return self.taking([whole(tensor) for tensor in self.tensors])

    def dense(self) -> Tensor | float:
        """Return the step of every weight, shaped as the weight, or the one number."""
        return self.on(self.tensors) if self.tensors else self.numerator


_Group = dict[str, Any]
_States = Sequence[dict[str, Any]]


def _sgd(group: _Group, states: _States) -> list[StepSize]:
    lr, momentum = float(group["lr"]), float(group["momentum"])
    if momentum and not group["nesterov"]:
        lr *= 1.0 - float(group["dampening"])
    return [StepSize(lr / (1.0 - momentum))] * len(states)


def _adam(group: _Group, states: _States) -> list[StepSize]:
    lr, beta2, eps = float(group["lr"]), float(group["betas"][1]), float(group["eps"])
    moment = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
    return [StepSize(lr, s[moment], (1.0 - beta2 ** float(s["step"])) ** -0.5, eps) for s in states]


def _radam(group: _Group, states: _States) -> list[StepSize]:
    return [_radam_of(group, state) for state in states]


def _radam_of(group: _Group, state: dict[str, Any]) -> StepSize:
    lr, step, beta2 = float(group["lr"]), float(state["step"]), float(group["betas"][1])
    correction = 1.0 - beta2**step
    longest = 2.0 / (1.0 - beta2) - 1.0
    length = longest - 2.0 * step * beta2**step / correction
    if length <= 5.0:
        return StepSize(lr)
    rectification = (
        (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length)
    ) ** 0.5
    numerator = lr * rectification * correction**0.5
    return StepSize(numerator, state["exp_avg_sq"], eps=float(group["eps"]))


def _adagrad(group: _Group, states: _States) -> list[StepSize]:
    lr, decay, eps = float(group["lr"]), float(group["lr_decay"]), float(group["eps"])
    return [StepSize(lr / (1.0 + (float(s["step"]) - 1.0) * decay), s["sum"], eps=eps) for s in states]


def _rmsprop(group: _Group, states: _States) -> list[StepSize]:
    lr, eps = float(group["lr"]) / (1.0 - float(group["momentum"])), float(group["eps"])
    return [
        StepSize(lr, s["square_avg"], 1.0, eps, s["grad_avg"] if group["centered"] else None) for s in states
    ]


_Metric = Callable[[_Group, _States], list[StepSize]]
_METRICS: dict[type[Optimizer], _Metric] = {
    SGD: _sgd,
    Adam: _adam,
    AdamW: _adam,
    NAdam: _adam,
    RAdam: _radam,
    Adagrad: _adagrad,
    RMSprop: _rmsprop,
}


def metric_names() -> str:
    """The optimizers whose metric is known, for error messages."""
    return ", ".join(optimizer.__name__ for optimizer in _METRICS)


def has_metric(optimizer: Optimizer) -> bool:
    """Whether this optimizer's metric is known: one of torch's own, or a subclass with the same ``step``."""
    return _metric(type(optimizer)) is not None


def has_one_step(optimizer: Optimizer) -> bool:
    """Whether this optimizer takes the same step on every weight of a group: SGD."""
    return _metric(type(optimizer)) is _sgd


def step_sizes(optimizer: Optimizer, group: _Group, parameters: Sequence[Tensor]) -> list[StepSize]:
    """Return the step that ``optimizer`` takes on each weight per unit of lasting gradient.

    Args:
        optimizer: one for which :func:`has_metric` holds, after its ``step``.
        group: the parameter group of ``optimizer`` that holds the parameters.
        parameters: tensors that have been stepped; there is an answer for each.
    """
    metric = _metric(type(optimizer))
    if metric is None:
        raise TypeError(f"the metric of {type(optimizer).__name__} is not known; it is for {metric_names()}")
    # get: a defaultdict's [] would leave an empty entry in the optimizer's checkpoint
    return metric(group, [optimizer.state.get(parameter, {}) for parameter in parameters])


def step_size(optimizer: Optimizer, group: _Group, parameter: Tensor) -> StepSize:
    """Return the step of one parameter, see :func:`step_sizes`."""
    return step_sizes(optimizer, group, [parameter])[0]


def euclidean_step_sizes(optimizer: Optimizer, group: _Group, parameters: Sequence[Tensor]) -> list[StepSize]:
    """Return the learning rate as the step of every weight."""
    return [StepSize(float(group["lr"]))] * len(parameters)


def _metric(cls: type[Optimizer]) -> _Metric | None:
    return _metric_of(cls, cls.step)  # type: ignore[arg-type]  # a class is hashable


@cache
def _metric_of(cls: type[Optimizer], step: Callable[..., Any]) -> _Metric | None:
    for known in cls.__mro__:
        if known in _METRICS:
            same = inspect.unwrap(step) is inspect.unwrap(known.step)
            return _METRICS[known] if same else None
    return None
