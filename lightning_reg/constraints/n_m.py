"""At most n weights of every m in a row: the sparsity that tensor cores speed up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_reg.constraints.base import BoundConstraint, Constraint
from lightning_reg.groups.forms import layout_of
from lightning_reg.groups.layout import Layout, Slices
from lightning_reg.select.parameters import Select, Selected
from lightning_reg.tensors.shards import local, part, whole

__all__ = ["NM"]


@dataclass(frozen=True)
class NM(Constraint):
    r"""Keep the n largest of every m consecutive input weights, and set the others to zero.

    A unit's inputs are the columns of a linear or recurrent layer. Those of a convolution are flattened:
    channels, then the kernel. The projection is the nearest point of the set, after every optimizer step, so
    that a weight that outgrows another takes its place. :class:`~lightning_reg.Refit` beside it holds the
    choice from a point of the run on. Of equal weights, those that come first are kept.

    Args:
        n: how many to keep, from 1 on.
        m: out of how many, above ``n``; tensor cores speed up 2 of 4.
        select: what it applies to, the weights where not given.
        name: its name in checkpoints.

    Raises:
        ValueError: ``n`` and ``m`` out of range, or a tensor whose number of inputs m does not divide.

    >>> NM(2, 4).m
    4

    References:
        Mishra et al., *Accelerating Sparse Deep Neural Networks*, 2021; Zhou et al., *Learning N:M
        Fine-Grained Structured Sparse Neural Networks from Scratch*, ICLR 2021.
    """

    turn: ClassVar[int] = 95  # after Refit, so that what it holds takes no place

    n: int
    m: int
    select: Select = "weights"
    _: KW_ONLY
    name: str | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        if not (isinstance(self.n, int) and isinstance(self.m, int) and 0 < self.n < self.m):
            raise ValueError(f"NM({self.n!r}, {self.m!r}) is out of range; give integers with 0 < n < m")

    def bind(self, selected: Sequence[Selected]) -> BoundConstraint:
        """Return what projects these parameters."""
        return _Patterns(self, selected)


class _Patterns(BoundConstraint):
    constraint: NM

    def __init__(self, constraint: NM, selected: Sequence[Selected]) -> None:
        super().__init__(constraint)
        self._layouts = {id(s.parameter): _rows(s) for s in selected}
        for s in selected:
            inputs = int(self._layouts[id(s.parameter)].sizes)
            if inputs % constraint.m:
                raise ValueError(
                    f"NM({constraint.n}, {constraint.m}) needs a number of inputs that {constraint.m} divides"
                    f", and {s.name} of shape {tuple(s.parameter.shape)} has {inputs}; leave it out with "
                    f"select=['weights', '!{s.name}']"
                )

    @torch.no_grad()
    def project_(self, weights: Sequence[Tensor]) -> None:
        for weight in weights:
            modulus, layout = whole(weight.detach()).abs(), self._layouts[id(weight)]
            view = layout.view(modulus)
            rows = layout.matrix(view).nan_to_num(nan=torch.inf, posinf=torch.inf)
            cut = _beaten(rows.view(-1, self.constraint.m).t().contiguous()) >= self.constraint.n
            cut = cut.t().reshape(rows.shape)
            mask = layout.unmatrix(cut, view).reshape(weight.shape)
            local(weight.detach()).masked_fill_(part(mask, weight), 0.0)


def _beaten(sizes: Tensor) -> Tensor:
    """Return how many of its column each entry is after: faster than a sort where columns are short."""
    count = torch.zeros_like(sizes, dtype=torch.int16)
    for later in range(1, len(sizes)):
        ahead = sizes[:later] >= sizes[later]  # of equal ones the first
        count[later] += ahead.sum(0, dtype=torch.int16)
        count[:later] += ~ahead
    return count


def _rows(selected: Selected) -> Layout:
    """Each unit's inputs; of a recurrent layer those of each gate, since a block ends with them."""
    if isinstance(selected.module, nn.RNNBase | nn.RNNCellBase):
        return Slices(tuple(selected.parameter.shape), (0,))
    return layout_of(selected, "rows")
