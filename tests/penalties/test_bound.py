"""What penalties are bound to, called as the engine calls it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_reg import L0
from lightning_reg.select.parameters import select_parameters
from tests.penalties.cases import CASES, Case


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_added_with_their_factor(case: Case) -> None:
    layer = nn.Linear(5, 4, bias=False, dtype=torch.float64)
    bound = case.penalty.bind(select_parameters(layer))
    weight = layer.weight
    weight.data += torch.randn_like(weight)  # L2SP begins at what it was bound to
    expected = bound.at_rest().gradient(weight, 0.7).detach()
    assert bool((expected != 0).any()) or isinstance(case.penalty, L0), "its gradient is 0"
    for alpha in (1.0, -2.0):
        target = torch.ones_like(weight)
        bound.at_rest().add_gradient_([target], [weight], 0.7, alpha)
        torch.testing.assert_close(target, 1.0 + alpha * expected, rtol=1e-12, atol=1e-12)
