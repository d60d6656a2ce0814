"""How a constraint acts: a projection after the optimizer's step."""

from __future__ import annotations

from torch.optim import Optimizer

from lightning_reg.apply.dual_averaging import hold_
from lightning_reg.apply.limit_in_use import limit_in_use_
from lightning_reg.apply.term import Term, found_inf
from lightning_reg.tensors.grad_mode import without_grad
from lightning_reg.tensors.steps import StepSize

__all__ = ["look_before_", "project_"]


@without_grad
def look_before_(term: Term, optimizer: Optimizer, strength: float) -> None:
    """Show the constraint what ``optimizer`` is about to step."""
    look = getattr(term.bound, "before_step_", None)
    if look is not None:
        look([p for _, parameters in term.stepped(optimizer) for p in parameters], strength)


@without_grad
def project_(term: Term, optimizer: Optimizer, strength: float = 1.0) -> None:
    """Put each tensor that ``optimizer`` has just stepped back into the set.

    In the weights' own precision: a 16-bit weight that were rounded at random would leave the set again.
    """
    if found_inf(optimizer):
        return
    stepped = [(weight, group) for group, parameters in term.stepped(optimizer) for weight in parameters]
    for weight, _ in stepped:
        if term.in_use.through_map(weight):  # a limit beside a spectral norm, see check_stored
            limit_in_use_(term.in_use, weight)
    stepped = [row for row in stepped if not term.in_use.through_map(row[0])]
    weights = [weight for weight, _ in stepped]
    if not weights:
        return
    term.mask_(weights)
    # where a rate is 0, nothing has moved: a bound's average must not take that for an answer
    steps = [StepSize(float(group.get("lr") != 0)) for _, group in stepped]
    left = hold_(term, optimizer, weights, steps, strength)
    term.bound.prox_([weights[i] for i in left], strength, ())
