"""The groups of boxes cut out of a tensor are those of the tensor; with processes, see tests/distributed."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lightning_reg.groups.layout import Labels, Layout, Slices
from lightning_reg.groups.spanning import _of_box

LABELS = torch.tensor([[0, 1, 1, -1], [2, 0, -1, 2], [1, 1, 1, 0]])
CASES: list[tuple[tuple[int, ...], Layout]] = [
    ((5, 4), Slices((5, 4), (0,))),
    ((5, 4), Slices((5, 4), (1,))),
    ((5, 4), Slices((5, 4), ())),
    ((5, 4), Slices((5, 4), (0, 1))),
    ((12, 5), Slices((4, 3, 5), (1,))),  # the hidden units of an LSTM
    ((6, 4), Slices((1, 3, 2, 4), (1,))),  # heads
    ((6, 4), Slices((2, 3, 1, 4), (1,))),
    ((4, 3, 2), Slices((2, 2, 3, 2), (0, 2))),  # a grouped convolution
    ((4, 6), Slices((4, 2, 3), (1,))),  # coupled columns
    ((3, 4), Slices((2, 6), (0,))),  # a view that crosses the tensor's own dimensions
    ((3, 4), Labels(LABELS)),
]


def boxes(shape: tuple[int, ...], dim: int, cuts: list[int]) -> list[list[tuple[int, int]]]:
    """The parts of a dimension that is cut; others stay whole."""
    ends = [0, *sorted(min(cut, shape[dim]) for cut in cuts), shape[dim]]
    return [
        [(first, last - first) if d == dim else (0, n) for d, n in enumerate(shape)]
        for first, last in pairwise(ends)
    ]


def narrowed(weight: Tensor, where: list[tuple[int, int]]) -> Tensor:
    for dim, (first, size) in enumerate(where):
        weight = weight.narrow(dim, first, size)
    return weight.contiguous()


@pytest.mark.parametrize("cuts", [[1], [2], [3], [2, 3], [0], [99], [1, 1, 4]], ids=str)
@pytest.mark.parametrize(("shape", "layout"), CASES, ids=[f"{shape}-{one}" for shape, one in CASES])
def test_boxes_keep_their_groups(shape: tuple[int, ...], layout: Layout, cuts: list[int]) -> None:
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    view = layout.view(weight)
    numbers = torch.arange(layout.count, dtype=torch.float64)
    groups = layout.spread(numbers, view).expand(view.shape).reshape(shape)
    for dim in range(len(shape)):
        sums, norms = torch.zeros(layout.count).double(), torch.zeros(layout.count).double()
        for where in boxes(shape, dim, cuts):
            part = _of_box(layout, weight, where)
            mine = part.view(narrowed(weight, where))
            spread = part.spread(numbers, mine).expand(mine.shape).reshape([n for _, n in where])
            assert torch.equal(spread, narrowed(groups, where))
            sums += part._place(part.here.sum(mine))
            norms += part._place(part.here.norm(mine).square())
        torch.testing.assert_close(sums, layout.sum(view))
        torch.testing.assert_close(norms.sqrt(), layout.norm(view))
        assert part.count == layout.count
