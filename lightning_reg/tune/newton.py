r"""The solution of a penalized convex problem with few weights, by proximal Newton steps.

The loss of a linear model is nearly its parabola at the weights. So each step puts the minimum of the
parabola and the penalty in their place,

.. math::
    w^+ = \arg\min_u\; g^\top(u - w) + \tfrac12 (u - w)^\top H (u - w) + \sum_j \kappa_j|u_j|
        + \tfrac12\rho_j u_j^2,

and is shortened until the objective falls. Along a path the Hessian stays for as long as each step halves
the residual: for a squared loss, from the first point to the last.

References:
    Lee, Sun and Saunders, *Proximal Newton-Type Methods for Minimizing Composite Functions*, SIAM J. Optim.
    24(3), 2014; Lee, Battle, Raina and Ng, *Efficient Sparse Coding Algorithms*, NeurIPS 2006, for the
    minimum of the parabola.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_reg.penalties import Penalty
from lightning_reg.penalties.elementwise import ElementwisePenalty
from lightning_reg.tune._flat import Flat
from lightning_reg.tune._loss import mean_loss

__all__ = ["LARGEST", "Newton", "definite", "minimum_of_parabola"]

#: Weights in all up to which there is a Hessian.
LARGEST = 1024
#: Steps at a strength, and how often each is halved at most.
STEPS, HALVINGS = 50, 20
#: The share of the residual from which a step has taken too little off, and its Hessian is old.
SLOW = 0.5
#: Residuals that tell which weights are zero: this many times smaller than what speaks for it, or for all,
#: this share of the tolerance.
SURE, CLOSE = 10.0, 0.01
#: How far two losses may differ that are the same but for rounding.
ROUNDING = 1e-5


class Newton:
    """Solves one linear problem at one strength after another, each from where the last one has ended.

    Args:
        weights: of the problem.
        penalty: the one that is on them.
    """

    def __init__(self, weights: Flat, penalty: ElementwisePenalty) -> None:
        self.weights, self._penalty = weights, penalty
        self._hessian: Tensor | None = None
        self._bends: Tensor | None = None  # the diagonal of the last one
        self._last: _Look | None = None
        start = weights.weights()
        factors = weights.penalty_gradient(torch.ones_like(start), 1.0) / sum(penalty.soft(1.0) or (1.0,))
        weights.set(start)
        self._factors = factors.double().cpu()

    @classmethod
    def of(cls, weights: Flat, penalty: Penalty) -> Newton | None:
        """Return one for a problem of few real weights, in L1 and L2, whose loss is the same in training."""
        if not isinstance(penalty, ElementwisePenalty) or penalty.soft(1.0) is None:
            return None
        start = weights.weights()
        fits = len(start) <= LARGEST and not start.is_complex() and not weights.term.bound.follows_steps
        return cls(weights, penalty) if fits and _is_same_in_training(weights) else None

    def solve_(self, strength: float, goal: float) -> _Look:
        """Give the module the solution at ``strength``, and return it; above ``goal`` it is none."""
        kink, ridge = (self._factors * part for part in self._penalty.soft(strength) or (0.0, 0.0))
        now, is_new = self._here(kink, ridge), False
        for _ in range(STEPS):
            if now.residual <= goal and (now.residual <= CLOSE * goal or self._is_sure(now, kink)):
                break
            if self._hessian is None:
                self._hessian, is_new = definite(self.weights.hessian(now.tensor), now.tensor.dtype), True
            if self._hessian is None:  # the loss is not convex
                break
            self._bends = self._hessian.diagonal()
            slope = self._hessian @ now.weights - now.gradient
            bend = self._hessian + torch.diag(ridge) if ridge.any() else self._hessian
            ahead = minimum_of_parabola(bend, slope, kink, now.weights)
            halvings = 0 if now.residual <= goal else HALVINGS
            there = self._shortened(now, ahead, kink, ridge, halvings)
            if there is None and (is_new or now.residual <= goal):  # there is nothing left but rounding
                break
            if there is None or there.residual > SLOW * now.residual:
                self._hessian = None
            if there is not None:
                now, is_new = there, False
        self.weights.set(now.tensor)
        self._last = now
        return now

    def _here(self, kink: Tensor, ridge: Tensor) -> _Look:
        """Look at the weights of the module, whose gradient is known where it has stayed as it was left."""
        tensor, last = self.weights.weights(), self._last
        if last is None or not torch.equal(tensor, last.tensor):
            return self._look(tensor, kink, ridge)
        return _Look.of(last.tensor, last.weights, last.gradient, last.loss, kink, ridge)

    def _is_sure(self, now: _Look, kink: Tensor) -> bool:
        """Whether an error of the residual's size would leave each zero and each other weight what it is."""
        if self._bends is None:
            return True
        for_it = torch.where(now.weights != 0, now.weights.abs() * self._bends, kink - now.gradient.abs())
        return bool(((for_it > SURE * now.residual) | (kink == 0)).all())

    def _shortened(
        self, now: _Look, ahead: Tensor, kink: Tensor, ridge: Tensor, halvings: int
    ) -> _Look | None:
        """Where the objective is smaller, or the residual much: there, or half way, or half of that."""
        for _ in range(1 + halvings):
            there = self._look(ahead, kink, ridge)
            if there.objective < now.objective or there.residual < 0.5 * now.residual:
                return there
            ahead = now.weights.lerp(ahead, 0.5)
        return None

    def _look(self, weights: Tensor, kink: Tensor, ridge: Tensor) -> _Look:
        tensor = weights.to(self.weights.parameters[0])
        gradient = self.weights.gradient(tensor).double().cpu()
        return _Look.of(tensor, tensor.double().cpu(), gradient, self.weights.value, kink, ridge)


class _Look(NamedTuple):
    """Weights as the module has them, and what was found there."""

    tensor: Tensor
    weights: Tensor
    gradient: Tensor
    loss: float
    objective: float
    residual: float

    @classmethod
    def of(
        cls, tensor: Tensor, weights: Tensor, gradient: Tensor, loss: float, kink: Tensor, ridge: Tensor
    ) -> _Look:
        """Return it with the objective, and the residual of a proximal gradient step."""
        penalty = kink @ weights.abs() + 0.5 * (ridge @ weights.square())
        moved = weights - gradient
        moved = moved.sub_(moved.clamp(-kink, kink)).div_(1.0 + ridge)
        residual = float((weights - moved).abs().max())
        return cls(tensor, weights, gradient, loss, loss + float(penalty), residual)


def minimum_of_parabola(hessian: Tensor, slope: Tensor, kink: Tensor, start: Tensor) -> Tensor:
    r"""Return :math:`\arg\min_w \tfrac12 w^\top H w - b^\top w + \sum_j\kappa_j|w_j|`.

    The signs of the weights are guessed, and the parabola that goes with them is solved. A weight that would
    cross zero stays there; a zero whose slope exceeds its kink gets a sign. The objective falls in each
    round, so that no guess comes twice.

    Args:
        hessian: H, symmetric and positive definite, ``(n, n)``.
        slope: b, ``(n,)``.
        kink: κ ≥ 0, ``(n,)``.
        start: where to begin, ``(n,)``.

    >>> minimum_of_parabola(torch.eye(2), torch.tensor([3.0, 0.5]), torch.ones(2), torch.zeros(2))
    tensor([2., 0.])
    """

    def objective(weights: Tensor) -> float:
        return float((0.5 * (hessian @ weights) - slope) @ weights + kink @ weights.abs())

    weights, signs, kinked = start.clone(), start.sgn(), kink > 0
    active = (weights != 0) | ~kinked
    width = len(slope)
    for _ in range(100 + 10 * len(slope)):
        chosen = active.nonzero().flatten()
        factor = torch.linalg.cholesky_ex(hessian[chosen[:, None], chosen]).L
        ahead = weights.clone()
        ahead[chosen] = torch.cholesky_solve((slope - kink * signs)[chosen, None], factor).flatten()
        crossed = active & kinked & (ahead * signs < 0)
        if bool(crossed.any()):
            entered = crossed & (weights == 0)
            if bool(entered.any()):  # too many at once: with the others there, these want the other sign
                active &= ~entered
                width = max(1, width // 2)
                continue
            there = ahead.masked_fill(crossed, 0.0)
            if not objective(there) < objective(weights):
                reach = (weights / (weights - ahead)).masked_fill(~crossed, float("inf"))
                there = weights.lerp(ahead, reach.min()).masked_fill(reach == reach.min(), 0.0)
            weights = there
            active &= (weights != 0) | ~kinked
            continue
        weights = ahead
        gradient = hessian @ weights - slope
        excess = (gradient.abs() - kink).masked_fill(active, -float("inf"))
        entering = (excess > 1e-10 * kink).nonzero().flatten()
        if not len(entering):
            break
        if len(entering) > width:
            entering = excess.topk(width).indices
        signs[entering] = -gradient[entering].sgn()
        active[entering] = True
    return weights


def definite(hessian: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Return a Hessian of numbers in ``dtype`` with what makes it positive definite; None if that is much."""
    hessian = 0.5 * (hessian + hessian.T)
    rounding = torch.finfo(dtype).eps * float(hessian.diagonal().max())
    for share in (4.0, 4e2, 4e4):
        found = hessian + torch.diag(torch.full_like(hessian.diagonal(), share * rounding))
        if not torch.linalg.cholesky_ex(found).info:
            return found
    return None


def _is_same_in_training(point: Flat) -> bool:
    """Whether training does what evaluation does: no layer that drops, and none that looks at its batch."""
    start = point.weights()
    point.set(start + torch.arange(1.0, 1.0 + len(start)).cos().to(start))  # at zero nobody could tell
    calm, *others = [mean_loss(point.module, point.batches, point.loss, mode) for mode in (False, True, True)]
    point.set(start)
    return all(abs(loss - calm) <= ROUNDING * abs(calm) for loss in others)
