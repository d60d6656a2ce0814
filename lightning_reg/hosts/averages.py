"""Averages of weights keep the zeros: an average over weights that came and went has none of its own.

A moving average goes towards zero and does not arrive. So after each update an average is given the zeros
that the live model has then, and a constraint's set takes it back. It is given them again after steps that
a validation or the end of training may follow, since an average need not be updated after each step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from lightning_reg.apply import Term
from lightning_reg.hosts.averaging import (
    copies_in,
    listen,
    listen_no_more,
    pairs_of,
    resemble,
    values_of,
)
from lightning_reg.hosts.step_hooks import StepHooks
from lightning_reg.tensors.shards import local, part, whole

__all__ = ["AveragesKeepZeros", "give_zeros_"]

#: A share of the zeros below which they are lost, and of weights below which there are none to lose.
LOST, FEW = 0.5, 0.01


@torch.no_grad()
def give_zeros_(term: Term, pairs: Iterable[tuple[Tensor, Tensor]], revive: bool = False) -> None:
    """Set to zero in averages what is zero in the live weights, and put them into the set of a constraint.

    Args:
        term: at work on a module.
        pairs: parameters of that module, each with its average.
        revive: whether a zero whose weight has left zero since takes the weight's value.
    """
    averages = {id(live): average.detach() for live, average in pairs}
    weights = [s.parameter for s in term.selected if id(s.parameter) in averages]
    for weight in weights:
        average = averages[id(weight)]
        mine, zeros = local(average), local(weight.detach()) == 0
        if mine.shape != zeros.shape:  # one of the two is sharded
            zeros = part(whole(weight.detach()) == 0, average)
        elif revive:
            mine.copy_(torch.where(mine == 0, local(weight.detach()).to(mine), mine))
        mine.masked_fill_(zeros.to(mine.device), 0.0)
    settle = getattr(term.bound, "settle_", None)
    stored = [w for w in weights if not term.in_use.through_map(w)]
    alike = [w for w in stored if local(w).shape == local(averages[id(w)]).shape]
    if settle is not None and alike:
        settle(alike, [averages[id(w)] for w in alike])


class AveragesKeepZeros:
    """Sees to it that averages of weights keep the zeros of one term, until :meth:`remove`.

    It knows torch's ``AveragedModel``, whoever holds it; and by their names other classes that average,
    which hold a copy of the model, or a list or a mapping of tensors by name. What it cannot reach it warns
    of: where a callback is named as one that averages, and where zeros are gone in a validation or after
    training.

    Args:
        term: whose zeros are kept.
        holders: returns objects that may hold averages, a Trainer's callbacks and its module.
        ends: whether a validation or the end may follow this step.
        optimizers: whose steps count.
    """

    turn = 1000
    repeats = False
    asks_of_clipping = False

    def __init__(
        self,
        term: Term,
        holders: Callable[[], Sequence[Any]] = tuple,
        ends: Callable[[], bool] = bool,
        optimizers: Iterable[Optimizer] = (),
    ) -> None:
        self._term = term
        self._holders = holders
        self._ends = ends
        self._hooks = [StepHooks.of(optimizer) for optimizer in optimizers]
        for hooks in self._hooks:
            hooks.add(self)
        #: By identity of an owner: it, and the averages in it that have been given zeros.
        self._reached: dict[int, tuple[Any, list[tuple[Tensor, Tensor]]]] = {}
        self._trained: dict[int, Tensor] = {}
        self._zeros: float | None = None
        self._looked = self._warned = False
        listen(self, holders())

    def acts_inside(self, optimizer: Optimizer) -> bool:
        """Not before the update."""
        return False

    def before_step(self, optimizer: Optimizer) -> None:
        """Do nothing before the update."""

    def after_step(self, optimizer: Optimizer) -> None:
        """Find averages that have been made since, and give all of them zeros where they may be looked at."""
        ends = self._ends()
        if not self._looked or ends:
            listen(self, self._holders())
            self._looked = True
        if ends:
            self.give()
            self._zeros = self._share()

    def updated(self, owner: Any, given: Iterable[Any]) -> None:
        """Give zeros to the averages of an owner that has just updated them."""
        _, pairs = self._reached.get(id(owner), (owner, []))
        if not pairs or not isinstance(owner, AveragedModel):  # others may have exchanged their tensors
            pairs = self._find(owner, given)
        if pairs:
            give_zeros_(self._term, pairs)
            self._reached[id(owner)] = owner, pairs

    def _find(self, owner: Any, given: Iterable[Any] = ()) -> list[tuple[Tensor, Tensor]]:
        told = [one for one in given if isinstance(one, nn.Module)]
        held = [one for one in values_of(owner) if isinstance(one, nn.Module)]
        mine = {id(parameter) for parameter in self._term.trained()}
        live = [m for m in (*told, *held) if any(id(p) in mine for p in m.parameters())]
        if told and not live:
            return []  # an average of another model
        pairs = [p for copies in copies_in(owner) for p in pairs_of(copies, (*live, self._term.module))]
        found = [(w, a) for w, a in pairs if id(w) in mine and id(a) not in mine and not self._trains(a)]
        return found if isinstance(owner, AveragedModel) or resemble(found) else []

    def _trains(self, tensor: Tensor) -> bool:
        """Whether a tensor has been seen to train, as no average does."""
        if tensor.is_leaf and tensor.grad is not None:
            self._trained[id(tensor)] = tensor
        return id(tensor) in self._trained

    def give(self) -> None:
        """Give zeros to all averages that have been updated so far."""
        for _, pairs in self._reached.values():
            give_zeros_(self._term, [(w, a) for w, a in pairs if not self._trains(a)], revive=True)

    def warn_of_unreached(self) -> None:
        """Warn, after an epoch, of callbacks whose names say that they average weights, out of reach."""
        for holder in self._holders():
            name = type(holder).__name__
            inside = (holder, *values_of(holder))
            if not _surely_averages(name) or not _holds_weights(holder):
                continue
            if not any(isinstance(o, AveragedModel) or self._find(o) for o in inside):
                self._warn(f"{name} averages weights out of reach of {self._term.penalty!r}")

    def check(self, where: str) -> None:
        """Warn where zeros of the last step are gone, since something has exchanged the weights."""
        before, self._zeros = self._zeros, None
        if before is None or before < FEW or self._awaits_one():
            return
        now = self._share()
        if now < LOST * before:
            self._warn(
                f"{where} has {now:.1%} zeros, and the last step with {self._term.penalty!r} left "
                f"{before:.1%}: a callback or the module has put other weights, maybe averages, in place"
            )
        self._zeros = before

    def _awaits_one(self) -> bool:
        """Whether an average has not been updated yet, and is what it was at the start."""
        found = [one for holder in self._holders() for one in values_of(holder)]
        return any(isinstance(one, AveragedModel) and id(one) not in self._reached for one in found)

    def _share(self) -> float:
        """The share of zeros in the selection, in this process."""
        weights = [local(parameter.detach()) for parameter in self._term.trained()]
        count = sum(weight.numel() for weight in weights)
        return sum(int((weight == 0).sum()) for weight in weights) / max(count, 1)

    def _warn(self, sentence: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{sentence}, and averaging loses exact zeros; use EMAWeightAveraging or "
                "StochasticWeightAveraging of Lightning, an AveragedModel of torch, or save the live weights",
                stacklevel=2,
            )

    def remove(self) -> None:
        """Leave the averages alone."""
        listen_no_more(self)
        for hooks in self._hooks:
            hooks.remove(self)
        self._hooks, self._reached = [], {}


def _holds_weights(holder: Any, depth: int = 3) -> bool:
    """Whether there is a module or a tensor of more than one number in an object, or in what it holds."""
    for one in values_of(holder):
        if isinstance(one, nn.Module) or (isinstance(one, Tensor) and one.dim() > 0):
            return True
        if depth > 1 and hasattr(one, "__dict__") and _holds_weights(one, depth - 1):
            return True
    return False


def _surely_averages(name: str) -> bool:
    low = name.lower()
    return name.startswith("EMA") or "weightaverag" in low or "modelema" in low or "emacallback" in low
