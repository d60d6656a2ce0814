"""Whether an unknown optimizer steps by ``group["lr"]``, or scales its steps by something else too."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["Twin", "scaled_inside"]

#: Makes a copy of an optimizer and of some of its parameters, which shares nothing with it.
Twin: TypeAlias = Callable[[], tuple[Optimizer, list[nn.Parameter]]]

#: Steps of a run, its learning rate, the size of its weights, and a decay that shows beside its steps.
_STEPS, _RATE, _SIZE, _DECAY = 6, 0.01, 0.5, 0.5
#: How far apart two factors are that count as one, and how far a tensor is from a multiple of another.
_SAME, _MULTIPLE = 0.1, 0.05
#: The rate of a group, and those by which some measure it.
_LEARNING_RATES = frozenset({"lr", "initial_lr", "max_lr", "base_lr"})
#: Entries below which any tensor may be a multiple of another by chance.
_FEW = 4
#: Steps of a longer run, and how much longer than steps 7 to 10 its last four are in a warm-up: 4.5 times
#: where they grow with the number of steps, 3.9 times by a momentum of 0.99.
_LONG, _GROWTH = 40, 4.2

_WEIGHTS = "it scales its steps by the size of the weights"
_RATES = "its steps do not follow the learning rate of its groups"
_OWN_DECAY = "the weight decay of its own shows that it scales its steps by more than the learning rate"
_LAYERS = "it scales the steps of some layers"
_GROWS = "its steps grow from the first on, as in a warm-up inside it"


@torch.no_grad()
def scaled_inside(twin: Twin) -> str | None:
    """Return why a decay by the learning rate would be off; None where it is right, or nothing shows.

    Where the optimizer has a decoupled decay of its own, that one is right. Else its moves are compared for
    weights of two sizes, for two learning rates, for tensors of one shape, and for one of its options twice
    as large, one option after the other.
    """
    factors = list(_of_own_decay(twin))
    if factors:
        return None if all(_is_near(factor, _RATE) for factor in factors) else _OWN_DECAY
    moves = _moves(_run(twin))
    if _is_other(1.0, _moves(_run(twin, size=4 * _SIZE)), moves):
        return _WEIGHTS
    if _is_other(2.0, _moves(_run(twin, rate=2 * _RATE)), moves):
        return _RATES
    if _grows(_run(twin, steps=_LONG)):
        return _GROWS
    made, parameters = twin()
    if not made.state and _differ(made, parameters, moves):
        return _LAYERS
    options = {name: value for group in made.param_groups for name, value in group.items()}
    for name, value in options.items():
        if isinstance(value, float) and value not in (0.0, 1.0) and name not in _LEARNING_RATES:
            with suppress(Exception):  # whatever twice its value may do
                if any(abs(k - 2.0) < 0.01 for k in _times(_moves(_run(twin, twice=name)), moves)):
                    return f"it scales its steps by its option {name}"
    return None


def _of_own_decay(twin: Twin) -> Iterator[float]:
    """By what the optimizer's own decay multiplies λ, at a step of a tensor where it is a decoupled one."""

    def decoupled() -> tuple[Optimizer, list[nn.Parameter]]:
        made, parameters = twin()
        for group in made.param_groups:
            group.update({k: True for k, v in group.items() if "decouple" in k and isinstance(v, bool)})
        return made, parameters

    if not any("weight_decay" in group for group in twin()[0].param_groups):
        return
    plain = _run(decoupled)

    def effects(run: Sequence[Sequence[Tensor]], now: int) -> list[Tensor]:
        others = _moves(plain[now : now + 2])
        return [move - other for move, other in zip(_moves(run[now : now + 2]), others, strict=True)]

    own, once = _run(decoupled, decay=_DECAY), _run(decoupled, decay=_DECAY, until=1)
    at_once, later = (torch.cat(effects(once, now)).norm() for now in (0, 1))
    if later > _SAME * at_once:
        return  # it goes on, in a momentum
    coupled = _run(decoupled, coupled=_DECAY)
    for now in range(_STEPS):
        for weight, effect, in_gradient in zip(
            own[now], effects(own, now), effects(coupled, now), strict=True
        ):
            of_gradient = float((effect - in_gradient).norm()) < _SAME * float(effect.norm())
            for factor in () if of_gradient else _times([effect], [-_DECAY * weight.flatten()]):
                if not _is_near(factor, 1.0):  # independent of the learning rate
                    yield factor


def _grows(seen: Sequence[Sequence[Tensor]]) -> bool:
    moves = [float(torch.cat(_moves(seen[i : i + 2])).norm()) for i in range(_LONG)]
    return 0 < _GROWTH * sum(moves[6:10]) < sum(moves[-4:])


def _differ(made: Optimizer, parameters: Sequence[Tensor], moves: Sequence[Tensor]) -> bool:
    """Whether tensors of one shape and one set of options, with the same gradients, move by multiples."""
    of = {id(parameter): move for parameter, move in zip(parameters, moves, strict=True)}
    alike: dict[Any, list[Tensor]] = {}
    for group in made.param_groups:
        options = repr([(k, v) for k, v in group.items() if k != "params" and k not in _LEARNING_RATES])
        for parameter in group["params"]:
            alike.setdefault((options, parameter.shape), []).append(of[id(parameter)])
    pairs = itertools.chain.from_iterable(map(itertools.pairwise, alike.values()))
    return any(_is_other(1.0, [one], [other]) for one, other in pairs)


def _run(
    twin: Twin,
    *,
    size: float = _SIZE,
    rate: float = _RATE,
    steps: int = _STEPS,
    decay: float = 0.0,
    until: int = _STEPS,
    coupled: float = 0.0,
    twice: str | None = None,
) -> list[list[Tensor]]:
    """The weights after each step, by the same gradients in every run, and ``coupled`` times the weights."""
    torch.default_generator.manual_seed(0)
    made, parameters = twin()
    for group in made.param_groups:
        for name in _LEARNING_RATES & group.keys():
            group[name] = torch.full_like(group[name], rate) if isinstance(group[name], Tensor) else rate
        group.update({name: 2 * group[name] for name in (twice,) if name in group})
    gradients = []
    for parameter in parameters:
        draw = torch.Generator().manual_seed(parameter.numel())  # the same for all of a shape
        weight, gradient = (torch.randn(parameter.shape, generator=draw).to(parameter) for _ in range(2))
        parameter.copy_(weight * size)
        gradients.append(gradient)
    seen = [[parameter.detach().clone().double() for parameter in parameters]]
    for step in range(steps):
        for group in made.param_groups:
            group.update({name: decay * (step < until) for name in ("weight_decay",) if name in group})
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient + coupled * parameter.detach()
        made.step()
        seen.append([parameter.detach().clone().double() for parameter in parameters])
    return seen


def _moves(seen: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [(after - before).flatten() for before, after in zip(seen[0], seen[-1], strict=True)]


def _is_other(factor: float, moves: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether one of ``moves`` is another multiple of that of ``others`` than ``factor``."""
    return any(not _is_near(k, factor) for k in _times(moves, others))


def _times(moves: Sequence[Tensor], others: Sequence[Tensor]) -> Iterator[float]:
    """How many times ``others`` each of ``moves`` is, where it is a multiple."""
    for move, other in zip(moves, others, strict=True):
        k = float(torch.dot(move, other) / torch.dot(other, other))
        if len(move) >= _FEW and float((move - k * other).norm()) < _MULTIPLE * float(move.norm()):
            yield k


def _is_near(factor: float, of: float) -> bool:
    return abs(factor - of) < _SAME * of
