"""``apply="proximal"``: the proximal operator after the optimizer's step, in the optimizer's own metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.apply.clipped import clipped_steps
from lightning_reg.apply.dual_averaging import hold_, key_of
from lightning_reg.apply.floors import Floors
from lightning_reg.apply.optimizers import euclidean_step_sizes, step_sizes
from lightning_reg.apply.rows import prox_rows_
from lightning_reg.apply.stochastic_rounding import rounded_after
from lightning_reg.apply.term import Metric, Term, found_inf
from lightning_reg.penalties.bound import Bound
from lightning_reg.tensors.grad_mode import without_grad
from lightning_reg.tensors.steps import StepSize

__all__ = ["prox_"]


@without_grad
def prox_(
    term: Term,
    optimizer: Optimizer,
    strength: float,
    clock: Callable[[], int],
    metric: Metric = "optimizer",
    factors: Mapping[int, float] = MappingProxyType({}),
    ridges: dict[int, float | Tensor] | None = None,
) -> None:
    """``w ← prox(w)`` for each tensor that ``optimizer`` has just stepped, its zeros held by dual averaging.

    16-bit weights are rounded stochastically, by bits that ``clock``, the optimizer steps taken, decides.
    ``factors`` are those by which the gradients were clipped, see :mod:`lightning_reg.apply.clipped`.
    ``ridges`` are, by identity of a weight, the quadratics that have acted on it in this step, whose sum with
    this one is thus exact, see :meth:`StepSize.beside <lightning_reg.tensors.steps.StepSize.beside>`.
    """
    if strength == 0.0 or found_inf(optimizer):
        return
    sizes = step_sizes if metric == "optimizer" else euclidean_step_sizes
    weights: list[Tensor] = []
    steps: list[StepSize] = []
    for group, parameters in term.stepped(optimizer):  # in one call: a group of weights may span several
        weights += parameters
        whole = sizes(optimizer, group, parameters)
        steps += clipped_steps(key_of(term), optimizer, group, parameters, whole, factors)
    if not weights:
        return
    if ridges is not None:
        steps = _beside(ridges, term, weights, steps, strength)
    if term.in_use.computed:
        term.mask_(weights)
    floors = Floors(term, weights)
    in_rows = prox_rows_(term, optimizer, weights, steps, strength)
    if in_rows:
        here = [i for i, weight in enumerate(weights) if id(weight) not in in_rows]
        weights, steps = [weights[i] for i in here], [steps[i] for i in here]
    left = hold_(term, optimizer, weights, steps, strength)
    weights, steps = [weights[i] for i in left], [steps[i] for i in left]
    for bound, some, theirs in rounded_after(term, weights, steps, clock) if weights else ():
        bound.prox_(some, strength, theirs)
    floors.put_back_()
    term.observe()


def _beside(
    ridges: dict[int, float | Tensor],
    term: Term,
    weights: list[Tensor],
    steps: list[StepSize],
    strength: float,
) -> list[StepSize]:
    """Shorten the steps by the quadratics that have acted, and note the term's own."""
    if ridges:
        steps = [s.beside(ridges.get(id(w), 0.0)) for w, s in zip(weights, steps, strict=True)]
    if type(term.bound).ridge is not Bound.ridge:
        for weight in weights:
            ridges[id(weight)] = ridges.get(id(weight), 0.0) + term.bound.ridge(weight, strength)
    return steps
