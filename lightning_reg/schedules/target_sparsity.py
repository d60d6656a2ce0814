"""A strength that finds itself: the one that leaves a wanted share of zeros."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from lightning_reg.schedules.base import Position, Schedule, in_steps
from lightning_reg.schedules.floors import check_floor

__all__ = ["Controller", "TargetSparsity"]

#: Looks of a ramp, at least: what is steered at fewer swings between none and all.
_LOOKS = 20
#: Where on the way to ``until`` the size of the last weight to be cut arrives at zero; the share comes later.
_ARRIVAL = 0.8
#: How far below the line that size may be; the strength would fall for long, and then be missing.
_BELOW = 0.8


@dataclass(frozen=True)
class TargetSparsity(Schedule):
    r"""A strength that adapts until a given share of weights, or of groups, is zero.

    Nothing is penalized before ``begin``. From there on the strength is steered so that the weight (or
    group) that is to be the last one cut shrinks on a straight line to zero, at four fifths of the way to
    ``until``; then the share itself is steered. Shortly after ``until`` a warning says, layer by layer,
    where it was missed by more than 2 points. It works with ``apply="proximal"``, which makes zeros; what it
    has found is kept in checkpoints.

    Args:
        share: s in (0, 1), the share of zeros wanted.
        initial: λ to start from, above 0. A good guess saves time; one 1000 times off is found all the same.
        begin: where it starts, a fraction of the run or an optimizer step.
        until: where the share is to be reached.
        of: count ``"weights"`` or ``"groups"``; groups where None and the penalty has some.
        every: optimizer steps from one look at the weights to the next; fewer where fewer than 20 looks would
            lie between ``begin`` and ``until``.
        gain: how far :math:`\log\lambda` may move between ``begin`` and ``until``.
        floor: how many groups of each layer, or weights of each tensor, always stay, a number or a share of
            them. Where None, of groups half as many as an even cut would leave, and one weight of a tensor.
            At 0 a whole layer may die, which only a network with a way around it survives. The groups that
            stay, the largest of their layer, are not shrunk either.

    Raises:
        ValueError: one of these out of its range.

    >>> from lightning_reg import L1
    >>> L1(TargetSparsity(0.9), select="encoder.*").strength.share
    0.9
    """

    share: float
    initial: float = 1e-4
    begin: Position = 0
    until: Position = 0.7
    of: Literal["weights", "groups"] | None = None
    every: int = 5
    gain: float = 30.0
    floor: int | float | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.share < 1.0:
            raise ValueError(f"TargetSparsity(share={self.share}) is out of range; give a share in (0, 1)")
        if not 0.0 < self.initial < float("inf") or not 0.0 < self.gain < float("inf") or self.every < 1:
            raise ValueError(
                f"TargetSparsity(initial={self.initial}, gain={self.gain}, every={self.every}) is out of "
                "range; give numbers above 0"
            )
        check_floor("TargetSparsity", self.floor)
        if self.of not in (None, "weights", "groups"):
            raise ValueError(f"TargetSparsity(of={self.of!r}) is unknown; it is 'weights' or 'groups'")
        if type(self.begin) is type(self.until) and self.until <= self.begin:
            raise ValueError(f"TargetSparsity(begin={self.begin}, until={self.until}) ends before it begins")

    @override
    def __call__(self, step: int, total_steps: int | None = None) -> float:
        """Return the strength before anything is counted."""
        return self.initial

    @property
    @override
    def positions(self) -> Sequence[Position]:
        return (self.begin, self.until)


class Controller:
    """The state of a :class:`TargetSparsity` in one run.

    The share of zeros answers late, and then all at once; so what is steered is the size of the weight (or
    group) that is to be the last one cut: on a straight line to 0, and from then on the share itself.

    Args:
        target: what is wanted.
        measure: returns the sizes at this moment of all weights, or groups, or of a sample.
        layers: returns the same for each layer, with its name; for the warning.
    """

    def __init__(
        self,
        target: TargetSparsity,
        measure: Callable[[], Tensor],
        layers: Callable[[], Sequence[tuple[str, Tensor]]] = tuple,
    ) -> None:
        self.target = target
        self.measure = measure
        self.layers = layers
        self._warned = False
        self._log = math.log(target.initial)
        self._first = 0.0
        self._last = 0.0
        self._counted_at = -1
        self._now: tuple[int, int | None] = (0, None)

    def strength(self, step: int, total_steps: int | None) -> float:
        """Return λ for ``step``."""
        self._now = step, total_steps
        if step < in_steps(self.target, self.target.begin, total_steps):
            return 0.0
        return math.exp(self._log)

    def observe(self) -> None:
        """Look at the weights after the proximal operator: before it, the optimizer has moved every zero."""
        target, (step, total_steps) = self.target, self._now
        begin = in_steps(target, target.begin, total_steps)
        ramp = max(in_steps(target, target.until, total_steps) - begin, 1.0)
        every = min(target.every, max(1, int(ramp / _LOOKS)))
        if self._counted_at < 0 or step - self._counted_at >= every:
            self._steer((step - begin) / ramp, (step - self._counted_at) / ramp)
            self._counted_at = step

    def _steer(self, progress: float, passed: float) -> None:
        sizes = self.measure()
        if not sizes.numel():
            return
        share = float((sizes == 0).double().mean())
        # no more than what a floor lets go, which the rounding of a share may exceed by one
        rank = min(int(sizes.isfinite().sum()), math.ceil(self.target.share * sizes.numel()))
        wanted_share = min(self.target.share, rank / sizes.numel())
        edge = float(sizes.kthvalue(rank).values)
        if self._counted_at < 0:
            # where the first step has cut it already, the largest says in what units sizes are
            self._first, self._last = edge or float(sizes[sizes.isfinite()].max()), edge
            return
        wanted = max(1.0 - progress / _ARRIVAL, 0.0)
        if 0.0 < edge < _BELOW * self._first * wanted:  # the data have shrunk it: the line comes after
            self._first = edge / (_BELOW * wanted)
        if share > wanted_share or not wanted:
            error = min(10.0 * (wanted_share - share), 1.0 - 8.0 * wanted)
        else:
            scale = self._first or 1.0
            speed = (edge - self._last) / scale / passed
            error = 8.0 * (edge / scale - wanted) + (_ARRIVAL * speed + 1.0)
        if progress >= 1.1:  # the share arrives shortly after the last weight's size
            self._warn_once()
        self._log += self.target.gain * passed * max(-1.0, min(1.0, error))
        self._log = max(-80.0, min(80.0, self._log))
        self._last = edge

    def _warn_once(self) -> None:
        """Say once that the share was missed, by more than 2 points and than one weight or group."""
        layers = [] if self._warned else self.layers()
        if layers:  # and not groups that a guard has kept
            zeros = torch.cat([sizes for _, sizes in layers]) == 0
            share = float(zeros.double().mean())
            if abs(share - self.target.share) > max(0.02, 1.0 / zeros.numel()) + 1e-9:
                shares = [f"{name} {float((sizes == 0).double().mean()):.2f}" for name, sizes in layers[:12]]
                warnings.warn(
                    f"{self.target!r} is at a share of {share:.3f} after until={self.target.until} (of each "
                    f"layer: {', '.join(shares)}); give it more steps, or another gain={self.target.gain}",
                    stacklevel=2,
                )
        self._warned = True

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the next measurement goes on from."""
        state = [self._log, self._first, self._last, self._counted_at]
        return {"target_sparsity": torch.tensor(state, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state_dict` returned."""
        if "target_sparsity" in state:
            self._log, self._first, self._last, counted_at = state["target_sparsity"].tolist()
            self._counted_at = int(counted_at)
