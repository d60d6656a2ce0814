"""The same engine for loops that are not Lightning's: plain PyTorch, Fabric, Accelerate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_reg.apply import (
    Apply,
    Metric,
    Term,
    add_gradient_,
    check_apply,
    check_optimizer,
    decay_,
    prox_,
)
from lightning_reg.apply.backward import GradientInBackward
from lightning_reg.apply.term import found_inf
from lightning_reg.hosts.wrappers import accumulates, bare_optimizer, check_reachable, left_scale, scaler_of
from lightning_reg.penalties.base import Penalty
from lightning_reg.schedules.base import check_schedule

__all__ = ["Attachment", "attach"]


def attach(
    model: nn.Module,
    optimizer: Optimizer,
    penalty: Penalty,
    apply: Apply = "gradient",
    total_steps: int | None = None,
    *,
    metric: Metric = "optimizer",
) -> Attachment:
    """Apply ``penalty`` to ``model`` at every ``optimizer.step()``, until ``.remove()``.

    Args:
        model: whose parameters are selected, bare or wrapped.
        optimizer: whose steps count, bare or wrapped; only parameters it holds are penalised.
        penalty: which function, on what, how strong.
        apply: ``"gradient"``, ``"decoupled"`` or ``"proximal"``. For the loss there is nothing to attach:
            write ``loss + penalty(model)``.
        total_steps: length of the run in optimizer steps, for a schedule in fractions of it.
        metric: of ``"proximal"``, the optimizer's own or ``"euclidean"``.

    Returns:
        A handle with ``remove()``, ``add_gradient()``, ``value()``, ``state_dict()`` and
        ``load_state_dict()``.

    Raises:
        TypeError: ``model`` is not a module, or ``optimizer`` not one of torch's.
        ValueError: a combination that would be wrong, a selection that matches nothing or nothing that the
            optimizer holds, or a bad schedule.

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
    check_apply(penalty, apply, metric)
    if apply == "loss":
        raise ValueError(
            "apply='loss' has nothing to attach to in a plain loop; write loss = loss + penalty(model)"
        )
    if total_steps is not None and (type(total_steps) is not int or total_steps < 1):
        raise ValueError(f"total_steps={total_steps!r} is not a number of steps; give an integer, 1 or more")
    check_schedule(penalty.strength, total_steps)
    if not isinstance(model, nn.Module):
        raise TypeError(f"{type(model).__name__} is not a module; call attach(model, optimizer, penalty)")
    check_reachable(model, optimizer)
    bare = bare_optimizer(optimizer)
    before = sum(
        isinstance(getattr(hook, "__self__", None), Attachment)
        for hook in bare._optimizer_step_pre_hooks.values()
    )
    term = Term(penalty, model, total_steps, label=f"{before} {penalty.log_name}")
    check_optimizer(term, apply, bare, metric)
    _check_held(term, bare)
    return Attachment(term, optimizer, apply, metric)


def _check_held(term: Term, optimizer: Optimizer) -> None:
    """Refuse an optimizer whose steps would penalise nothing."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    select = term.penalty.select
    selected = term.selected
    if any(id(s.parameter) in held for s in selected):
        return
    name = type(optimizer).__name__
    if any(id(parameter) in held for parameter in term.module.parameters()):
        raise ValueError(
            f"select={select!r} names {selected[0].name}, and {name} holds none of what it names; give the "
            "optimizer that steps them, or another select="
        )
    raise ValueError(
        f"{name} holds no parameter of the model, so it steps another one, or was made before the "
        "parameters were exchanged; make it from this model's parameters()"
    )


class Attachment:
    """A penalty attached to an optimizer; made by :func:`attach`.

    Attributes:
        step: optimizer steps taken since it was attached, the clock of the schedule; it may be set. A step
            that a GradScaler leaves out is not taken.
    """

    def __init__(self, term: Term, optimizer: Optimizer, apply: Apply, metric: Metric) -> None:
        self.step = 0
        self._term = term
        self._given = optimizer
        self._optimizer = bare_optimizer(optimizer)
        self._apply = apply
        self._metric: Metric = metric
        self._added = False
        self._checked = False
        self._in_backward: GradientInBackward | None = None
        self._hooks = [
            self._optimizer.register_step_pre_hook(self._before),
            self._optimizer.register_step_post_hook(self._after),
        ]

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
        if accumulates(self._given):
            return
        scale = left_scale(scaler if scaler is not None else scaler_of(self._given), self._optimizer)
        add_gradient_(self._term, self._optimizer, self.strength, scale)
        self._added = True

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
        scaler = scaler if scaler is not None else scaler_of(self._given)
        if self._in_backward is None:
            self._in_backward = GradientInBackward(self._term, self._optimizer)
        self._in_backward.arm(self.strength, float(scaler.get_scale()) if scaler is not None else 1.0)
        self._added = True

    @property
    def strength(self) -> float:
        """λ of the coming step."""
        return self._term.strength(self.step)

    @torch.no_grad()
    def value(self) -> Tensor:
        """Return the penalty at this moment, over the trainable tensors that the optimizer holds."""
        return self._term.value(self.strength, [self._optimizer])

    def remove(self) -> None:
        """Detach from optimizer and model, and leave no trace in them."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self._in_backward is not None:
            self._in_backward.remove()
            self._in_backward = None

    def state_dict(self) -> dict[str, Any]:
        """Return the step count, and what the penalty has learned of the model, if anything."""
        state = self._term.state_dict()
        return {"step": self.step, "penalty": state} if state else {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` returned."""
        self.step = state["step"]
        if "penalty" in state:
            self._term.load_state_dict(state["penalty"])

    def _check_gradient(self) -> None:
        if self._apply != "gradient":
            raise RuntimeError(
                f"adding the gradient is for apply='gradient', and this is apply={self._apply!r}; leave the "
                "call out"
            )

    def _before(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self._checked:  # a strategy may have exchanged the parameters since
            check_reachable(self._term.module, self._given)
            _check_held(self._term, optimizer)
            self._checked = True
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._act(optimizer)
            return None
        # the gradients come to be inside the closure

        def with_penalty() -> Any:
            loss = closure()
            self._act(optimizer)
            return loss

        return (args[0],), {**kwargs, "closure": with_penalty}

    def _act(self, optimizer: Optimizer) -> None:
        if self._apply == "decoupled":
            decay_(self._term, optimizer, self.strength, self.step)
        elif self._apply == "gradient" and not self._added:
            add_gradient_(self._term, optimizer, self.strength)

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._apply == "proximal":
            prox_(self._term, optimizer, self.strength, self.step, self._metric)
        self._added = False
        if not found_inf(optimizer):  # a fused optimizer comes here even when its scaler skips the step
            self.step += 1
