r"""How far weights are from solving a penalized problem.

:math:`w` solves :math:`\min f(w) + \Omega(w)` with both convex exactly if it is a fixed point of the proximal
gradient step, :math:`w = \operatorname{prox}_{\Omega}(w - \nabla f(w))`. The distance between both sides is
the residual; at a kink it is what the subgradient lacks, and without a penalty it is the gradient itself.

Reference: Parikh and Boyd, *Proximal Algorithms*, Foundations and Trends in Optimization 1(3), 2014, § 4.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_reg.apply import Term
from lightning_reg.tensors.steps import StepSize

__all__ = ["prox_of_step", "residual", "zero_strength"]


@torch.no_grad()
def prox_of_step(
    term: Term, weights: Sequence[nn.Parameter], gradients: Sequence[Tensor], strength: float
) -> list[Tensor]:
    r"""Return :math:`\operatorname{prox}_{\lambda\Omega}(w - g)` for each tensor; the weights stay."""
    kept = [weight.clone() for weight in weights]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.sub_(gradient)
    term.bound.prox_(weights, strength, [StepSize(1.0)] * len(weights))
    moved = [weight.clone() for weight in weights]
    for weight, before in zip(weights, kept, strict=True):
        weight.copy_(before)
    return moved


@torch.no_grad()
def residual(term: Term, gradients: Mapping[nn.Parameter, Tensor], strength: float) -> float:
    r"""Return :math:`\max|w - \operatorname{prox}_{\lambda\Omega}(w - g)|` over the tensors with a gradient.

    Args:
        term: the penalty on its module.
        gradients: of the loss alone, for each parameter that is trained.
        strength: λ.
    """
    chosen = [s.parameter for s in term.selected if s.parameter in gradients]
    moved = prox_of_step(term, chosen, [gradients[p] for p in chosen], strength)
    worst = [float((w - m).abs().max()) for w, m in zip(chosen, moved, strict=True) if w.numel()]
    others = set(gradients) - set(chosen)
    return max([*worst, *(float(gradients[p].abs().max()) for p in others if p.numel())], default=0.0)


@torch.no_grad()
def zero_strength(term: Term, weights: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> float:
    r"""Return the smallest λ with :math:`\operatorname{prox}_{\lambda\Omega}(-g) = 0`, for weights at zero.

    For L1 it is :math:`\max|g|`, for the group lasso :math:`\max_g\|g_g\|_2/\sqrt{|g|}`; found by bisection
    to the last bit, so that it holds for every penalty with a proximal operator.

    Raises:
        ValueError: no strength makes zeros.
    """

    def zeroed(strength: float) -> bool:
        return not any(bool(m.any()) for m in prox_of_step(term, weights, gradients, strength))

    high = max((float(g.abs().max()) for g in gradients if g.numel()), default=0.0)
    if high == 0.0:
        return 0.0
    for _ in range(40):
        if zeroed(high):
            break
        high *= 2.0
    else:
        raise ValueError(
            f"no strength of {type(term.penalty).__name__} makes a weight exactly zero; use L1, ElasticNet "
            "with l1_ratio > 0, or a group penalty, or give strengths= yourself"
        )
    ulp = torch.finfo(gradients[0].dtype).eps * high
    if not zeroed(high - ulp):  # as of L1, whose strength is the largest slope
        return high
    low, high = 0.0, high - ulp
    while low < (middle := 0.5 * (low + high)) < high:
        low, high = (low, middle) if zeroed(middle) else (middle, high)
    return high
