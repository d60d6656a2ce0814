"""Groups by labels, over several tensors and in a metric, against numpy and loops over the groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_reg.groups.layout import Labels, Layout, Slices
from lightning_reg.prox.dual_averaging import hold_groups_
from lightning_reg.prox.group import group_weights, shrink_groups_in_metric_, shrink_views_
from lightning_reg.tensors.steps import StepSize

LABELS = torch.tensor([[0, 0, 2], [2, 2, -1]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_weight_of_a_labelled_group_is_the_root_of_its_count(dtype: torch.dtype) -> None:
    counts = [3, 0, 4, 0]  # of both tensors; the last is of what is in no group
    layouts = [Labels(LABELS), Labels(torch.tensor([0, 2, -1]))]
    like = torch.zeros(2, dtype=dtype)
    found = group_weights(layouts, like)
    assert isinstance(found, Tensor) and found.dtype.itemsize >= 4
    assert found.tolist() == pytest.approx([*np.sqrt(counts)], rel=1e-6)
    assert torch.as_tensor(group_weights(layouts, like, size_weighted=False)).tolist() == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("soft", [0.0, 0.3])
def test_tensors_that_share_groups_keep_steps_of_their_own(soft: float) -> None:
    """SGD with two rates: at the prox, (x - v)/η is minus a subgradient of the norm."""
    torch.manual_seed(0)
    values = [torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)]
    rates, mu = [0.2, 0.7], 1.1
    moved = [v.clone() for v in values]
    layouts: list[Layout] = [Slices((3, 4), keep=(0,)), Slices((3, 2), keep=(0,))]
    shrink_groups_in_metric_(moved, layouts, [StepSize(r) for r in rates], mu, soft)
    pulls = torch.cat([(v - x) / r for v, x, r in zip(values, moved, rates, strict=True)], dim=1)
    x = torch.cat(moved, dim=1)
    alive = x.norm(dim=1) > 0
    assert alive.any()
    wanted = mu * x / x.norm(dim=1, keepdim=True) + soft * x.sign()
    nonzero = alive[:, None] & (x != 0)
    assert torch.allclose(pulls[nonzero], wanted[nonzero], atol=1e-9)
    shrunk = (pulls.abs() - soft).clamp(min=0.0)
    assert bool((shrunk[~alive].norm(dim=1) <= mu + 1e-12).all())


@pytest.mark.parametrize("together", [False, True])
def test_a_group_is_held_at_zero_until_its_average_leaves_the_ball(together: bool) -> None:
    """s ← (1 - a)s + a·w/(ηλ), in a ball of radius 1; inside it the group is zero."""
    torch.manual_seed(1)
    weight, average = torch.randn(6, 3, dtype=torch.float64), torch.zeros(6, 3, dtype=torch.float64)
    weight[::2] *= 0.2
    second = torch.rand(6, 3, dtype=torch.float64) + 0.5
    step, strength, share = StepSize(0.1, second, eps=1e-3), 2.0, 0.25
    expected_average, wanted = average.clone(), weight.clone()
    for row in range(6):
        eta = 0.1 / (second[row].sqrt() + 1e-3)
        mean = (1.0 - share) * expected_average[row] + share * weight[row] / (eta * strength)
        expected_average[row] = mean / max(float(mean.norm()), 1.0)
        if mean.norm() <= 1.0:
            wanted[row] = 0.0
    assert 0 < (wanted == 0).all(dim=1).sum() < 6
    layouts: list[Layout] = [Slices((6, 3), keep=(0,))]
    ball = lambda views, of: shrink_views_(views, of, 1.0)  # noqa: E731
    hold_groups_([weight], layouts, [average], [step], [share], strength, ball, together=together)
    assert torch.equal(weight, wanted)
    assert torch.allclose(average, expected_average, atol=1e-12)


def test_an_empty_tensor_is_passed_by() -> None:
    weight, layouts = torch.zeros(0, 3), [Slices((0, 3), keep=(0,))]
    hold_groups_(
        [weight], layouts, [weight.clone()], [StepSize(0.1)], [0.5], 1.0, lambda *_: None, together=False
    )
