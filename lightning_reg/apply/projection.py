"""How a constraint acts: a projection after the optimizer's step."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from lightning_reg.apply.term import Term, found_inf

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
    weights = [p for _, parameters in term.stepped(optimizer) for p in parameters]
    if weights:
        term.mask_(weights)
        term.bound.prox_(weights, strength, ())
