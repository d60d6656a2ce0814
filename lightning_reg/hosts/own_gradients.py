"""Whether an optimizer steps by the gradients that it is given, or by gradients of its own."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_reg.apply.term import Term
from lightning_reg.tensors.shards import is_sharded

__all__ = ["OwnGradients"]

#: Steps that are looked at; entries of a gradient, fewest that say something, and standard errors to be sure.
_STEPS = 3
_ENTRIES, _FEW, _SURE = 4096, 6, 6.0


class OwnGradients:
    """Looks, in its first steps, whether an optimizer steps by gradients of its own.

    What was added to the gradients before does not count then, or for less than it says. It shows where a
    backward pass runs inside the step, where another gradient is put in place, or where the gradient is
    overwritten by one without what was added.

    Args:
        term: what is added.
    """

    def __init__(self, term: Term) -> None:
        self._term = term
        self.left = _STEPS  # steps to look at
        self.said = False
        self._parameter: nn.Parameter | None = None
        self._gradient: Tensor | None = None
        self._before: Tensor | None = None  # the addition, and after it
        self._after: Tensor | None = None
        self._made = False
        self._hook: Any = None

    def look(self, optimizer: Optimizer) -> None:
        """Look at the gradients before anything is added, where they are complete."""
        self.end()
        found = [p for p in self._term.trainable(optimizer) if p.is_leaf and not is_sharded(p)]
        if found:
            self._parameter, self._before = found[0], _entries(found[0].grad)

    def begin(self) -> None:
        """Look from here; several times where the loss is evaluated so."""
        parameter: Any = self._parameter
        if parameter is not None:
            self._gradient, self._made = parameter.grad, False
            self._after = _entries(parameter.grad)
            self._hook = parameter.register_post_accumulate_grad_hook(self._see)

    def check(self, optimizer: Optimizer, assigned: bool) -> None:
        """Warn after the step, once; ``assigned``: also where it has put another gradient in place."""
        parameter = self._parameter
        if parameter is None:
            return
        other = parameter.grad is not None and parameter.grad is not self._gradient
        now = _entries(parameter.grad if other else self._gradient)
        made = self._made or _is_lost(self._before, self._after, now) or (assigned and other)
        self.end()
        self.left -= 1
        if made:
            self.left, self.said = 0, True
            warnings.warn(
                f"{self._term.penalty!r} may not count: {type(optimizer).__name__} makes gradients of its "
                "own inside its step; add penalty(model) to the loss that it differentiates",
                stacklevel=2,
            )

    def end(self) -> None:
        """Leave no trace."""
        if self._hook is not None:
            self._hook.remove()
        self._hook = self._parameter = self._gradient = self._before = self._after = None

    def _see(self, parameter: Tensor) -> None:
        self._made = True


def _entries(gradient: Tensor | None) -> Tensor | None:
    if gradient is None or gradient.layout != torch.strided or gradient.is_complex():
        return None
    return gradient.detach().flatten()[:_ENTRIES].to(torch.float64, copy=True)


def _is_lost(before: Tensor | None, after: Tensor | None, now: Tensor | None) -> bool:
    """Whether a gradient that has changed since follows what it was before the addition, and not the latter.

    By least squares: what is left of each, and how sure that is.
    """
    if before is None or after is None or now is None or len(now) < _FEW or len(now) != len(after):
        return False
    if torch.equal(now, after):
        return False
    parts = torch.stack([before, after - before], dim=1)
    lengths = parts.norm(dim=0)
    gram = (parts / lengths).T @ (parts / lengths)
    if not bool(gram.isfinite().all()) or float(gram[0, 1].abs()) > 1 - 1e-6:
        return False  # nothing was added, or a multiple
    inverse = torch.linalg.inv(gram)
    left = inverse @ ((parts / lengths).T @ now) / lengths
    rest = (now - parts @ left).square().sum() / (len(now) - 2)
    unsure = (rest * (inverse.diagonal() / lengths.square()).sum()).sqrt()
    of_loss, of_term = map(float, left)
    return of_term * of_loss < 0.3 * of_loss**2 and abs(of_loss - of_term) > _SURE * float(unsure)
