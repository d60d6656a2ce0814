"""Forwards of dropout modules with a tensor for a rate, for compiled graphs that serve a whole schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

__all__ = ["Rates", "Rule", "channel", "element", "row", "rule_of_class"]

_ALPHA = 1.7580993408473766  # −α' of SELU: the value AlphaDropout saturates at, times −1

#: A forward: (module, input, row of rates) -> output.
Rule: TypeAlias = "Callable[[nn.Module, Tensor, Tensor], Tensor]"


class Rates:
    """Rates and their scales in one tensor, filled once a step; every site at one rate reads one row.

    A row holds (p, 1/(1−p), a, α·a, α·a·p) with AlphaDropout's a = ((α²·p + 1)(1 − p))^−½; the last four
    are 0 at p = 1, where everything is dropped.

    Args:
        device: where the module is.
        rows: how many different rates there are.
    """

    def __init__(self, device: torch.device, rows: int) -> None:
        # float64 so that a float64 input sees the rate unrounded; MPS has none
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.table = torch.zeros(rows, 5, dtype=dtype, device=device)
        self.rows = list(self.table.unbind())
        self._rates: list[float] = []

    def fill(self, rates: list[float]) -> None:
        """Write the rate of each row and what follows from it."""
        if rates == self._rates:
            return
        self._rates = list(rates)
        self.table.copy_(torch.tensor([_row(rate) for rate in rates], dtype=self.table.dtype))


def _row(rate: float) -> list[float]:
    if rate == 1.0:
        return [1.0, 0.0, 0.0, 0.0, 0.0]
    a = 1.0 / math.sqrt((_ALPHA**2 * rate + 1.0) * (1.0 - rate))
    return [rate, 1.0 / (1.0 - rate), a, _ALPHA * a, _ALPHA * a * rate]


def element(input: Tensor, rates: Tensor) -> Tensor:
    """Drop single values; the same operations as torch's own decomposition of ``dropout``."""
    return (torch.rand_like(input) > rates[0]) * input * rates[1]


def _noise(input: Tensor, shape: list[int], rates: Tensor) -> Tensor:
    """1 where kept and 0 where dropped, one draw for each entry of ``shape``."""
    return torch.rand(shape, device=input.device) >= rates[0]


def channel(input: Tensor, rates: Tensor) -> Tensor:
    """Drop feature maps: ``(N, C, ...)``, one draw for each ``(n, c)``."""
    shape = [*input.shape[:2], *[1] * (input.dim() - 2)]
    return _noise(input, shape, rates) * input * rates[1]


def row(input: Tensor, rates: Tensor) -> Tensor:
    """Drop samples: ``(N, ...)``, one draw for each ``n``."""
    return _noise(input, [input.shape[0], *[1] * (input.dim() - 1)], rates) * input * rates[1]


def _finish(module: nn.Module, input: Tensor, output: Tensor) -> Tensor:
    return input.copy_(output) if getattr(module, "inplace", False) else output


def _element_rule(module: nn.Module, input: Tensor, rates: Tensor) -> Tensor:
    return _finish(module, input, element(input, rates))


def _channel_rule(module: nn.Module, input: Tensor, rates: Tensor) -> Tensor:
    return _finish(module, input, channel(input, rates))


def _unbatched_rule(dims: int) -> Rule:
    def rule(module: nn.Module, input: Tensor, rates: Tensor) -> Tensor:
        # Dropout1d and Dropout3d take (C, ...) without a batch; Dropout2d reads it as (N, C, L)
        if input.dim() == dims:
            return _finish(module, input, channel(input.unsqueeze(0), rates).squeeze(0))
        return _channel_rule(module, input, rates)

    return rule


def _alpha(input: Tensor, kept: Tensor, rates: Tensor) -> Tensor:
    # a·x·m + α'·a·(m − 1) + α'·a·p with m = 1 where kept, so that dropped values become −α'·a·(1 − p)
    mask = kept.to(input.dtype)
    return input * (mask * rates[2]) + ((mask - 1) * rates[3] + rates[4])


def _alpha_rule(module: nn.Module, input: Tensor, rates: Tensor) -> Tensor:
    return _finish(module, input, _alpha(input, torch.rand_like(input) >= rates[0], rates))


def _feature_alpha_rule(module: nn.Module, input: Tensor, rates: Tensor) -> Tensor:
    kept = _noise(input, [*input.shape[:2], *[1] * (input.dim() - 2)], rates)
    return _finish(module, input, _alpha(input, kept, rates))


def _drop_path_rule(module: nn.Module, input: Tensor, rates: Tensor) -> Tensor:
    if getattr(module, "scale_by_keep", True):
        return row(input, rates)
    return _noise(input, [input.shape[0], *[1] * (input.dim() - 1)], rates) * input


def _stochastic_depth_rule(module: nn.Module, input: Tensor, rates: Tensor) -> Tensor:
    if module.mode == "row":
        return row(input, rates)
    return _noise(input, [1] * input.dim(), rates) * input * rates[1]


_RULES: dict[type[nn.Module], Rule] = {
    nn.Dropout: _element_rule,
    nn.Dropout1d: _unbatched_rule(2),
    nn.Dropout2d: _channel_rule,
    nn.Dropout3d: _unbatched_rule(4),
    nn.AlphaDropout: _alpha_rule,
    nn.FeatureAlphaDropout: _feature_alpha_rule,
}

_RULES_ELSEWHERE: dict[tuple[str, str], Rule] = {
    ("timm", "DropPath"): _drop_path_rule,
    ("torchvision", "StochasticDepth"): _stochastic_depth_rule,
}


def rule_of_class(cls: type[nn.Module]) -> Rule | None:
    """Return the forward with a tensor for a rate, for a dropout class whose forward is known."""
    for base, rule in _RULES.items():
        if issubclass(cls, base) and cls.forward is base.forward:
            return rule
    for base in cls.__mro__:
        named = _RULES_ELSEWHERE.get((base.__module__.partition(".")[0], base.__name__))
        if named is not None and cls.forward is base.forward:
            return named
    return None
