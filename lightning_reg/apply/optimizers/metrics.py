r"""The metric of an optimizer: how far it moves each weight per unit of gradient.

A proximal step solves :math:`\arg\min_x \tfrac12 \sum_i (x_i - w_i)^2/\eta_i + \Omega(x)`. Its fixed points
minimise loss plus penalty only if :math:`\eta_i` is the step that the optimizer itself takes on weight
:math:`i` per unit of a lasting gradient. With a constant gradient :math:`g`, momentum sums to

- SGD: :math:`\eta = lr\,(1 - d)/(1 - \mu)` (dampening :math:`d`; without momentum :math:`lr`),
  Nesterov :math:`lr\,/(1 - \mu)`;
- Adam, AdamW, NAdam: :math:`lr/(\sqrt{\hat v} + \epsilon)`, ``amsgrad`` with the largest :math:`\hat v`;
- SparseAdam: :math:`lr\sqrt{1-\beta_2^t}/(\sqrt{v} + \epsilon)`, for the rows that a batch names;
- RAdam: :math:`lr\,r_t/(\sqrt{v} + \epsilon)\cdot\sqrt{1-\beta_2^t}`, and :math:`lr` while un-rectified;
- Adamax: :math:`lr/u` with its infinity norm :math:`u`;
- Adagrad: :math:`lr_t/(\sqrt{s} + \epsilon)` with :math:`lr_t = lr/(1 + (t-1)\,lr\_decay)`;
- Adadelta: :math:`lr\,\sqrt{\Delta + \epsilon}/\sqrt{v + \epsilon}` with :math:`\Delta` as it was before the
  step, which follows from what it is after, :math:`\Delta' = \rho\Delta + (1-\rho)\delta^2` and
  :math:`\delta^2 = (\Delta + \epsilon)\,g^2/(v + \epsilon)`;
- RMSprop: :math:`lr/((1 - \mu)(\sqrt{v} + \epsilon))`, ``centered`` with :math:`v - \bar g^2`
  (which a full-batch gradient that stays constant, as it does at a penalized solution, drives to 0: measured
  to diverge there, so train with mini-batches or without ``centered``);
- ASGD: its :math:`\eta_t = lr/(1 + \lambda\,lr\,(t-1))^\alpha` with the learning rate of the step before,
  noted before the step, after which its state holds the next one;
- LAMB: Adam's times its trust ratio, where the state holds it;
- AdaBelief: Adam's with the variance of the gradient in the place of :math:`v`, rectified as RAdam's.

Reference: Yun, Lozano and Yang, *Adaptive Proximal Gradient Methods for Structured Neural Networks*,
NeurIPS 2021, for the prox in an adaptive metric; the momentum factors follow from each update in
``torch.optim``.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_reg.apply.optimizers.facts import Group, Metric, State
from lightning_reg.tensors.steps import StepSize

__all__ = [
    "adabelief",
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "asgd",
    "lamb",
    "lamb_as_published",
    "note_asgd",
    "radam",
    "rmsprop",
    "rmsprop_tf",
    "sgd",
    "sparse_adam",
]


def _each(one: Callable[..., StepSize], **options: object) -> Metric:
    """The metric of all tensors from that of one."""
    of_one = partial(one, **options)

    def of_all(group: Group, states: Sequence[State], parameters: Sequence[Tensor]) -> list[StepSize]:
        return [of_one(group, *pair) for pair in zip(states, parameters, strict=True)]

    return of_all


def sgd(group: Group, states: Sequence[State], parameters: Sequence[Tensor]) -> list[StepSize]:
    """Return the steps of SGD with momentum."""
    lr, momentum = float(group["lr"]), float(group["momentum"])
    if momentum and not group["nesterov"]:
        lr *= 1.0 - float(group["dampening"])
    return [StepSize(lr / (1.0 - momentum))] * len(states)


def _adam(group: Group, state: State, parameter: Tensor) -> StepSize:
    moment = state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"]
    correction = 1.0 - float(group["betas"][1]) ** _step(group, state)
    return StepSize(float(group["lr"]), moment, correction**-0.5, float(group["eps"]))


def _sparse_adam(group: Group, state: State, parameter: Tensor) -> StepSize:
    correction = 1.0 - float(group["betas"][1]) ** _step(group, state)
    return StepSize(float(group["lr"]) * correction**0.5, state["exp_avg_sq"], eps=float(group["eps"]))


def _radam(group: Group, state: State, parameter: Tensor) -> StepSize:
    factor = _rectification(_step(group, state), float(group["betas"][1]), longer_than=5.0)
    if factor is None:
        return StepSize(float(group["lr"]))
    return StepSize(float(group["lr"]) * factor, state["exp_avg_sq"], eps=float(group["eps"]))


def _rectification(step: float, beta2: float, longer_than: float) -> float | None:
    """RAdam's factor of ``lr/(√v + ε)``, or None while it steps as SGD does."""
    correction = 1.0 - beta2**step
    longest = 2.0 / (1.0 - beta2) - 1.0
    length = longest - 2.0 * step * beta2**step / correction
    if length <= longer_than:
        return None
    squared = (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length)
    return float((squared * correction) ** 0.5)


def _adabelief(group: Group, state: State, parameter: Tensor) -> StepSize:
    lr, beta2, step = float(group["lr"]), float(group["betas"][1]), _step(group, state)
    moment = state["max_exp_avg_var" if group.get("amsgrad", group.get("ams_bound")) else "exp_avg_var"]
    if not group.get("rectify"):
        return StepSize(lr, moment, (1.0 - beta2**step) ** -0.5, float(group["eps"]))
    factor = _rectification(step, beta2, longer_than=4.999999999)
    if factor is None:
        return StepSize(lr if group.get("degenerated_to_sgd", True) else 0.0)
    return StepSize(lr * factor, state["exp_avg_var"], eps=float(group["eps"]))


def _adamax(group: Group, state: State, parameter: Tensor) -> StepSize:
    return StepSize(float(group["lr"]), state["exp_inf"].square())


def _adagrad(group: Group, state: State, parameter: Tensor) -> StepSize:
    decay = 1.0 + (_step(group, state) - 1.0) * float(group["lr_decay"])
    return StepSize(float(group["lr"]) / decay, state["sum"], eps=float(group["eps"]))


def _adadelta(group: Group, state: State, parameter: Tensor) -> StepSize:
    rho, eps = float(group["rho"]), float(group["eps"])
    gradient = parameter.grad
    assert gradient is not None
    if group["weight_decay"]:
        sign = -1.0 if group["maximize"] else 1.0
        gradient = gradient.add(parameter, alpha=sign * group["weight_decay"])
    moment = state["square_avg"] + eps
    share = gradient.square().div_(moment).mul_(1.0 - rho)
    before = state["acc_delta"].sub(share, alpha=eps).div_(share.add_(rho)).clamp_(min=0.0)
    return StepSize(float(group["lr"]), moment.div_(before.add_(eps)))


def _rmsprop(group: Group, state: State, parameter: Tensor, *, inside: bool = False) -> StepSize:
    lr, eps = float(group["lr"]) / (1.0 - float(group["momentum"])), float(group["eps"])
    mean = state["grad_avg"] if group["centered"] else None
    if inside:  # ε under the root
        return StepSize(lr, state["square_avg"] + eps, 1.0, 0.0, mean)
    return StepSize(lr, state["square_avg"], 1.0, eps, mean)


def _lamb(group: Group, state: State, parameter: Tensor, *, debias: bool) -> StepSize:
    lr = float(group["lr"]) * float(state["trust_ratio"])
    if debias:
        lr *= (1.0 - float(group["betas"][1]) ** _step(group, state)) ** 0.5
    return StepSize(lr, state["exp_avg_sq"], eps=float(group["eps"]))


#: Of ASGD, by tensor: how many steps had been taken before the last one, and the size of that.
_ETAS: MutableMapping[Tensor, tuple[float, float]] = WeakTensorKeyDictionary()


def note_asgd(group: Group, state: State, parameter: Tensor) -> None:
    """Note the size of the step that is about to be taken."""
    coming = (_step(group, state), float(state["eta"])) if "eta" in state else (0.0, float(group["lr"]))
    _ETAS[parameter] = coming


def _asgd(group: Group, state: State, parameter: Tensor) -> StepSize:
    step = _step(group, state)
    before, eta = _ETAS.get(parameter, (-1.0, 0.0))
    if step != before + 1.0:
        lr = float(group["lr"])
        eta = lr / (1.0 + float(group["lambd"]) * lr * (step - 1.0)) ** float(group["alpha"])
    return StepSize(float(torch.tensor(eta, dtype=state["eta"].dtype)))  # rounded as the optimizer's was


def _step(group: Group, state: State) -> float:
    """How many steps it has taken; some optimizers count them by group."""
    return float(state["step"] if "step" in state else group["step"])


adam = _each(_adam)
sparse_adam = _each(_sparse_adam)
radam = _each(_radam)
adamax = _each(_adamax)
adagrad = _each(_adagrad)
adadelta = _each(_adadelta)
rmsprop = _each(_rmsprop)
rmsprop_tf = _each(_rmsprop, inside=True)
asgd = _each(_asgd)
adabelief = _each(_adabelief)
lamb = _each(_lamb, debias=True)
lamb_as_published = _each(_lamb, debias=False)
