"""Weights that are shares of a whole."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_reg.constraints.base import Constraint
from lightning_reg.prox.projections import simplex_
from lightning_reg.select.parameters import Select
from lightning_reg.tensors.shards import over_shards

__all__ = ["Simplex"]


@dataclass(frozen=True)
class Simplex(Constraint):
    r"""Keep :math:`w_i \ge 0` and :math:`\sum_i w_i = r` in every tensor: the shares of a mixture.

    Small weights become exactly zero. Sharded tensors are gathered.

    Args:
        radius: r, what the weights of a tensor add up to.
        select: what it applies to, the weights where not given; real tensors.
        name: its name in checkpoints.

    Raises:
        ValueError: a radius that is not positive and finite.

    >>> Simplex(2.0).radius
    2.0

    References:
        Duchi, Shalev-Shwartz, Singer and Chandra, *Efficient Projections onto the l1-Ball for Learning in
        High Dimensions*, ICML 2008.
    """

    kind: ClassVar[str] = "ball"
    turn: ClassVar[int] = 55
    takes_complex: ClassVar[bool] = False

    radius: float = 1.0
    select: Select = "weights"
    _: KW_ONLY
    name: str | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        if not 0.0 < self.radius < float("inf"):
            raise ValueError(f"Simplex(radius={self.radius}) is out of range; give a finite radius above 0")

    def project_(self, weight: Tensor) -> None:
        """Move the tensor to the nearest point of the simplex, in place."""
        simplex_(weight, self.radius)

    def settle_(self, average: Tensor) -> None:
        """Project it, and scale what is left where that would fill its zeros."""
        total = over_shards(torch.sum, average)
        if bool((total > 0.0) & (total < self.radius)):
            average.mul_(self.radius / total)
        self.project_(average)
