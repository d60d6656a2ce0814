"""How a constraint acts: a projection after the optimizer's step."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from lightning_reg.apply.dual_averaging import hold_
from lightning_reg.apply.term import Term, found_inf
from lightning_reg.tensors.steps import StepSize

__all__ = ["look_before_", "project_"]


@torch.no_grad()
def look_before_(term: Term, optimizer: Optimizer, strength: float) -> None:
    """Show the constraint what ``optimizer`` is about to step."""
    look = getattr(term.bound, "before_step_", None)
    if look is not None:
        look([p for _, parameters in term.stepped(optimizer) for p in parameters], strength)


@torch.no_grad()
def project_(term: Term, optimizer: Optimizer, strength: float = 1.0) -> None:
    """Put each tensor that ``optimizer`` has just stepped back into the set.

    In the weights' own precision: a 16-bit weight that were rounded at random would leave the set again.
    """
    if found_inf(optimizer):
        return
    stepped = list(term.stepped(optimizer))
    weights = [p for _, parameters in stepped for p in parameters]
    if not weights:
        return
    term.mask_(weights)
    # where a rate is 0, nothing has moved: a bound's average must not take that for an answer
    steps = [StepSize(float(group.get("lr") != 0)) for group, parameters in stepped for _ in parameters]
    left = hold_(term, optimizer, weights, steps, strength)
    term.bound.prox_([weights[i] for i in left], strength, ())
