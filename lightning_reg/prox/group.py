r"""Proximal operators of Euclidean norms of groups, in one number's metric and in a diagonal one.

With a step :math:`\eta_j` for each weight, the prox of :math:`\mu\|x\|_2` in the metric :math:`1/\eta` is
zero where :math:`\|v/\eta\|_2 \le \mu`, and else :math:`x_j = v_j\,\theta/(\theta + \mu\eta_j)`, where
:math:`\theta = \|x\|_2` is the root of :math:`\phi(\theta) = \sum_j (v_j/(\theta + \mu\eta_j))^2 = 1`. Since
:math:`1/\sqrt\phi` is increasing and concave, Newton's method on :math:`1/\sqrt\phi - 1` climbs to the root
from any point below it; all groups climb together.

Everything works in place on lists of tensors that share their groups (one tensor, or coupled ones).

Reference: Deleu and Bengio, *Structured Sparsity Inducing Adaptive Optimizers for Deep Learning*, 2021; Moré
and Sorensen, *Computing a Trust Region Step*, SIAM J. Sci. Stat. Comput. 4(3), 1983, for the root.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_reg.groups.layout import Labels, Layout, Slices
from lightning_reg.prox._fused_groups import act_on_each_, act_on_groups_
from lightning_reg.prox.elementwise import soft_threshold
from lightning_reg.prox.root_by_moments import root_by_moments
from lightning_reg.tensors.grad_mode import without_grad
from lightning_reg.tensors.packs import scratch
from lightning_reg.tensors.precision import accumulator, norms, real_dtype, wide
from lightning_reg.tensors.steps import StepSize

__all__ = [
    "cut_to_cache",
    "etas_of",
    "group_norms",
    "group_weights",
    "largest_over",
    "per_weight",
    "shrink_each_in_metric_",
    "shrink_groups_",
    "shrink_groups_in_metric_",
    "shrink_views_",
    "shrink_with_etas_",
    "sum_over",
    "view_norms",
]

#: Newton steps at most: from the better of two lower bounds, over 20 decades of steps, 7 reached rounding.
NEWTON_STEPS = 7
#: Weights that are worked on together on the CPU, so that temporaries stay in a core's cache.
PIECE = 2**17
#: The same where there are no temporaries, and calls cost more than a cache that is missed.
NORM_PIECE = 2**18


def group_norms(tensors: Sequence[Tensor], layouts: Sequence[Layout]) -> Tensor:
    """Return the Euclidean norm of each group over all ``tensors``, ``(groups,)``; its gradient at 0 is 0."""
    return view_norms([layout.view(t) for layout, t in zip(layouts, tensors, strict=True)], layouts)


def view_norms(views: Sequence[Tensor], layouts: Sequence[Layout]) -> Tensor:
    """As :func:`group_norms`, of views of the tensors."""
    found = [layout.norm(view) for layout, view in zip(layouts, views, strict=True)]
    if len(found) == 1:
        return found[0]
    return norms(torch.stack([some.to(found[0].device) for some in found]), 0)


def group_weights(layouts: Sequence[Layout], like: Tensor, size_weighted: bool = True) -> float | Tensor:
    r"""Return :math:`\sqrt{|g|}`, sizes counted over all tensors: one number, or ``(groups,)``; else 1.

    Weights that are in no group have a weight of 0 in any case.
    """
    sizes: float | Tensor = 0.0
    for layout in layouts:
        some = layout.sizes
        sizes = sizes + (some.to(like.device) if isinstance(some, Tensor) else some)
    if isinstance(sizes, Tensor):
        dtype = accumulator(like.dtype) or real_dtype(like.dtype)
        return (sizes if size_weighted else sizes.clamp(max=1.0)).to(dtype).sqrt()
    return float(sizes) ** 0.5 if size_weighted else 1.0


@without_grad
def shrink_groups_(tensors: Sequence[Tensor], layouts: Sequence[Layout], threshold: float | Tensor) -> None:
    r"""Prox of :math:`\sum_g \tau_g\|w_g\|_2`: :math:`w_g \leftarrow w_g\max(1 - \tau_g/\|w_g\|_2, 0)`.

    Args:
        tensors: changed in place; they share their groups.
        layouts: one for each tensor.
        threshold: :math:`\tau`, one number or ``(groups,)``.

    >>> from lightning_reg.groups.layout import Slices
    >>> weight = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    >>> shrink_groups_([weight], [Slices((2, 2), keep=(0,))], 2.5)
    >>> weight
    tensor([[1.5000, 2.0000],
            [0.0000, 0.0000]])
    """
    views = [layout.view(tensor) for layout, tensor in zip(layouts, tensors, strict=True)]
    if len(views) > 1 or isinstance(threshold, Tensor) or not views[0].is_cpu:
        shrink_views_(views, layouts, threshold)
        return
    for piece in layouts[0].pieces(views[0], size=NORM_PIECE):  # its second pass finds them in a cache
        shrink_views_(piece, layouts, threshold)


def shrink_views_(views: Sequence[Tensor], layouts: Sequence[Layout], threshold: float | Tensor) -> None:
    """As :func:`shrink_groups_`, of views of the tensors or of pieces of them."""
    norms = view_norms(views, layouts)
    # no group's norm divides by zero, and one of size 0, whose threshold is 0, stays as it is
    factor = 1.0 - threshold / norms.clamp_(min=torch.finfo(norms.dtype).tiny)
    factor.clamp_(min=0.0)
    for view, layout in zip(views, layouts, strict=True):
        view.mul_(layout.spread(factor.to(view.device), view))


@without_grad
def shrink_groups_in_metric_(
    tensors: Sequence[Tensor],
    layouts: Sequence[Layout],
    steps: Sequence[StepSize],
    threshold: float | Tensor,
    soft: float | Tensor = 0.0,
) -> None:
    r"""Prox of :math:`\sum_g \mu_g\|w_g\|_2 + \sigma\sum_i|w_i|` in the metric of the steps, in place.

    The two compose in a diagonal metric as they do in the plain one: soft-threshold, then shrink the groups.

    Args:
        tensors: changed in place; real; they share their groups.
        layouts: one for each tensor.
        steps: the step of every weight of each tensor.
        threshold: :math:`\mu`, one number or ``(groups,)``.
        soft: :math:`\sigma`, one number or ``(groups,)`` beside a threshold of that shape.
    """
    if not isinstance(soft, Tensor) and act_on_groups_(
        "shrink_groups", tensors, layouts, steps, threshold, soft
    ):
        return
    if all(step.second_moment is None and step.numerator == steps[0].numerator for step in steps):
        eta = steps[0].numerator
        if isinstance(soft, Tensor) or soft:
            for tensor, layout in zip(tensors, layouts, strict=True):
                view = layout.view(tensor)
                view.copy_(soft_threshold(view, per_weight(soft * eta, layout, view)))
        shrink_groups_(tensors, layouts, threshold * eta)
        return
    if len(tensors) == 1 and _shrink_one_group_(tensors[0], layouts[0], steps[0], threshold, soft):
        return
    for views, moments in cut_to_cache(tensors, layouts, steps, threshold):
        shrink_with_etas_(views, etas_of(steps, moments, views), layouts, threshold, soft)


@without_grad
def shrink_each_in_metric_(
    tensors: Sequence[Tensor], layouts: Sequence[Layout], steps: Sequence[StepSize], threshold: float
) -> None:
    r"""Prox of :math:`\mu\sum_g\|w_g\|_2` in the metric of the steps, of tensors that share no groups."""
    for i in act_on_each_("shrink_groups", tensors, layouts, steps, threshold, 0.0):
        shrink_groups_in_metric_([tensors[i]], [layouts[i]], [steps[i]], threshold)


def _shrink_one_group_(
    weight: Tensor, layout: Layout, step: StepSize, threshold: float | Tensor, soft: float | Tensor
) -> bool:
    """Shrink a group that is all of a tensor, a piece at a time; False where that would take a search."""
    if isinstance(threshold, Tensor) or isinstance(soft, Tensor) or soft or layout.count > 1:
        return False
    large = weight.is_cpu and weight.numel() > PIECE and weight.dtype in (torch.float32, torch.float64)
    if not large or not all(tensor.is_contiguous() for tensor in (weight, *step.tensors)):
        return False
    rows = [torch.split(tensor.view(-1), PIECE) for tensor in (weight, *step.tensors)]
    moments = [0.0] * 4
    for piece, *some in zip(*rows, strict=True):
        tau = step.on(some, out=scratch(0, piece), factor=threshold)
        product = torch.mul(piece, piece, out=scratch(1, piece))
        for power in range(4):
            moments[power] += float(product.sum())
            product.mul_(tau)
    squares, firsts, seconds, thirds = moments
    theta = root_by_moments(squares, firsts, seconds, thirds, torch.finfo(weight.dtype).eps)
    if theta < 0.0:
        return False
    for piece, *some in zip(*rows, strict=True):
        total = step.on(some, out=scratch(0, piece), factor=threshold).add_(theta)
        piece.mul_(torch.div(theta, total, out=total))
    return True


def cut_to_cache(
    tensors: Sequence[Tensor],
    layouts: Sequence[Layout],
    steps: Sequence[StepSize],
    threshold: float | Tensor,
) -> Iterator[tuple[list[Tensor], list[Sequence[Tensor]]]]:
    """Views of the tensors and of their steps' moments; cut to a cache where groups lie in one tensor."""
    views = [layout.view(tensor) for layout, tensor in zip(layouts, tensors, strict=True)]
    moments = [[layout.view(m) for m in step.tensors] for layout, step in zip(layouts, steps, strict=True)]
    if len(views) > 1 or isinstance(threshold, Tensor):
        yield views, list(moments)
        return
    for view, *some in layouts[0].pieces(views[0], *moments[0], size=PIECE if views[0].is_cpu else 2**62):
        yield [view], [some]


def etas_of(
    steps: Sequence[StepSize], moments: Sequence[Sequence[Tensor]], views: Sequence[Tensor]
) -> list[Tensor]:
    """The step of every weight, in float32 or wider."""
    return [
        torch.full_like(view, step.numerator, dtype=accumulator(view.dtype))
        if step.second_moment is None
        else step.on([wide(moment) for moment in some])
        for step, some, view in zip(steps, moments, views, strict=True)
    ]


def shrink_with_etas_(
    views: Sequence[Tensor],
    etas: Sequence[Tensor],
    layouts: Sequence[Layout],
    threshold: float | Tensor,
    soft: float | Tensor = 0.0,
) -> None:
    """As :func:`shrink_groups_in_metric_`, of views, all groups at once; ``etas`` are spent."""
    if all(layout.is_empty(view) for layout, view in zip(layouts, views, strict=True)):
        return
    device = views[0].device
    dtype = accumulator(views[0].dtype) or views[0].dtype
    tiny = torch.finfo(dtype).tiny
    parts = list(zip(layouts, views, etas, strict=True))
    values, taus = [], []
    for layout, view, eta in parts:
        value, eta = view.to(dtype), eta.to(dtype)
        if isinstance(soft, Tensor) or soft:
            value = soft_threshold(value, eta * per_weight(soft, layout, value))
        values.append(value)
        taus.append(eta.mul_(per_weight(threshold, layout, value)).clamp_(min=tiny))

    # φ ≥ (‖v‖/(θ + m))² by Jensen's inequality, with the mean m of μη weighted by v²; hence θ ≥ ‖v‖ - m
    length = view_norms(values, layouts)
    shares = [v / layout.spread(length.to(v.device), v) for layout, v in zip(layouts, values, strict=True)]
    theta = length - sum_over(layouts, [q.square_().mul_(tau) for q, tau in zip(shares, taus, strict=True)])
    # to look costs a wait for the device, and processes that share groups must take the same steps
    looks = device.type == "cpu" and all(isinstance(layout, (Slices, Labels)) for layout in layouts)
    alive = None  # all groups, where the bound is good enough to say so
    if not (looks and bool((theta > 0.5 * length).all())):
        both = list(zip(values, taus, strict=True))
        # ‖v/(μη)‖ > 1 says that the group stays; NaN stays NaN
        alive = ~(view_norms([v / tau for v, tau in both], layouts) <= 1.0)
        theta = torch.maximum(theta, largest_over(layouts, [v.abs().sub_(tau) for v, tau in both]))
        # from 0 no weight's v/(μη) is above 1; a dead group climbs from 1, to no effect
        theta = torch.where(alive, theta.clamp_(min=0.0), 1.0)
    theta, totals = _at_root(values, taus, layouts, theta, length, alive, looks)
    if alive is not None:
        theta = torch.where(alive, theta, 0.0)
    for layout, view, value, total in zip(layouts, views, values, totals, strict=True):
        view.copy_(value.mul_(layout.spread(theta.to(value.device), value) / total))


def _at_root(
    values: Sequence[Tensor],
    taus: Sequence[Tensor],
    layouts: Sequence[Layout],
    theta: Tensor,
    length: Tensor,
    alive: Tensor | None,
    looks: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Climb from a bound below the root θ; return it, and each weight's θ + μη.

    The slope of 1/√φ lies between 1/‖v‖ and 1/θ, so a step that takes it for 1/‖v‖ is wrong by a share of
    (‖v‖ - θ)/θ at most. Where the steps are short, that is less than rounding, and there is no other.
    """
    eps = torch.finfo(theta.dtype).eps
    for _ in range(NEWTON_STEPS):
        totals = _plus(taus, layouts, theta)
        quotients = [value / total for value, total in zip(values, totals, strict=True)]
        root = view_norms(quotients, layouts)
        if looks:
            climb = _where(alive, length - length / root)
            if bool((climb * (length - theta) <= 0.5 * eps * theta * theta).all()):
                theta = theta + climb
                break
        slope = sum_over(
            layouts, [q.square_().div_(total) for q, total in zip(quotients, totals, strict=True)]
        )
        climb = _where(alive, root.square() * (root - 1.0) / slope)
        theta = theta + climb
        # what is left to climb is the square of this, by the order of the method
        if looks and bool((climb <= eps**0.5 / 8 * theta).all()):
            break
    return theta, _plus(taus, layouts, theta)


def _plus(taus: Sequence[Tensor], layouts: Sequence[Layout], theta: Tensor) -> list[Tensor]:
    return [tau + layout.spread(theta.to(tau.device), tau) for layout, tau in zip(layouts, taus, strict=True)]


def _where(alive: Tensor | None, climb: Tensor) -> Tensor:
    return climb if alive is None else torch.where(alive, climb, 0.0)


def per_weight(number: float | Tensor, layout: Layout, view: Tensor) -> Any:
    """Return a number, or that of each weight's group, in the dtype of a view."""
    return layout.spread(number.to(view), view) if isinstance(number, Tensor) else number


def sum_over(layouts: Sequence[Layout], views: Sequence[Tensor]) -> Tensor:
    """Sum each group over all tensors, on the first one's device."""
    total = layouts[0].sum(views[0])
    for layout, view in zip(layouts[1:], views[1:], strict=True):
        total = total + layout.sum(view).to(total.device)
    return total


def largest_over(layouts: Sequence[Layout], views: Sequence[Tensor]) -> Tensor:
    """The largest entry of each group over all tensors, on the first one's device."""
    pairs = [(layout, view) for layout, view in zip(layouts, views, strict=True) if not layout.is_empty(view)]
    found = [layout.amax(view).to(views[0].device) for layout, view in pairs]
    return found[0] if len(found) == 1 else torch.stack(found).amax(0)
