"""A penalty of a tensor, or of several, is that of a module whose weights they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_reg import L1, L2SP, GroupLasso
from tests.penalties.cases import CASES, Case


@pytest.mark.parametrize("case", [case for case in CASES if not isinstance(case.penalty, L2SP)], ids=str)
def test_it_is_the_sum_of_the_values(case: Case) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(case.shapes[-1], generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in range(2)
    ]
    expected = [case.penalty.value(tensor, 0.3) for tensor in tensors]
    penalty = type(case.penalty)(**{**vars(case.penalty), "strength": 0.3})
    torch.testing.assert_close(penalty(tensors[0]), expected[0])
    for several in (tensors, tuple(tensors), iter(tensors), nn.ParameterList(tensors).parameters()):
        torch.testing.assert_close(penalty(several), expected[0] + expected[1])
    if case.penalty.has_gradient:
        penalty(tensors).backward()
        assert tensors[1].grad is not None


def test_a_tensor_is_taken_as_it_is() -> None:
    layer = nn.Linear(3, 2)
    torch.testing.assert_close(L1(0.5)(layer.bias), 0.5 * layer.bias.abs().sum())  # "weights" has no biases
    frozen = layer.weight.detach()
    torch.testing.assert_close(L1(0.5)(frozen), L1(0.5)(layer))
    torch.testing.assert_close(GroupLasso(0.5)([layer.weight]), GroupLasso(0.5)(layer))
    torch.testing.assert_close(L1(lambda step, _: step / 10)(frozen, step=5), L1(0.5)(frozen))


def test_what_is_no_tensor_is_refused() -> None:
    for nothing in ([], 3, "weight", [1.0]):
        with pytest.raises(TypeError, match="L1 takes a module, a tensor or several tensors, not"):
            L1(0.1)(nothing)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="L2SP looks its starting point up by name"):
        L2SP(0.1, reference={})(torch.ones(2))
    real = next(case.penalty for case in CASES if not case.takes_complex)
    with pytest.raises(ValueError, match="is for real weights, and one given is complex"):
        real(torch.ones(2, 2, dtype=torch.complex64))
