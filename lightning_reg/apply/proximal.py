"""``apply="proximal"``: the proximal operator after the optimizer's step, in the optimizer's own metric."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.apply.term import Metric, Term, found_inf
from lightning_reg.penalties.bound import Bound
from lightning_reg.rounding import act_rounded_
from lightning_reg.step_size import StepSize, euclidean_step_size, has_one_step, step_size

__all__ = ["prox_"]


@torch.no_grad()
def prox_(term: Term, optimizer: Optimizer, strength: float, step: int, metric: Metric = "optimizer") -> None:
    """``w ← prox(w)`` for each tensor that ``optimizer`` has just stepped.

    16-bit weights are rounded stochastically, by bits that ``step``, the optimizer steps taken, decides.
    """
    if strength == 0.0 or found_inf(optimizer):
        return
    size = step_size if metric == "optimizer" else euclidean_step_size
    one_step = metric == "euclidean" or has_one_step(optimizer)
    weights: list[Tensor] = []
    steps: list[StepSize] = []
    for group, parameters in term.stepped(optimizer):  # in one call: a group of weights may span several
        weights += parameters
        if one_step:
            steps += [size(optimizer, group, parameters[0])] * len(parameters)
        else:
            steps += [size(optimizer, group, parameter) for parameter in parameters]
    if weights:
        act_rounded_(partial(_prox_, strength), term.bound, weights, steps, step, term.place)
        term.observe()


def _prox_(strength: float, bound: Bound, weights: Sequence[Tensor], steps: Sequence[StepSize]) -> None:
    bound.prox_(weights, strength, steps)
