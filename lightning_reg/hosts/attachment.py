"""The same engine for loops that are not Lightning's: plain PyTorch, Fabric, Accelerate."""

from __future__ import annotations

import copy
import warnings
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_reg.apply import (
    Apply,
    DualAveraging,
    Metric,
    add_gradient_,
    default_apply,
    forget_averages,
)
from lightning_reg.apply.backward import GradientInBackward
from lightning_reg.hosts.clipping import clipping_noticed
from lightning_reg.hosts.copies import Copies
from lightning_reg.hosts.engine import Engine
from lightning_reg.hosts.plain_loop import Loop, check_held
from lightning_reg.hosts.step_hooks import StepHooks
from lightning_reg.hosts.watch import Silence
from lightning_reg.hosts.wrappers import accumulates, left_scale, scaler_of
from lightning_reg.penalties.regularizer import Regularizer

__all__ = ["Attachment", "attach"]


def attach(
    model: nn.Module,
    optimizer: Optimizer,
    penalty: Regularizer,
    apply: Apply | None = None,
    total_steps: int | None = None,
    *,
    metric: Metric = "optimizer",
    dual_averaging: DualAveraging = True,
) -> Attachment:
    """Apply ``penalty`` to ``model`` at every ``optimizer.step()``, until ``.remove()``.

    Args:
        model: whose parameters are selected, bare or wrapped.
        optimizer: whose steps count, bare or wrapped; only parameters it holds are penalized.
        penalty: which function, on what, how strong; or a constraint.
        apply: ``"gradient"`` where not given, ``"decoupled"`` or ``"proximal"``. For the loss there is
            nothing to attach: write ``loss + penalty(model)``. A constraint projects after the step.
        total_steps: length of the run in optimizer steps, for a schedule in fractions of it.
        metric: of ``"proximal"``, the optimizer's own or ``"euclidean"``.
        dual_averaging: of ``"proximal"``, True for zeros that the noise of mini-batches does not undo, at
            the price of one state tensor a penalized weight; False for the plain proximal step. A number k
            averages over about the last t/k of t steps; True is 4.

    Returns:
        A handle with ``remove()``, ``add_gradient()``, ``clipping()``, ``value()``, ``state_dict()`` and
        ``load_state_dict()``.

    Raises:
        TypeError: ``model`` is not a module, or ``optimizer`` not one of torch's.
        ValueError: a combination that would be wrong, a selection that matches nothing or nothing that the
            optimizer holds, or a bad schedule.

    Beside ``"proximal"``, clip by norm in ``with handle.clipping():``, or λ would not count as λ.

    The gradient is added in ``optimizer.step()``, hence after any clipping. Call
    ``handle.add_gradient()`` before you clip to have it exactly as if it came from the loss; the step then
    adds nothing more.

    >>> import torch
    >>> from lightning_reg import L2, attach
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> handle = attach(model, optimizer, L2(1e-2))
    >>> model(torch.ones(2, 3)).sum().backward()
    >>> optimizer.step()
    >>> handle.step
    1
    >>> handle.remove()

    A loop with a GradScaler, clipped; a step that it skips is no step::

        handle.add_gradient(scaler)  # before scaler.unscale_(optimizer), or after
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)

    Fabric, before ``setup`` or after::

        model, optimizer = fabric.setup(model, optimizer)
        handle = attach(model, optimizer, L1(1e-4), apply="proximal")

    Accelerate, before ``prepare`` or after::

        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        handle = attach(model, optimizer, L1(1e-4))
        ...
        if accelerator.sync_gradients:
            handle.add_gradient()
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    The Hugging Face Trainer takes a :class:`~lightning_reg.hosts.hugging_face.PenaltyTrainerCallback`.
    """
    if apply == "loss":
        raise ValueError(
            "apply='loss' has nothing to attach to in a plain loop; write loss = loss + penalty(model)"
        )
    if total_steps is not None and (type(total_steps) is not int or total_steps < 1):
        raise ValueError(f"total_steps={total_steps!r} is not a number of steps; give an integer, 1 or more")
    if not isinstance(model, nn.Module):
        raise TypeError(f"{type(model).__name__} is not a module; call attach(model, optimizer, penalty)")
    loop = Loop(model, optimizer)
    bare = loop.optimizer
    members = StepHooks.members_of(bare)
    others = [m for m in members if isinstance(m, Engine) and isinstance(m.host, Loop)]
    if any(_is_again(other, model, penalty, default_apply(penalty, apply)) for other in others):
        warnings.warn(
            f"{penalty!r} is attached to this {type(bare).__name__} a second time, and counts twice; remove "
            "the first, handle.remove()",
            stacklevel=2,
        )
    taken = {other.term.label.partition(" ")[0] for other in others}
    number = next(number for number in map(str, count()) if number not in taken)
    engine = Engine(
        penalty,
        default_apply(penalty, apply),
        metric,
        model,
        loop,
        total_steps=total_steps,
        dual_averaging=dual_averaging,
        label=f"{number} {getattr(penalty, 'log_name', '')}",
    )
    return Attachment(engine, loop)


class Attachment:
    """A penalty or a constraint attached to an optimizer; made by ``attach``."""

    def __init__(self, engine: Engine, loop: Loop) -> None:
        check_held(engine.term, loop.optimizer)
        engine.hook(loop.optimizer)
        Copies.add(loop.optimizer, self)
        self._engine = engine
        self._loop = loop
        self._in_backward: GradientInBackward | None = None
        if engine.apply == "proximal":
            loop.keep_zeros(engine.term)
        loop.silence = Silence(engine.term, loop.optimizer)

    def __repr__(self) -> str:
        engine, optimizer = self._engine, self._loop.optimizer
        held = [engine.term.name_of(p) for p in engine.term.trainable(optimizer)]
        names = ", ".join(held[:3]) + (f" and {len(held) - 3} more" if len(held) > 3 else "")
        return (
            f"Attachment({engine.penalty!r}, apply={engine.apply!r}, on {names or 'nothing'}, after "
            f"{self.step} steps of {type(optimizer).__name__})"
        )

    @property
    def model(self) -> nn.Module:
        """What it is attached to."""
        return self._loop.model

    def again(self, model: nn.Module, optimizer: Optimizer) -> Attachment:
        """Return the same, at the same step, attached to copies of model and optimizer."""
        old, loop = self._engine, Loop(model, optimizer)
        engine = Engine(
            old.penalty,
            old.apply,
            old.metric,
            model,
            loop,
            total_steps=old.term.total_steps,
            dual_averaging=old.term.dual_averaging,
            label=old.term.label,
        )
        twin = Attachment(engine, loop)
        twin.load_state_dict(self.state_dict())
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Attachment:
        copy.deepcopy((self._loop.model, self._loop.optimizer), memo)
        return memo[id(self)]  # type: ignore[no-any-return]

    @property
    def step(self) -> int:
        """Optimizer steps taken since it was attached, the clock of the schedule; it may be set.

        A step that a GradScaler leaves out is not taken.
        """
        return self._loop.taken

    @step.setter
    def step(self, step: int) -> None:
        self._loop.taken = step

    def add_gradient(self, scaler: Any | None = None) -> None:
        """Add the penalty's gradient now, before clipping, and not again in the coming step.

        Call it once after each backward pass whose gradients will be stepped. With an optimizer that
        Accelerate has wrapped, it does nothing inside an accumulation window.

        Args:
            scaler: the loop's GradScaler, for gradients that it has not unscaled yet. That of Fabric or
                Accelerate is found in an optimizer that they have wrapped.

        Raises:
            RuntimeError: ``apply`` is not ``"gradient"``.
        """
        self._check_gradient()
        if accumulates(self._loop.given):
            return
        scaler = scaler if scaler is not None else scaler_of(self._loop.given)
        scale = left_scale(scaler, self._loop.optimizer)
        add_gradient_(self._engine.term, self._loop.optimizer, self.strength, scale)
        self._engine.leave_out_next(self._loop.optimizer)

    def add_gradient_in_backward(self, scaler: Any | None = None) -> None:
        """Add the penalty's gradient in the backward pass to come, once, and not again in the coming step.

        For a host that runs backward pass and clipping in one go. Call it before the first backward pass of
        each step.

        Args:
            scaler: the loop's GradScaler, as in :meth:`add_gradient`.

        Raises:
            RuntimeError: ``apply`` is not ``"gradient"``.
        """
        self._check_gradient()
        scaler = scaler if scaler is not None else scaler_of(self._loop.given)
        if self._in_backward is None:
            self._in_backward = GradientInBackward(self._engine.term, self._loop.optimizer)
        self._in_backward.arm(self.strength, float(scaler.get_scale()) if scaler is not None else 1.0)
        self._engine.leave_out_next(self._loop.optimizer)

    def clipping(self) -> AbstractContextManager[None]:
        """Return a context to clip by norm in, so that a proximal step is as long as the clipped gradient's.

        For the other ways to apply it does nothing. One handle's serves all handles on the optimizer::

            with handle.clipping():
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        """
        if self._engine.apply != "proximal":
            return nullcontext()
        return clipping_noticed(self._loop.given)

    @property
    def strength(self) -> float:
        """λ of the coming step."""
        return self._engine.strength()

    def value(self) -> Tensor:
        """Return the penalty at this moment, over the trainable tensors that the optimizer holds."""
        return self._engine.value()

    def remove(self) -> None:
        """Detach from optimizer and model, and leave no trace in them."""
        Copies.discard(self._loop.optimizer, self)
        self._engine.detach()
        self._loop.listen_no_more()
        forget_averages(self._engine.term, self._loop.optimizer)
        if self._in_backward is not None:
            self._in_backward.remove()
            self._in_backward = None

    def state_dict(self) -> dict[str, Any]:
        """Return the step count, and what the penalty has learned of the model, if anything."""
        state = self._engine.state_dict()
        return {"step": self.step, "penalty": state} if state else {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` returned."""
        self.step = state["step"]
        if "penalty" in state:
            self._engine.load_state_dict(state["penalty"])

    def _check_gradient(self) -> None:
        if self._engine.apply != "gradient":
            raise RuntimeError(
                "adding the gradient is for apply='gradient', and this is "
                f"apply={self._engine.apply!r}; leave the call out"
            )


def _is_again(other: Engine, model: nn.Module, penalty: Regularizer, apply: Apply) -> bool:
    """Whether ``other`` is at work as this one would be, as in a cell that is run again."""
    same = other.term.module is model and other.penalty == penalty and other.apply == apply
    return same and getattr(other.penalty, "factors", None) is getattr(penalty, "factors", None)
