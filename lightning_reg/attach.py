"""The same engine for a plain PyTorch loop."""

from __future__ import annotations

from typing import Any

from torch import nn
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
from lightning_reg.apply.term import found_inf
from lightning_reg.penalties.base import Penalty
from lightning_reg.schedules import check_schedule

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
        model: whose parameters are selected.
        optimizer: whose steps count; only parameters it holds are penalised.
        penalty: which function, on what, how strong.
        apply: ``"gradient"``, ``"decoupled"`` or ``"proximal"``. For the loss there is nothing to attach:
            write ``loss + penalty(model)``.
        total_steps: length of the run in optimizer steps, for a schedule in fractions of it.
        metric: of ``"proximal"``, the optimizer's own or ``"euclidean"``.

    Returns:
        A handle with ``remove()``, ``add_gradient()``, ``state_dict()`` and ``load_state_dict()``.

    Raises:
        ValueError: a combination that would be wrong, a selection that matches nothing, or a bad schedule.

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
    """
    check_apply(penalty, apply, metric)
    if apply == "loss":
        raise ValueError(
            "apply='loss' has nothing to attach to in a plain loop; write loss = loss + penalty(model)"
        )
    if total_steps is not None and (type(total_steps) is not int or total_steps < 1):
        raise ValueError(f"total_steps={total_steps!r} is not a number of steps; give an integer, 1 or more")
    check_schedule(penalty.strength, total_steps)
    before = sum(
        isinstance(getattr(hook, "__self__", None), Attachment)
        for hook in optimizer._optimizer_step_pre_hooks.values()
    )
    term = Term(penalty, model, total_steps, label=f"{before} {penalty.log_name}")
    check_optimizer(term, apply, optimizer, metric)
    return Attachment(term, optimizer, apply, metric)


class Attachment:
    """A penalty attached to an optimizer; made by :func:`attach`.

    Attributes:
        step: optimizer steps taken since it was attached, the clock of the schedule. A step that a
            GradScaler leaves out is not taken.
    """

    def __init__(self, term: Term, optimizer: Optimizer, apply: Apply, metric: Metric) -> None:
        self.step = 0
        self._term = term
        self._optimizer = optimizer
        self._apply = apply
        self._metric: Metric = metric
        self._added = False
        self._hooks = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def add_gradient(self) -> None:
        """Add the penalty's gradient now, before clipping, and not again in the coming step.

        Call it once after each backward pass whose gradients will be stepped, and after
        ``scaler.unscale_(optimizer)`` where there is a GradScaler.

        Raises:
            RuntimeError: ``apply`` is not ``"gradient"``.
        """
        if self._apply != "gradient":
            raise RuntimeError(f"add_gradient() is for apply='gradient', and this is apply={self._apply!r}")
        add_gradient_(self._term, self._optimizer, self._term.strength(self.step))
        self._added = True

    def remove(self) -> None:
        """Detach from the optimizer, and leave no trace in it."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def state_dict(self) -> dict[str, Any]:
        """Return the step count, and what the penalty has learned of the model, if anything."""
        state = self._term.state_dict()
        return {"step": self.step, "penalty": state} if state else {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` returned."""
        self.step = state["step"]
        if "penalty" in state:
            self._term.load_state_dict(state["penalty"])

    def _before(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
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
            decay_(self._term, optimizer, self._term.strength(self.step), self.step)
        elif self._apply == "gradient" and not self._added:
            add_gradient_(self._term, optimizer, self._term.strength(self.step))

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._apply == "proximal":
            prox_(self._term, optimizer, self._term.strength(self.step), self.step, self._metric)
        self._added = False
        if not found_inf(optimizer):  # a fused optimizer comes here even when its scaler skips the step
            self.step += 1
