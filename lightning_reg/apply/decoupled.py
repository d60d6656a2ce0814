"""``apply="decoupled"``: decay the weights apart from the optimizer's update, as AdamW does for L2."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_reg.apply.term import Term, found_inf
from lightning_reg.sharded import local_parts

__all__ = ["decay_"]


@torch.no_grad()
def decay_(term: Term, optimizer: Optimizer, strength: float) -> None:
    """``w ← w − lr · ∂Ω(w)`` for each tensor that ``optimizer`` is about to step.

    Before the update, as in Loshchilov and Hutter, *Decoupled Weight Decay Regularization*, ICLR 2019, and
    in ``torch.optim.AdamW``.
    """
    if strength == 0.0 or found_inf(optimizer):
        return
    by_rate: dict[float, list[nn.Parameter]] = {}
    for group, parameters in term.stepped(optimizer):
        by_rate.setdefault(float(group["lr"]), []).extend(parameters)
    if len(by_rate) > 1 and term.bound.couples:
        raise ValueError(
            "apply='decoupled' on coupled groups needs one learning rate for all their tensors, and the "
            f"optimizer's groups have {sorted(by_rate)}; use apply='gradient' or apply='proximal'"
        )
    for rate, parameters in by_rate.items():
        weights: list[Tensor] = local_parts(parameters) if term.bound.elementwise else [*parameters]
        term.bound.add_gradient_(weights, weights, strength, alpha=-rate)
