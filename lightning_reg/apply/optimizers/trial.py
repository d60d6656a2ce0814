"""What an optimizer that nobody has told of does with a weight, seen in a few steps of a copy."""

from __future__ import annotations

import copy
import io
import random
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_reg.apply.optimizers.facts import Facts, learning_rate
from lightning_reg.apply.optimizers.scales import scaled_inside
from lightning_reg.tensors.precision import wide

__all__ = ["tried"]

#: Steps of a trial; before which of them the weights are pushed; the learning rate: a warm-up starts at 0.
_STEPS, _AT, _RATE = 24, 4, 0.01
#: Entries that are copied at most, those of each dimension where a corner is enough, and a size of weights
#: beyond which nothing is concluded.
_ENTRIES, _CORNER, _FAR = 2**18, 8, 1e4

_ELSEWHERE = "it keeps the weights elsewhere too, and takes back what is changed in them"
_SOMETIMES = "it moves the weights at some of its steps only, and a decay would act at each"


#: What the trial of an optimizer has shown: facts that replace the ones which say nothing.
_SHOWN: WeakKeyDictionary[Optimizer, dict[str, Any]] = WeakKeyDictionary()


def tried(optimizer: Optimizer, facts: Facts) -> Facts:
    """Return ``facts``, and what a trial shows, where they say nothing of how the optimizer steps.

    A copy of it takes a few steps with small copies of the parameters, and another one the same steps, but
    that the weights are pushed on the way; then come short runs that show whether the learning rate alone is
    the size of its steps. One that cannot be copied or stepped so shows nothing. An optimizer is tried once,
    whatever its groups and however many terms ask.
    """
    if facts.metric != Facts.metric or facts.placed is not None:
        return facts
    if optimizer not in _SHOWN:
        _SHOWN[optimizer] = _try(optimizer)
    shown = _SHOWN[optimizer]
    if "placed" not in shown and facts.rate is not learning_rate:
        return facts  # somebody has told of its rate
    return replace(facts, **shown)


def _try(optimizer: Optimizer) -> dict[str, Any]:
    with suppress(Exception), _unseen():  # whatever the code of others raises
        plain, push = _run(optimizer, pushed=False)
        moved, _ = _run(optimizer, pushed=True)
        if any(not bool(run[-1].abs().max() < _FAR) for run in (plain, moved)):
            return {}
        left = torch.dot(moved[-1] - plain[-1], push) / torch.dot(push, push)
        if float(left) < 0.25:
            return {"metric": _ELSEWHERE, "rate": _ELSEWHERE, "placed": _ELSEWHERE}
        moves = [not torch.equal(before, after) for before, after in pairwise(plain)]
        still = moves[moves.index(True) :].count(False) if any(moves) else 0
        if still >= _STEPS / 3:
            return {"rate": _SOMETIMES}
        scaled = scaled_inside(partial(_twin, optimizer, cut=True))
        return {} if scaled is None else {"rate": scaled}
    return {}


@contextmanager
def _unseen() -> Iterator[None]:
    """Print nothing, warn of nothing, and leave the generators of random numbers as they are."""
    state = random.getstate()
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            random.setstate(state)


@torch.no_grad()
def _run(optimizer: Optimizer, pushed: bool) -> tuple[list[Tensor], Tensor]:
    """The weights after each step, and by how much they are pushed before one."""
    random.seed(0)
    torch.default_generator.manual_seed(0)
    draw = torch.Generator().manual_seed(0)
    twin, parameters = _twin(optimizer)
    lasting, push = [[_drawn(p, draw) for p in parameters] for _ in range(2)]
    seen = [_flat(parameters)]
    for step in range(_STEPS):
        for parameter, gradient, by in zip(parameters, lasting, push, strict=True):
            parameter.grad = gradient + 0.3 * _drawn(parameter, draw)
            if pushed and step == _AT:
                parameter.add_(by)
        twin.step()
        seen.append(_flat(parameters))
    return seen, _flat(push)


def _drawn(parameter: Tensor, draw: torch.Generator) -> Tensor:
    return torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype).to(parameter.device)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten().double().cpu() for tensor in tensors])


def _twin(optimizer: Optimizer, cut: bool = False) -> tuple[Optimizer, list[nn.Parameter]]:
    """A copy of an optimizer and of the smallest of its parameters, which shares nothing with it.

    ``cut``: of an optimizer that has not stepped yet, a corner of each parameter, in 32 bits or more.
    """
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    memo: dict[int, Any] = {}
    left, kept, left_out = _ENTRIES, [], set()
    cut = cut and not optimizer.state
    for parameter in sorted(held, key=Tensor.numel):
        if type(parameter) not in (nn.Parameter, Tensor) or not parameter.is_floating_point():
            raise TypeError(type(parameter))
        copied = parameter.detach()
        if cut:
            copied = wide(copied[(slice(_CORNER),) * copied.dim()])
        left -= copied.numel()
        fits = left >= 0 and copied.numel() > 0
        memo[id(parameter)] = twin = nn.Parameter(copied.clone() if fits else torch.empty(0))
        if fits:
            kept.append(twin)
            continue
        left_out.add(twin)
        of_it = optimizer.state.get(parameter, {}).values()
        memo.update((id(value), torch.empty(0)) for value in of_it if isinstance(value, Tensor))
    made = _copied(optimizer, memo)
    for group in made.param_groups:
        group["params"] = [p for p in group["params"] if p not in left_out]
        if isinstance(group.get("lr"), (float, int)):
            group["lr"] = _RATE
    return made, kept


def _copied(optimizer: Optimizer, memo: dict[int, Any]) -> Optimizer:
    """Copy all of it: torch's own copy leaves out what a subclass keeps beside its groups."""
    if id(optimizer) in memo:
        return memo[id(optimizer)]  # type: ignore[no-any-return]
    made = memo[id(optimizer)] = type(optimizer).__new__(type(optimizer))
    for value in vars(optimizer).values():
        if isinstance(value, Optimizer):
            _copied(value, memo)
    for name, value in vars(optimizer).items():
        if name.endswith("_hooks"):
            vars(made)[name] = OrderedDict()
        elif name not in ("step", "__deepcopy__", "__reduce_ex__"):  # a scheduler's, and those of copies
            vars(made)[name] = copy.deepcopy(value, memo)
    return made
