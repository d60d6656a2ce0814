"""One pair of hooks on an optimizer for all that act in its step, in an order of their own."""

from __future__ import annotations

import math
import sys
from types import FrameType
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.hosts.seems_clipped import SeemsClipped

__all__ = ["InStep", "StepHooks", "found_hooks"]


#: What torch wraps each step in, which calls the hooks.
_STEP = Optimizer.profile_hook_step(lambda self: None).__code__


class InStep(Protocol):
    """What takes part in the steps of an optimizer."""

    @property
    def turn(self) -> int:
        """The lower, the earlier; of the same turn, the one that came first."""

    @property
    def repeats(self) -> bool:
        """Whether it acts after each call of a closure, and not after the first of a step alone."""

    @property
    def asks_of_clipping(self) -> bool:
        """Whether gradients that somebody has clipped by an unknown factor would make it wrong."""

    def acts_inside(self, optimizer: Optimizer) -> bool:
        """Whether it acts before the update, and inside the step, where the gradients are complete."""

    def before_step(self, optimizer: Optimizer) -> None:
        """Act before the update, with the gradients of this step."""

    def after_step(self, optimizer: Optimizer) -> None:
        """Act after the update."""


class StepHooks:
    """All that acts in the steps of one optimizer.

    However many callbacks, modules and attachments act on an optimizer, it has one of these, and that has
    them all sorted by their turns. The last one to leave takes the hooks away.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.members: list[InStep] = []
        #: By identity of a parameter: the factor by which its gradient was clipped for the coming step.
        self.factors: dict[int, float] = {}
        #: By identity of a parameter: the quadratics whose operators have acted on it after this update.
        self.ridges: dict[int, float | Tensor] = {}
        self.measures = False  # a clipping under way
        self.fills = False  # a step under way that does nothing but to fill the optimizer's state
        self._seems_clipped = SeemsClipped()
        self._clipped: dict[int, float] = {}  # the norms that it has left
        self._step = _under_way(optimizer)  # the call of the outermost step
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    @staticmethod
    def of(optimizer: Optimizer) -> StepHooks:
        """Return those of ``optimizer``, made where it has none."""
        return found_hooks(optimizer) or StepHooks(optimizer)

    @staticmethod
    def members_of(optimizer: Optimizer) -> list[InStep]:
        """Return what acts in the steps of ``optimizer``, in its order."""
        hooks = found_hooks(optimizer)
        return hooks.members if hooks is not None else []

    @property
    def noted(self) -> tuple[dict[int, float], dict[int, float | Tensor]]:
        """Factors by which gradients were clipped, and quadratics that have acted, in the step under way."""
        return self.factors, self.ridges

    def note_clipping(self, parameter: Tensor, before: float, after: float, factor: float) -> None:
        """Note by what ``factor`` a gradient was clipped, and its norms ``before`` and ``after``.

        Clipping the same gradient twice multiplies the factors; another gradient begins anew.
        """
        key = id(parameter)
        again = abs(self._clipped.get(key, math.inf) - before) <= 1e-6 * before
        self.factors[key] = factor * (self.factors.get(key, 1.0) if again else 1.0)
        self._clipped[key] = after

    def add(self, member: InStep) -> None:
        """Let ``member`` take part from the coming step on."""
        self.members = sorted([*self.members, member], key=lambda m: m.turn)

    def remove(self, member: InStep) -> None:
        """Let it take part no more."""
        self.members = [m for m in self.members if m is not member]
        self._leave()

    def _leave(self) -> None:
        """Go with the last member, at the end of a step that is under way: another may come before that."""
        if not self.members and not (self._step is not None and _runs(self._step)):
            for handle in self._handles:
                handle.remove()

    def _before(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._step is not None and _runs(self._step):
            return None  # torch wraps a step and that of the base class, and one calls the other
        self._step = sys._getframe(1)
        self.fills = _fills_state(optimizer)
        if self.fills:
            return None
        acting = [member for member in self.members if member.acts_inside(optimizer)]
        looks = self._seems_clipped.looks < SeemsClipped.LOOKS and any(
            m.asks_of_clipping for m in self.members
        )
        if not acting and not looks:
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):  # some take losses
            for member in acting:
                member.before_step(optimizer)
            self._look(optimizer, looks)
            return None
        # the gradients come to be inside the closure

        def with_terms() -> Any:
            loss = closure()
            for member in acting:
                member.before_step(optimizer)
            acting[:] = [member for member in acting if member.repeats]
            self._look(optimizer, looks)
            return loss

        if len(args) > 1:  # by whatever name
            return (args[0], with_terms, *args[2:]), kwargs
        return args, {**kwargs, "closure": with_terms}

    def _look(self, optimizer: Optimizer, looks: bool) -> None:
        """Look whether somebody has clipped the gradients unseen."""
        if looks and not self.factors:
            self._seems_clipped.look(optimizer)

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if sys._getframe(1) is not self._step:
            return
        self._step = None
        for member in self.members:
            member.after_step(optimizer)
        self.ridges.clear()
        self.fills = False
        if self.factors:
            self.factors, self._clipped = {}, {}
        self._leave()


def found_hooks(optimizer: Optimizer) -> StepHooks | None:
    """Return those of ``optimizer``, or None."""
    for hook in optimizer._optimizer_step_post_hooks.values():
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, StepHooks):
            return owner
    return None


def _fills_state(optimizer: Optimizer) -> bool:
    """Whether torch's distributed checkpoint takes a step, with rates and gradients of 0, to make a state."""
    rate = optimizer.param_groups[0].get("lr")
    if not isinstance(rate, Tensor) and rate != 0:
        return False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "_init_optim_state":
        frame = frame.f_back
    return frame is not None


def _under_way(optimizer: Optimizer) -> FrameType | None:
    """The call of the outermost step of ``optimizer`` that is under way: hooks may come to be inside one."""
    frame: FrameType | None = sys._getframe(1)
    found = None
    while frame is not None:
        if frame.f_code is _STEP and frame.f_locals.get("self") is optimizer:
            found = frame
        frame = frame.f_back
    return found


def _runs(call: FrameType) -> bool:
    """Whether a call is still under way; it is not after an error in it."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame is call:
            return True
        frame = frame.f_back
    return False
