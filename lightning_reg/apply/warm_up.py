"""The loops that a penalty will run are compiled before the first step, and not inside of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_reg.apply.term import Apply, Term
from lightning_reg.groups.layout import Slices
from lightning_reg.penalties import GroupLasso, L2Norm, SparseGroupLasso
from lightning_reg.penalties.elementwise import ElementwisePenalty
from lightning_reg.prox.group import shrink_groups_in_metric_
from lightning_reg.tensors import fused
from lightning_reg.tensors.steps import StepSize

__all__ = ["warm_up"]

#: Seconds of compiling that a line is worth.
LONG = 2.0


@torch.no_grad()
def warm_up(term: Term, apply: Apply, weights: Sequence[Tensor]) -> None:
    """Take a step on spare weights of each dtype that the loops will take; say so if that took long.

    Args:
        term: the penalty at work.
        apply: how it acts.
        weights: what it acts on.
    """
    started = time.perf_counter()
    penalty = term.penalty
    for dtype in fused.dtypes_of(weights):
        weight = torch.ones(2**7, fused.LARGE // 2**7, dtype=dtype)
        if isinstance(penalty, ElementwisePenalty) and penalty.loop(1.0) is not None:
            if apply == "proximal":
                penalty.prox_([weight], 1.0, [StepSize(1.0)])
            elif apply != "loss":
                penalty.add_gradient_([torch.ones_like(weight)], [weight], 1.0)
        elif apply == "proximal" and isinstance(penalty, (GroupLasso, SparseGroupLasso, L2Norm)):
            shrink_groups_in_metric_([weight], [Slices(tuple(weight.shape), (0,))], [StepSize(1.0)], 1.0)
    taken = time.perf_counter() - started
    if taken > LONG:
        logging.getLogger(__name__).warning(
            "numba took %.0f s to compile the loops of %s; later runs load them",
            taken,
            type(penalty).__name__,
        )
