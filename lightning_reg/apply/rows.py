r"""``apply="proximal"`` on sparse gradients, which name some rows of a table: an embedding's.

Adagrad and SparseAdam step the rows that a batch names, and know the step of no other. So the operator acts
on a row when a batch names it, for all the steps since the last time, m of them: with m times the step
:math:`\eta` of this one, and where zeros are averaged with the share that m steps have,

.. math::
    A = 1 - \prod_{j = t - m + 1}^{t} (1 - a_j).

A row that no batch has named yet stays as it is, and its clock begins when one does. The work goes with the
batch and not with the table. SGD takes one step for all weights, so that there all rows have each step.

References:
    Duchi and Singer, *Efficient Online and Batch Learning Using Forward Backward Splitting*, JMLR 10, 2009,
    § 5, for what missed steps amount to; McMahan et al., *Ad Click Prediction*, KDD 2013.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.apply.dual_averaging import forgetting, key_of
from lightning_reg.apply.term import Term
from lightning_reg.penalties.bound import Held
from lightning_reg.tensors.steps import StepSize

__all__ = ["prox_rows_"]

#: Weights that are worked on together, so that no binding cuts them further.
PIECE = 2**15


def prox_rows_(
    term: Term, optimizer: Optimizer, weights: Sequence[Tensor], steps: Sequence[StepSize], strength: float
) -> set[int]:
    """Act on the rows that a batch has named, of tensors with sparse gradients and a step for each weight.

    Returns:
        The ids of these tensors.
    """
    done: set[int] = set()
    if not term.has_rows:
        return done
    for weight, step in zip(weights, steps, strict=True):
        rows = term.rows_of(weight)
        if rows is None or step.second_moment is None:
            continue
        done.add(id(weight))
        if step.numerator == 0.0 or not len(rows):
            continue
        state, key = optimizer.state[weight], key_of(term)
        count = state[f"{key}/step"] = state.get(f"{key}/step", 0) + 1
        last = state.setdefault(f"{key}/rows", torch.zeros(len(weight), device=weight.device))
        k = forgetting(term.dual_averaging) if term.bound.holds_zeros else None
        average = None if k is None else state.setdefault(key, torch.zeros_like(weight))
        for some in torch.split(rows, max(1, PIECE // max(1, weight[0].numel()))):
            before = last[some].double()
            missed = torch.where(before > 0, count - before, 1.0)
            table = weight[some]
            spread = [-1] + [1] * (table.dim() - 1)
            eta: Any = step.taking([moment[some] for moment in step.tensors]).dense()
            size = StepSize.of(eta * missed.to(eta).view(spread))
            bound = term.bound.of_rows(weight, table)
            assert bound is not None  # checked before training
            if average is not None:
                kept = average[some]
                share: Any = _share(before, count, k or 1.0).to(kept).view(spread)
                bound.hold_zeros_(Held([table], [kept], [size], [share]), strength)
                average[some] = kept
            bound.prox_([table], strength, [size])
            weight[some] = table
        last[rows] = float(count)
    return done


def _share(before: Tensor, count: int, k: float) -> Tensor:
    r"""Return A; with :math:`1 - a_j = (j - 1)/(j + k - 1)` the product is one of gamma functions.

    >>> _share(torch.tensor([0.0, 3.0, 2.0], dtype=torch.float64), 4, 4.0)
    tensor([1.0000, 0.5714, 0.8571], dtype=torch.float64)
    """
    now = torch.full_like(before, count)
    since = before.clamp(min=1.0)
    logs = torch.lgamma(now) - torch.lgamma(since) - torch.lgamma(now + k) + torch.lgamma(since + k)
    return torch.where(before > 0, -torch.expm1(logs), 1.0)
