"""``apply="decoupled"``: decay the weights apart from the optimizer's update, as AdamW does for L2."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_reg.apply.gradient import add_to_
from lightning_reg.apply.optimizers import decay_rates
from lightning_reg.apply.stochastic_rounding import act_rounded_
from lightning_reg.apply.term import Term, found_inf
from lightning_reg.penalties.bound import Bound
from lightning_reg.tensors.precision import without_grad
from lightning_reg.tensors.steps import StepSize

__all__ = ["decay_"]


@without_grad
def decay_(term: Term, optimizer: Optimizer, strength: float, step: int) -> None:
    """``w ← w − lr · ∂Ω(w)`` for each tensor that ``optimizer`` is about to step; D-Adaptation's lr is d·lr.

    16-bit weights are rounded stochastically, by bits that ``step``, the optimizer steps taken, decides.

    Before the update, as in Loshchilov and Hutter, *Decoupled Weight Decay Regularization*, ICLR 2019, and
    in ``torch.optim.AdamW``.
    """
    if strength == 0.0 or found_inf(optimizer):
        return
    by_rate: dict[float, list[nn.Parameter]] = {}
    for group, parameters in term.stepped(optimizer):
        for parameter, rate in zip(parameters, decay_rates(optimizer, group, parameters), strict=True):
            by_rate.setdefault(rate, []).append(parameter)
    if len(by_rate) > 1 and term.bound.couples:
        raise ValueError(
            "apply='decoupled' on coupled groups needs one learning rate for all their tensors, and the "
            f"optimizer's groups have {sorted(by_rate)}; use apply='gradient' or apply='proximal'"
        )
    for rate, parameters in by_rate.items():
        term.mask_(parameters)
        if any(term.in_use.through_map(p) for p in parameters):
            through = [p for p in parameters if term.bound.couples or term.in_use.through_map(p)]
            add_to_(term, through, lambda p: p, strength, -rate)
            parameters = [p for p in parameters if all(p is not done for done in through)]
        sizes = [StepSize(rate)] * len(parameters)
        act_rounded_(partial(_decay_, strength), term.bound, parameters, sizes, step, term.place)


def _decay_(strength: float, bound: Bound, weights: Sequence[Tensor], sizes: Sequence[StepSize]) -> None:
    bound.add_gradient_(weights, weights, strength, alpha=-sizes[0].numerator)
