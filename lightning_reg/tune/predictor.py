r"""Where the next point of a path lies, as the weights at this one tell.

At a solution the weights that are not zero satisfy :math:`\nabla f(w) + \partial\Omega_\lambda(w) = 0`,
which is smooth in :math:`w` and :math:`\lambda`. One Newton step on them, at the next strength, follows the
path's curve; where a weight crosses zero it leaves, and where the proximal operator lets one in it enters.
The optimizer then corrects what is left.

Reference: Park and Hastie, *L1-regularization path algorithm for generalized linear models*, Journal of the
Royal Statistical Society B 69(4), 2007, § 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg.apply import Term
from lightning_reg.tune._flat import Flat
from lightning_reg.tune._loss import Loss

__all__ = ["predict_"]

#: Newton steps: for the path's curve, for weights that enter or leave, and once more.
ROUNDS = 3


def predict_(
    module: nn.Module,
    term: Term,
    batches: Iterable[Any],
    loss: Loss,
    strength: float,
    tolerance: float,
    limit: int,
) -> int:
    """Move the weights from the solution at one strength to about that at another.

    They stay where they are if nothing that was tried has a smaller residual.

    Args:
        module: at a solution.
        term: the penalty on it.
        batches: of the data.
        loss: ``(module, batch) -> loss``, a mean over the batch.
        strength: the next λ.
        tolerance: a residual that is small enough.
        limit: of gradients in one Newton step, which is then shorter: what an optimizer may take, too.

    Returns:
        How many gradients of the whole data it took.
    """
    point = Flat(module, term, batches, loss)
    weights = point.weights()
    support = (weights != 0) | ~point.chosen
    nearest, found = float("inf"), weights
    solved = False  # on this support: only then does the proximal operator tell what enters
    for left in reversed(range(ROUNDS + 1)):
        gradient = point.gradient(weights)
        moved = point.proximal_step(weights, gradient, strength)
        if (distance := float((weights - moved).abs().max())) < nearest:
            nearest, found = distance, weights
        if left == 0 or distance <= tolerance:
            break
        if solved:
            weights, gradient, support = _exchanged(point, weights, gradient, moved, support)
        slope = (gradient + point.penalty_gradient(weights, strength)) * support
        times = partial(_curvature, point, weights, slope, support, strength)
        ahead = weights + _conjugate_gradients(times, -slope, limit)
        crossed = support & point.chosen & (ahead.sgn() != weights.sgn())
        if not term.bound.elementwise:  # a weight in a group may change its sign
            crossed = torch.zeros_like(crossed)
        weights, support, solved = ahead * ~crossed, support & ~crossed, not bool(crossed.any())
    point.set(found)
    module.zero_grad()
    return point.gradients


def _exchanged(
    point: Flat, weights: Tensor, gradient: Tensor, moved: Tensor, support: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Let in what the proximal step moves away from zero, and out what it moves there."""
    entering, leaving = (moved != 0) & ~support, (moved == 0) & support & point.chosen
    if not bool((entering | leaving).any()):
        return weights, gradient, support
    step = moved * entering
    if bool(entering.any()):  # its length: to the minimum of the parabola along it
        bend = float(step @ _curvature(point, weights, gradient * entering, entering, None, step))
        step *= float(step @ step) / bend if bend > 0.0 else 0.0
    weights = (weights + step) * ~leaving
    return weights, point.gradient(weights), (support | entering) & ~leaving


def _curvature(
    point: Flat, weights: Tensor, slope: Tensor, support: Tensor, strength: float | None, direction: Tensor
) -> Tensor:
    """Return the Hessian on the support times a direction: how far the gradient is from ``slope``.

    That of the penalty counts where there is a ``strength``.
    """
    epsilon = torch.finfo(weights.dtype).eps ** 0.5 * (1.0 + float(weights.norm())) / float(direction.norm())
    there = weights + epsilon * direction
    ahead = point.gradient(there)
    if strength is not None:
        ahead = ahead + point.penalty_gradient(there, strength)
    found: Tensor = (ahead * support - slope) / epsilon
    return found


def _conjugate_gradients(
    times: Callable[[Tensor], Tensor], target: Tensor, limit: int, accuracy: float = 1e-4
) -> Tensor:
    """Return x with ``times(x) = target``, or as far as the limit goes and the curvature is positive."""
    found, rest = torch.zeros_like(target), target.clone()
    direction, size = rest.clone(), float(rest @ rest)
    goal = accuracy**2 * size
    for _ in range(min(limit, int((target != 0).sum()) + 2)):
        if size <= goal or size == 0.0:
            break
        image = times(direction)
        bend = float(direction @ image)
        if bend <= 0.0:
            break
        found += size / bend * direction
        rest -= size / bend * image
        size, before = float(rest @ rest), size
        direction = rest + size / before * direction
    return found
