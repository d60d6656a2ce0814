"""Small tensors copied into one vector and back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_reg import L1, L2, MCP, Penalty
from lightning_reg.tensors import packs as packing
from lightning_reg.tensors.packs import packs
from lightning_reg.tensors.steps import StepSize, in_one_metric

SHAPES = [(3, 4), (), (0, 2), (2, 3, 2, 2)]


def some(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Of every layout: dense, 0-d, empty, channels-last, transposed."""
    generator = torch.Generator().manual_seed(0)
    found = [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]
    found[3] = found[3].contiguous(memory_format=torch.channels_last)
    return [*found, torch.randn(5, 4, generator=generator, dtype=dtype).t()]


@pytest.mark.parametrize("most", [packing.PACK, 20, 1])
@pytest.mark.parametrize("count", [5, 1])
def test_only_the_columns_that_change_go_back(most: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "PACK", most)
    first, second, third = (some()[-count:] for _ in range(3))
    expected = some()[-count:]
    for a, b, c in packs(list(zip(first, second, third, strict=True)), changed=2):
        a.mul_(2.0)
        b.add_(c)
    for a, b, c, was in zip(first, second, third, expected, strict=True):
        assert torch.equal(a, 2.0 * was)
        assert torch.equal(b, 2.0 * was)
        assert torch.equal(c, was)


def test_only_steps_that_differ_in_their_tensors_are_put_together() -> None:
    weights = [torch.ones(2) * i for i in range(6)] + [torch.ones(2, dtype=torch.float64)]
    moment = torch.ones(2)
    steps = [StepSize(0.1)] * 2 + [StepSize(0.2), StepSize(0.1, moment), StepSize(0.1, moment * 2)]
    steps += [StepSize(0.1, moment, mean=moment), StepSize(0.1)]
    found = [[float(row[0][0]) for row in rows] for _, rows in in_one_metric(weights, steps)]
    assert found == [[0.0, 1.0], [2.0], [3.0, 4.0], [5.0], [1.0]]


@pytest.mark.parametrize("penalty", [L1(1.0), L2(1.0), MCP(1.0)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("small", [packing.SMALL, 10])
def test_a_value_of_many_small_tensors(penalty: Penalty, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Laid end to end, they have the sum of their values, and each its gradient."""
    monkeypatch.setattr(packing, "SMALL", small)
    weights = [w.requires_grad_() for w in [*some(), *some(torch.float32)]]
    total = penalty.total(weights, 0.3, like=weights[0])
    single = [penalty.value(w, 0.3).double() for w in weights]
    torch.testing.assert_close(total.double(), torch.stack(single).sum(), rtol=1e-6, atol=0.0)
    total.backward()
    for weight in weights:
        torch.testing.assert_close(weight.grad, penalty.gradient(weight.detach(), 0.3))
