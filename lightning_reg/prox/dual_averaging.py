r"""Dual averaging with forgetting: zeros that the noise of mini-batches does not undo.

A proximal step sets a weight to zero where :math:`|w| \le \tau`, with :math:`\tau = \eta\lambda` for the
lasso. From zero, the optimizer's step takes the weight to :math:`w = -\eta g`, so that the question is
whether :math:`|g| \le \lambda`, asked of the gradient of one mini-batch. Noise answers it wrongly again and
again, however short the step. So the answer is taken from an average: with :math:`x = w/\tau` and a share
:math:`a_t` that falls with the number of steps,

.. math::
    s \leftarrow P\bigl((1 - a_t)\,s + a_t\,x\bigr), \qquad
    w \leftarrow \begin{cases} \operatorname{prox}(w) & \text{where } s \text{ is on the border} \\
    0 & \text{elsewhere,} \end{cases}

where :math:`P` projects on :math:`[-1, 1]`, or for groups on the unit ball of the dual norm. Of a weight that
keeps its sign, s stays on the border as long as :math:`|w| > \tau`, and this is the plain proximal step
itself. A weight at zero has in s an average of its own gradients, in units of λ, and leaves zero only when
that exceeds 1.

References:
    Nesterov, *Primal-Dual Subgradient Methods for Convex Problems*, Math. Program. 120, 2009; Xiao, *Dual
    Averaging Methods for Regularized Stochastic Learning and Online Optimization*, JMLR 11, 2010; Lee and
    Wright, *Manifold Identification in Dual Averaging for Regularized Stochastic Online Learning*, JMLR 13,
    2012.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lightning_reg.groups.layout import Layout
from lightning_reg.prox.group import etas_of
from lightning_reg.tensors.grad_mode import without_grad
from lightning_reg.tensors.precision import wide
from lightning_reg.tensors.steps import StepSize

__all__ = ["hold_bounds_", "hold_groups_", "hold_zeros_"]

#: Weights that are worked on together on the CPU, so that temporaries stay in a core's cache.
PIECE = 2**17
#: ``where(t > below, w, 0)`` for its arguments ``w, t, below``, in a fifth of the time on a CPU; NaN stays,
#: which ``hardshrink_backward`` would make 0.
_where_above = torch.ops.aten.threshold_backward.default
_where_above_ = torch.ops.aten.threshold_backward.grad_input
#: What a weight divided by its threshold is multiplied with at most: a threshold of 0 gives no NaN.
MOST = 1e30
#: The largest number below 1.
_BELOW_ONE = {dtype: 1.0 - torch.finfo(dtype).eps / 2 for dtype in (torch.float32, torch.float64)}


@without_grad
def hold_zeros_(weight: Tensor, average: Tensor, threshold: Tensor | float, share: float) -> None:
    r"""Set single weights to zero where the average says so; the proximal step comes after.

    Args:
        weight: changed in place, after the optimizer's step.
        average: s, shaped as ``weight``, in float32 or wider; changed in place.
        threshold: :math:`\tau`, up to which the proximal operator makes zeros; one number or a tensor.
        share: :math:`a_t` in (0, 1].

    >>> weight, average = torch.tensor([0.3, 0.3]), torch.tensor([1.0, 0.0])
    >>> hold_zeros_(weight, average, threshold=0.1, share=0.25)
    >>> weight, average
    (tensor([0.3000, 0.0000]), tensor([1.0000, 0.7500]))
    """
    whole = wide(weight)
    # of a network's size the calls take the time: there are as few as may be
    if isinstance(threshold, Tensor):
        ratio = torch.clamp(threshold, min=1.0 / MOST)
        torch.div(whole, ratio, out=ratio)
    else:
        ratio = whole * (1.0 / max(threshold, 1.0 / MOST))
    if ratio.dtype != average.dtype:
        ratio = ratio.to(average.dtype)
    # a lerp from 1 towards more than 1 is never rounded to less: what stays is not cut off
    average.lerp_(ratio, share)
    if average.is_complex():
        modulus = average.abs()
        weight.masked_fill_(modulus < 1.0 - 4 * torch.finfo(modulus.dtype).eps, 0.0)
        average.div_(modulus.clamp_(min=1.0))
        return
    average.clamp_(-1.0, 1.0)
    # the square of the largest number below 1 is no more than that number
    size, below = torch.square(average, out=ratio), _BELOW_ONE[average.dtype]
    if weight.dtype == average.dtype:
        _where_above_(weight, size, below, grad_input=weight)
    else:
        weight.copy_(_where_above(whole, size, below))


@without_grad
def hold_bounds_(weight: Tensor, average: Tensor, low: float, high: float, share: float) -> None:
    r"""Keep single weights at a bound where the average says so, and project them.

    The subgradients of an interval are below 0 at its low end, above 0 at the high one, and 0 between. So a
    weight at a bound leaves it when the average of its moves points inwards, however one batch moves it. The
    average is in units of the weight, since its sign alone decides: no step size enters.

    Args:
        weight: changed in place, after the optimizer's step.
        average: s, shaped as ``weight``, in float32 or wider; changed in place.
        low: the least that a weight may be, or ``-inf``.
        high: the most, or ``inf``.
        share: :math:`a_t` in (0, 1].

    >>> weight, average = torch.tensor([0.1, -0.1]), torch.tensor([-1.0, 0.0])
    >>> hold_bounds_(weight, average, low=0.0, high=1.0, share=0.5)
    >>> weight, average
    (tensor([0., 0.]), tensor([-0.4500, -0.0500]))
    """
    # signs are numbers to multiply with: torch's where and masked_fill take ten times as long on a CPU
    low_end, high_end = -math.inf if low > -math.inf else 0.0, math.inf if high < math.inf else 0.0
    average.clamp_(low_end, high_end)
    before = wide(weight).to(average.dtype)
    inside = before.clamp(low, high)
    moved = before - inside
    sign = average.sign()
    below, above = (sign.clamp(max=0.0), sign.clamp(min=0.0)) if low_end and high_end else (sign, sign)
    if low_end:
        moved.addcmul_(below, inside - low, value=-1.0)
    if high_end:
        moved.addcmul_(above, inside - high)
    average.lerp_(moved, share)
    if low_end and high_end:  # what leaves a bound begins anew
        average.clamp_(min=(above - 1.0).mul_(MOST), max=(below + 1.0).mul_(MOST))
    else:
        average.clamp_(low_end, high_end)
    weight.copy_(before.add_(average.sign(), alpha=MOST).clamp_(low, high))


@without_grad
def hold_groups_(
    tensors: Sequence[Tensor],
    layouts: Sequence[Layout],
    averages: Sequence[Tensor],
    steps: Sequence[StepSize],
    shares: Sequence[float],
    strength: float,
    prox: Callable[[Sequence[Tensor], Sequence[Layout]], None],
    *,
    together: bool,
    longest: float = float("inf"),
) -> None:
    r"""Set groups to zero where the average says so; the proximal step comes after.

    By Moreau's decomposition, the projection on the ball of the dual norm is what the proximal operator takes
    away, and groups inside the ball are those that it sets to zero.

    Args:
        tensors: changed in place, after the optimizer's step; they share their groups.
        layouts: one for each tensor.
        averages: s for each tensor, changed in place.
        steps: the step of every weight of each tensor.
        shares: :math:`a_t` for each tensor.
        strength: λ.
        prox: replaces views of tensors by the prox of the norm itself, with λ and the step 1.
        together: whether ``prox`` needs all groups at once, as where each has a threshold of its own.
        longest: what a longer step counts as.
    """
    for views, kept, moments in _pieces(tensors, layouts, averages, steps, together):
        if all(layout.is_empty(view) for layout, view in zip(layouts, views, strict=True)):
            continue
        etas = etas_of(steps, moments, views)
        for view, average, eta, share in zip(views, kept, etas, shares, strict=True):
            ratio = eta.clamp_(max=longest).mul_(strength).reciprocal_().clamp_(max=MOST).mul_(wide(view))
            average.lerp_(ratio.to(average.dtype), share)
        rests = [average.clone() for average in kept]
        prox(rests, layouts)
        for view, average, rest in zip(views, kept, rests, strict=True):
            average.sub_(rest)
            view.masked_fill_(rest == 0, 0.0)


def _pieces(
    tensors: Sequence[Tensor],
    layouts: Sequence[Layout],
    averages: Sequence[Tensor],
    steps: Sequence[StepSize],
    together: bool,
) -> Iterator[tuple[list[Tensor], list[Tensor], list[Sequence[Tensor]]]]:
    views = [layout.view(tensor) for layout, tensor in zip(layouts, tensors, strict=True)]
    kept = [layout.view(average) for layout, average in zip(layouts, averages, strict=True)]
    moments = [[layout.view(m) for m in step.tensors] for layout, step in zip(layouts, steps, strict=True)]
    if len(views) > 1 or together:
        yield views, kept, list(moments)
        return
    size = PIECE if views[0].is_cpu else 2**20
    for view, average, *some in layouts[0].pieces(views[0], kept[0], *moments[0], size=size):
        yield [view], [average], [some]
