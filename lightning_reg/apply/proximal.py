"""``apply="proximal"``: the proximal operator after the optimizer's step, in the optimizer's own metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType

from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.apply.clipped import clipped_steps
from lightning_reg.apply.dual_averaging import forgetting, hold_zeros_, key_of
from lightning_reg.apply.floors import Floors
from lightning_reg.apply.optimizers import euclidean_step_sizes, step_sizes
from lightning_reg.apply.rows import prox_rows_
from lightning_reg.apply.stochastic_rounding import act_rounded_
from lightning_reg.apply.term import Metric, Term, found_inf
from lightning_reg.penalties.bound import Bound
from lightning_reg.tensors.precision import without_grad
from lightning_reg.tensors.steps import StepSize

__all__ = ["prox_"]


@without_grad
def prox_(
    term: Term,
    optimizer: Optimizer,
    strength: float,
    step: int,
    metric: Metric = "optimizer",
    factors: Mapping[int, float] = MappingProxyType({}),
) -> None:
    """``w ← prox(w)`` for each tensor that ``optimizer`` has just stepped, its zeros held by dual averaging.

    16-bit weights are rounded stochastically, by bits that ``step``, the optimizer steps taken, decides.
    ``factors`` are those by which the gradients were clipped, see :mod:`lightning_reg.apply.clipped`.
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
    if weights:
        term.mask_(weights)
        floors = Floors(term, weights)
        in_rows = prox_rows_(term, optimizer, weights, steps, strength)
        if in_rows:
            left = [i for i, weight in enumerate(weights) if id(weight) not in in_rows]
            weights, steps = [weights[i] for i in left], [steps[i] for i in left]
        k = forgetting(term.dual_averaging)
        if k is not None and term.bound.holds_zeros:
            done = hold_zeros_(term, optimizer, weights, steps, strength, k)
            left = [i for i, weight in enumerate(weights) if id(weight) not in done]
            weights, steps = [weights[i] for i in left], [steps[i] for i in left]
        act_rounded_(partial(_prox_, strength), term.bound, weights, steps, step, term.place)
        floors.put_back_()
        term.observe()


def _prox_(strength: float, bound: Bound, weights: Sequence[Tensor], steps: Sequence[StepSize]) -> None:
    bound.prox_(weights, strength, steps)
