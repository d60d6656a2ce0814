"""Penalties on activations are means over the samples, wherever a module puts them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_reg import L1, ActivityPenalty, JacobianPenalty

X = torch.randn(4, 50, 8, generator=torch.Generator().manual_seed(0))  # samples, steps, features


def _value(net: nn.Module, *args: Any, batch_first: bool = True, **given: Any) -> float:
    inputs = X if batch_first else X.transpose(0, 1)
    with ActivityPenalty(L1(1.0), **given).record(net) as term:
        net(inputs, *args)
        return float(term.value().detach())


def _both(make: Any) -> tuple[nn.Module, nn.Module]:
    first, second = make(batch_first=True), make(batch_first=False)
    second.load_state_dict(first.state_dict())
    return first, second


def _stack(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, **options)
    return nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=False)


@pytest.mark.parametrize(
    ("make", "modules"),
    [
        (lambda **k: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, **k), "linear1"),
        (lambda **k: nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, 0.0, **k)), "0.linear1"),
        (lambda **k: _stack(**k), ""),
        (lambda **k: _stack(**k), "norm"),
        (lambda **k: nn.Sequential(_stack(**k)), "0"),
        (lambda **k: nn.LSTM(8, 3, **k), ""),
        (lambda **k: nn.GRU(8, 3, **k), nn.GRU),
        (lambda **k: nn.Sequential(nn.Sequential(nn.LSTM(8, 3, **k))), nn.LSTM),
    ],
)
def test_sequences_first_or_samples_first_is_one_value(make: Any, modules: Any) -> None:
    first, second = _both(make)
    expected = _value(first, modules=modules)
    assert _value(second, batch_first=False, modules=modules) == pytest.approx(expected, rel=1e-5)
    assert _value(second, batch_first=False, modules=modules, batch_dim=0) == pytest.approx(
        expected * 4 / 50, rel=1e-5
    )


class _Mixed(nn.Module):
    """Convolutions, samples first, before an LSTM, sequences first."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.lstm = nn.LSTM(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(self.act(x))[0]


class _Turning(nn.Module):
    """A block of the user's own that takes samples first, and turns them for what lies deep inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _stack()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.transpose(0, 1)).transpose(0, 1)


def test_what_is_deep_inside_leaves_a_doubt() -> None:
    with pytest.raises(ValueError, match=r"inner\.layers\.0\.self_attn of _Turning has batch_first=False"):
        _value(nn.Sequential(_Turning()), modules="0")


def test_what_is_in_doubt_is_refused_and_can_be_said() -> None:
    with pytest.raises(ValueError, match=r"lstm of _Mixed has batch_first=False, .*batch_dim=0 or"):
        _value(_Mixed())
    assert _value(_Mixed(), batch_dim=0) == pytest.approx(float(X.relu().sum()) / 4, rel=1e-5)
    assert _value(_Mixed(), batch_dim=-2) == pytest.approx(float(X.relu().sum()) / 50, rel=1e-5)
    with pytest.raises(ValueError, match=r"batch_dim=3 is no dimension of what ReLU returns, \(4, 50, 8\)"):
        _value(_Mixed(), batch_dim=3)


def test_other_tuples_are_refused_and_a_jacobian_needs_samples_first() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

    with pytest.raises(TypeError, match="Two returns tuple and not a tensor"):
        _value(nn.Sequential(Two()), modules="0")
    with pytest.raises(ValueError, match=r"what forward calls as a function, such as torch\.relu"):
        _value(Two())
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
    with JacobianPenalty(1.0, modules="linear1").record(layer) as term:
        layer(X)
        with pytest.raises(ValueError, match="puts sequences first"):
            term.value()
