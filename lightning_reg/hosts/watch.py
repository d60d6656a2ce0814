"""What moves the weights where nobody looks: a step that hooks do not see, an optimizer that nobody shows."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_reg.apply.term import Term
from lightning_reg.tensors.shards import is_sharded

__all__ = ["Silence", "Undone", "Unheld"]

#: Backward passes between which weights moved, before it is said; steps that are looked into.
_PATIENCE = 3
#: Entries of a tensor that are looked at, and tensors that are held.
_SAMPLE, _HELD = 64, 8
#: Steps after which nobody looks any more whether what they made lasts: a look waits for the device.
_LONG = 64


def _sample(parameter: nn.Parameter) -> Tensor:
    return parameter.detach().flatten()[:_SAMPLE].clone()


class Silence:
    """Looks whether the weights move while the optimizer's hooks stay silent, until a step with gradients.

    Some optimizers step by other methods than ``step``, or inside the backward pass, or make gradients of
    their own.

    Args:
        term: what is attached.
        optimizer: to what.
    """

    def __init__(self, term: Term, optimizer: Optimizer) -> None:
        self._what = repr(term.penalty)
        self._name = type(optimizer).__name__
        self._moves = 0
        self._before: Tensor | None = None
        flattened = any("FullyShardedDataParallel" in type(m).__name__ for m in term.module.modules())
        found = [p for p in term.trainable(optimizer) if p.is_leaf and not is_sharded(p) and not is_lazy(p)]
        self._hook: Any = None
        self._parameter: nn.Parameter | None = None
        self._never = "step() was never called"
        if found and not flattened:
            untyped: Any = found[0]
            self._parameter = found[0]
            self._hook = untyped.register_post_accumulate_grad_hook(self._look)

    def end(self) -> None:
        """Look no more."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = self._parameter = None

    def look(self) -> None:
        """Look at a step that has no gradients."""
        self._never = "step() never had a gradient to step by"
        if self._parameter is not None:
            self._look(self._parameter)

    @torch.no_grad()
    def _look(self, parameter: nn.Parameter) -> None:
        now = _sample(parameter)
        moved = self._before is not None and not torch.equal(now, self._before)
        self._before = now
        self._moves += moved
        if self._moves >= _PATIENCE:
            self.end()
            warnings.warn(
                f"{self._what} was not applied: the weights have moved {_PATIENCE} times, and "
                f"{self._name}.{self._never}; attach to the optimizer whose step() moves them, or "
                "add penalty(model) to the loss",
                stacklevel=2,
            )


class _Acting(Protocol):
    """An engine at work."""

    @property
    def term(self) -> Term:
        """What acts."""


class Undone:
    """Looks, in the first steps, whether something else takes back what a term has made of the weights.

    A wrapper that steps the optimizer inside it and then goes back to slower weights does, or an average of
    weights that is put in their place.

    Args:
        engine: what makes zeros, or puts the weights into a set.
    """

    def __init__(self, engine: _Acting) -> None:
        self._engine, self._term = engine, engine.term
        self._left, self._times = _LONG, 0
        self._after: dict[int, list[tuple[nn.Parameter, Tensor]]] = {}

    def note(self, optimizer: Optimizer, members: Sequence[object]) -> None:
        """Note the weights as a step has left them, if of its ``members`` nobody of this kind acts later."""
        if not self._left:
            return
        bound = self._term.bound
        last = next(m for m in reversed(members) if isinstance(m, type(self._engine)))
        spans = self._term.penalty.is_constraint and bound.couples
        if last is self._engine and not bound.follows_steps and not spans:
            stepped = (p for _, parameters in self._term.stepped(optimizer) for p in parameters)
            some = islice((p for p in stepped if not is_sharded(p)), _HELD)
            self._after[id(optimizer)] = [(p, _sample(p)) for p in some]

    def look(self, optimizer: Optimizer) -> None:
        """Look at them before the next one; warn, once."""
        after = self._after.pop(id(optimizer), None)
        if not after:
            return
        self._left -= 1
        with torch.no_grad():
            undone = any(self._is_undone(p, left) for p, left in after if left.device == p.device)
        if not undone:
            return
        self._times += 1
        if self._times == _PATIENCE:
            self._left = 0
            constraint = self._term.penalty.is_constraint
            warnings.warn(
                f"{self._term.penalty!r} does not last: between the steps of {type(optimizer).__name__} "
                f"something {'takes the weights out of the set' if constraint else 'changes its zeros'}, as "
                "Lookahead or an average of the weights does; step the optimizer without it, or use "
                f"{'another one' if constraint else 'apply=' + repr('gradient')}",
                stacklevel=2,
            )

    def _is_undone(self, parameter: nn.Parameter, left: Tensor) -> bool:
        now = _sample(parameter)
        if now.shape != left.shape or torch.equal(now, left):
            return False
        if not self._term.penalty.is_constraint:
            return bool(((left == 0) & (now != 0)).any())
        if self._term.in_use.through_map(parameter):
            return False  # the set is of what the layer computes from it
        before = parameter.detach().clone()
        self._term.bound.prox_([parameter], 1.0, ())
        outside = not torch.allclose(before, parameter)
        parameter.copy_(before)
        return outside


class Unheld:
    """The tensors of a selection that are trained, though not by a step that Lightning sees.

    No optimizer in sight holds them, or somebody has stepped them, and taken their gradients, before the
    optimizer in sight steps. A copy of a network, which no gradient reaches, is not trained, whoever moves
    it.

    Args:
        term: what is at work.
        optimizers: those in sight.
        through_loss: whether it acts through the loss, and so in any step on the gradients.
    """

    def __init__(self, term: Term, optimizers: Iterable[Optimizer], through_loss: bool = False) -> None:
        self._term = term
        self._trained: set[int] = set()
        self._taken: set[int] = set()
        self._hooks: dict[int, Any] = {}
        held = _held(optimizers)
        free = [s for s in term.selected if s.parameter.requires_grad and not is_lazy(s.parameter)]
        free = [s for s in free if not is_sharded(s.parameter) and s.parameter.is_leaf]
        unheld = [s for s in free if id(s.parameter) not in held]
        some = [s for s in free if id(s.parameter) in held][: 0 if through_loss else _HELD]
        said_before = bool(held) and len(unheld) == len(free)
        self._watched = [] if said_before or (through_loss and not held) else [*unheld, *some]
        self._before = [_sample(s.parameter) for s in self._watched]
        for s in self._watched:
            untyped: Any = s.parameter
            self._hooks[id(untyped)] = untyped.register_post_accumulate_grad_hook(self._see)

    def look(self, optimizer: Optimizer) -> None:
        """Look, where the gradients of a step are complete, whose have been taken already."""
        held = _held([optimizer])
        here = [s.parameter for s in self._watched if s.parameter.grad is None]
        self._taken.update(id(p) for p in here if id(p) in self._trained and id(p) in held)

    def end(self) -> None:
        """Look no more."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks, self._watched, self._before = {}, [], []

    def warn(self, optimizers: Iterable[Optimizer]) -> None:
        """Warn of those that have moved, and look no more."""
        held = _held(optimizers)
        moved = [
            s.name
            for s, before in zip(self._watched, self._before, strict=True)
            if id(s.parameter) in self._trained
            and (id(s.parameter) not in held or id(s.parameter) in self._taken)
            and not torch.equal(_sample(s.parameter), before.to(s.parameter.device))
        ]
        total, taken = len(self._term.selected), bool(self._taken)
        self.end()
        if moved:
            why = "other steps have taken their gradients" if taken else "no optimizer that Lightning steps"
            warnings.warn(
                f"{self._term.penalty!r} was not applied to {moved[0]} and {len(moved) - 1} more of the "
                f"{total} parameters of its selection: they are trained, and {why}"
                f"{' before the optimizer that Lightning steps' if taken else ' holds them'}; use "
                "lightning_reg.attach on the optimizer that does",
                stacklevel=2,
            )

    def _see(self, parameter: Tensor) -> None:
        self._trained.add(id(parameter))
        self._hooks.pop(id(parameter)).remove()


def _held(optimizers: Iterable[Optimizer]) -> set[int]:
    return {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
