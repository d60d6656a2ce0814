"""Gradients that look clipped where nobody has said by how much."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.tensors.shards import is_sharded, local, max_over_shards

__all__ = ["BY_VALUE", "SeemsClipped", "norms_of_gradients"]

BY_VALUE = (
    "clipping by value changes the direction of gradients, so that apply='proximal' solves another problem "
    "than the one stated; clip by norm"
)
BY_NORM = (
    "every gradient has the norm {norm:.4g}, as after clipping; apply='proximal' takes λ for λ only where it "
    "sees by how much: clip in `with handle.clipping():`, or in Lightning by self.clip_gradients"
)


class SeemsClipped:
    """Warns where the gradients of steps in a row have one norm, or one largest entry that several share.

    It does not look at sharded gradients: their norms need the other processes, at each step.
    """

    #: Steps that it looks at.
    LOOKS = 12
    #: Steps in a row that are alike.
    ENOUGH = 3

    def __init__(self) -> None:
        self.looks = 0
        self._same = [0, 0]  # steps in a row of one norm, and of one largest entry
        self._before = -1.0, -1.0
        self._direction: Tensor | None = None

    @torch.no_grad()
    def look(self, optimizer: Optimizer) -> None:
        """Look at the gradients of a step just before the update, whose clipping nobody has measured."""
        if self.looks == self.LOOKS:
            return
        self.looks += 1
        held = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not held or any(p.grad.is_sparse or is_sharded(p.grad) for p in held):
            return
        norms = norms_of_gradients(held)
        norm, steepest = math.hypot(*norms), held[max(range(len(norms)), key=norms.__getitem__)].grad
        if not 0.0 < norm < math.inf:
            return
        largest = steepest.abs().max()
        # an entry that is the largest alone may be the same by chance: a bias under an absolute error
        bound = float(largest) if int((steepest.abs() == largest).sum()) > 1 else math.nan
        direction = steepest.flatten()[:1000].clone()
        turned = (
            self._direction is not None
            and self._direction.shape == direction.shape
            and bool(((direction - self._direction).abs() > 1e-3 * norm).any())
        )
        alike = [
            (turned or _is_cut(norm)) and abs(norm - self._before[0]) <= 1e-5 * norm,
            turned and bound == self._before[1],
        ]
        self._same = [count + 1 if same else 0 for count, same in zip(self._same, alike, strict=True)]
        self._before, self._direction = (norm, bound), direction
        if self.ENOUGH in self._same:
            self.looks = self.LOOKS
            by_norm = self._same[0] == self.ENOUGH
            warnings.warn(BY_NORM.format(norm=norm) if by_norm else BY_VALUE, stacklevel=2)
        if self.looks == self.LOOKS:
            self._direction = None


def _is_cut(norm: float) -> bool:
    """Whether a norm is a little less than a number that one writes: torch divides by the norm and 1e-6."""
    return 1e-7 < 1.0 - norm / float(f"{norm:.2g}") < 1e-5


@torch.no_grad()
def norms_of_gradients(parameters: Sequence[Tensor], order: float = 2.0) -> list[float]:
    """The norm of each gradient, over all processes that hold a part of it."""
    found: list[Tensor] = []
    for parameter in parameters:
        gradient = parameter.grad
        assert gradient is not None
        values = gradient.coalesce().values() if gradient.is_sparse else gradient
        if order == math.inf:  # which an empty part has not
            mine = local(values)
            largest = mine.abs().max() if mine.numel() else mine.new_zeros(())
            found.append(max_over_shards(largest, values) if is_sharded(values) else largest)
            continue
        dtype = torch.float32 if values.dtype in (torch.float16, torch.bfloat16) else None
        norm: Any = torch.linalg.vector_norm(values, order, dtype=dtype)
        found.append(norm.full_tensor() if is_sharded(norm) else norm)
    if not found:
        return []
    stacked: list[float] = torch.stack([n.to(found[0].device, torch.float64) for n in found]).tolist()
    return stacked
