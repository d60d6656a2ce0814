r"""Projections of weights onto a set, in place: what holds exactly after every step.

Each gives the nearest point of the set in the plain Euclidean metric; :func:`spend_budget_` draws near it.
Weights may be sharded; their layout is then that of the part at hand, see
:func:`~lightning_reg.groups.spanning.local_layout`.

References: Srivastava et al., *Dropout*, JMLR 15, 2014, for max-norm; Franke, Hefenbrock, Koehler and Hutter,
*Improving Deep Learning Optimization through Constrained Parameter Regularization*, NeurIPS 2024, for the
budget; Duchi et al., *Efficient Projections onto the l1-Ball for Learning in High Dimensions*, ICML 2008, for
the ball and the simplex; Eckart and Young, *The Approximation of One Matrix by Another of Lower Rank*,
Psychometrika 1(3), 1936.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_reg.groups.layout import Layout
from lightning_reg.prox.elementwise import soft_threshold
from lightning_reg.tensors.grad_mode import without_grad
from lightning_reg.tensors.precision import sum_of_squares, wide
from lightning_reg.tensors.shards import local, over_shards, part, whole
from lightning_reg.tensors.spectra import as_matrix, svd

__all__ = ["box_", "l1_ball_", "max_norm_", "max_rank_", "simplex_", "spend_budget_", "unit_norm_"]


@without_grad
def max_norm_(weight: Tensor, layout: Layout, limit: float) -> None:
    r"""Shorten groups whose norm is above the limit: :math:`w_g \leftarrow w_g\min(1, c/\|w_g\|_2)`.

    >>> from lightning_reg.groups.layout import Slices
    >>> weight = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    >>> max_norm_(weight, Slices((2, 2), keep=(0,)), 1.0)
    >>> weight
    tensor([[0.6000, 0.8000],
            [0.3000, 0.4000]])
    """
    view = layout.view(local(weight))
    norms = layout.norm(view)
    factor = torch.where(norms > limit, limit / norms, 1.0)
    view.mul_(layout.spread(factor, view))


@without_grad
def unit_norm_(weight: Tensor, layout: Layout) -> None:
    r"""Give every group a norm of 1: :math:`w_g \leftarrow w_g/\|w_g\|_2`; a zero group stays zero.

    >>> from lightning_reg.groups.layout import Slices
    >>> weight = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    >>> unit_norm_(weight, Slices((2, 2), keep=(0,)))
    >>> weight
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    view = layout.view(local(weight))
    norms = layout.norm(view)
    view.div_(layout.spread(torch.where(norms > 0, norms, 1.0), view))


@without_grad
def box_(weight: Tensor, low: float, high: float) -> None:
    """Clip every weight to ``[low, high]``; an infinite end is none.

    >>> weight = torch.tensor([-2.0, 0.5])
    >>> box_(weight, 0.0, float("inf"))
    >>> weight
    tensor([0.0000, 0.5000])
    """
    local(weight).clamp_(low, high)


@without_grad
def l1_ball_(weight: Tensor, radius: float) -> None:
    r"""Project on :math:`\sum_i |w_i| \le r`: a soft threshold at the least θ that suffices.

    With the moduli in falling order, :math:`\theta = \max_k \bigl(\sum_{i \le k}|w_{(i)}| - r\bigr)/k`. A
    weight in the ball stays as it is, to the last bit.

    >>> weight = torch.tensor([3.0, -1.0, 0.5])
    >>> l1_ball_(weight, 2.5)
    >>> weight
    tensor([ 2.2500, -0.2500,  0.0000])
    """
    full = wide(whole(weight))
    if not full.numel():
        return
    theta = _level(full.abs(), radius).clamp(min=0.0)
    local(weight).copy_(part(torch.where(theta > 0, soft_threshold(full, theta), full), weight))


@without_grad
def simplex_(weight: Tensor, radius: float) -> None:
    r"""Project on :math:`w_i \ge 0, \sum_i w_i = r`: :math:`\max(w - \theta, 0)` adds up to r.

    θ is that of :func:`l1_ball_` with the weights themselves for their moduli, and may be negative. A weight
    on the simplex, but for the rounding of its sum, stays as it is.

    >>> weight = torch.tensor([3.0, -1.0, 2.5])
    >>> simplex_(weight, 1.0)
    >>> weight
    tensor([0.7500, 0.0000, 0.2500])
    """
    full = wide(whole(weight))
    if not full.numel():
        return
    shares = (full - _level(full, radius)).clamp_(min=0.0)
    stay = ~(shares <= 0.0)
    # what large weights have lost to rounding
    shares = torch.where(stay, shares - (shares.sum() - radius) / stay.sum(), 0.0)
    off = (full.sum() - radius).abs() > 8 * torch.finfo(full.dtype).eps * radius
    local(weight).copy_(part(torch.where(off | (full.amin() < 0.0), shares, full), weight))


def _level(values: Tensor, total: float) -> Tensor:
    """The θ at which what is left of the values above it adds up to ``total``."""
    sums = values.flatten().sort(descending=True).values.cumsum(0)
    counts = torch.arange(1, len(sums) + 1, device=sums.device, dtype=sums.dtype)
    return ((sums - total) / counts).max()


@without_grad
def max_rank_(weight: Tensor, rank: int) -> None:
    """Keep the largest singular values of ``(out, rest)``; a weight of such a rank stays as it is.

    >>> weight = torch.diag(torch.tensor([3.0, 1.0]))
    >>> max_rank_(weight, 1)
    >>> weight
    tensor([[3., 0.],
            [0., 0.]])
    """
    full = whole(weight)
    matrix = as_matrix(full)
    if min(matrix.shape) <= rank:
        return
    u, sigma, v = svd(matrix)
    lower = (u[:, :rank] * sigma[:rank]) @ v[:rank]
    # as torch.linalg.matrix_rank has it
    over = sigma[rank] > sigma[0] * max(matrix.shape) * torch.finfo(sigma.dtype).eps
    result = torch.where(over, lower, matrix).to(full.dtype).view(full.shape)
    local(weight).copy_(part(result, weight))


@without_grad
def spend_budget_(weight: Tensor, multiplier: Tensor, budget: Tensor, rate: float) -> None:
    r"""One step of an augmented Lagrangian for :math:`R(w) = \tfrac12\|w\|_2^2 \le \kappa`.

    :math:`\lambda \leftarrow \max(0, \lambda + \tfrac\mu\kappa(R(w) - \kappa))`, then
    :math:`w \leftarrow w - \lambda w`: weight decay of a strength that is found, and is 0 within the budget.

    Args:
        weight: changed in place.
        multiplier: λ, a scalar, changed in place.
        budget: κ, a scalar.
        rate: μ.

    >>> weight, multiplier = torch.tensor([3.0, 4.0]), torch.tensor(0.0)
    >>> spend_budget_(weight, multiplier, torch.tensor(10.0), rate=0.1)
    >>> weight, multiplier
    (tensor([2.9250, 3.9000]), tensor(0.0250))
    """
    energy = over_shards(sum_of_squares, weight) * 0.5
    excess = energy / budget.clamp(min=torch.finfo(budget.dtype).tiny) - 1.0
    # a jump of the weights must not turn their signs
    multiplier.add_(excess * rate).clamp_(min=0.0, max=1.0)
    local(weight).mul_((1.0 - multiplier).to(weight.dtype))
