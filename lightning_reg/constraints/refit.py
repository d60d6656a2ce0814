"""Zeros that are held while everything else trains on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_reg.constraints.base import BoundConstraint, Constraint
from lightning_reg.schedules.base import Position, Schedule, ScheduleLike, check_position, in_steps
from lightning_reg.select.parameters import Select, Selected
from lightning_reg.tensors.shards import local

__all__ = ["Refit"]


@dataclass(frozen=True)
class Refit(Constraint):
    r"""Hold the zeros and train on: what is zero stays zero, and penalties that make zeros stop.

    A penalty that selects weights also shrinks those that it keeps, and that costs accuracy. Statisticians
    refit: they solve the problem once more, without the penalty, on the weights that were found. This does
    the same in one run. Penalties that make no zeros, such as L2, go on.

    Alone and from the first step on, it fine-tunes a network that was pruned elsewhere, and neither momentum
    nor weight decay revives a weight.

    Args:
        begin: when, as a share of the run (a float) or after so many optimizer steps (an integer).
        select: whose zeros, all parameters' where not given.
        name: its name in checkpoints.

    Raises:
        ValueError: a share outside [0, 1], or a negative number of steps.

    >>> Refit(0.75).begin
    0.75

    References:
        Belloni and Chernozhukov, *Least Squares after Model Selection in High-Dimensional Sparse Models*,
        Bernoulli 19(2), 2013; Meinshausen, *Relaxed Lasso*, CSDA 52(1), 2007.
    """

    elementwise: ClassVar[bool] = True
    turn: ClassVar[int] = 90
    stops_penalties: ClassVar[bool] = True

    begin: Position = 0
    select: Select = "all"
    _: KW_ONLY
    name: str | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        check_position("Refit", "begin", self.begin)

    @property
    def strength(self) -> ScheduleLike:  # type: ignore[override]
        """1 from ``begin`` on, and 0 before it."""
        return 1.0 if self.begin == 0 else _Begins(self.begin)

    def bind(self, selected: Sequence[Selected]) -> BoundConstraint:
        """Return what holds the zeros of these parameters."""
        return _Held(self)


@dataclass(frozen=True)
class _Begins(Schedule):
    """0, and from a position on 1."""

    begin: Position

    def __call__(self, step: int, total_steps: int | None = None) -> float:
        return float(step >= in_steps(self, self.begin, total_steps))

    @property
    def positions(self) -> Sequence[Position]:
        """When it begins."""
        return (self.begin,)


class _Held(BoundConstraint):
    """Which weights are zero, from the first step on that they are held in."""

    def __init__(self, constraint: Refit) -> None:
        super().__init__(constraint)
        self._zeros: dict[int, Tensor] = {}  # by identity of a tensor, which the term keeps alive

    @torch.no_grad()
    def before_step_(self, weights: Sequence[Tensor], strength: float) -> None:
        """Look which weights are zero; those that were restored from a checkpoint show it themselves."""
        if strength == 0.0:
            return
        for weight in weights:
            if id(weight) not in self._zeros:
                self._zeros[id(weight)] = local(weight.detach()) == 0

    def project_(self, weights: Sequence[Tensor]) -> None:
        """Set the held ones to zero."""
        for weight in weights:
            zeros = self._zeros.get(id(weight))
            if zeros is not None:
                mine = local(weight.detach())
                mine.masked_fill_(zeros.to(mine.device), 0.0)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Look anew: the weights have been restored as well."""
        self._zeros = {}
