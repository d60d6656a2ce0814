"""Tensors that have no values, or share a place in memory among entries: one sentence before training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from lightning_reg import L1, L2, GroupLasso, MaxNorm, NonNegative, NuclearNorm, attach
from lightning_reg.metrics import parameter_norm, sparsity
from tests.hosts.ways import WAYS, Way, in_every_mode


class Expanded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(10, 1, dtype=torch.float64)
        self.scale = nn.Parameter(torch.full((1, 1), 0.5, dtype=torch.float64).expand(1, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.scale.t()  # type: ignore[no-any-return]


@pytest.mark.parametrize(("way", "apply"), in_every_mode(), ids=str)
def test_expanded_memory_is_refused_in_every_way(way: Way, apply: str) -> None:
    with pytest.raises(ValueError, match=r"several entries of .*scale share one place in memory"):
        way(L1(0.1, "*scale"), apply, net=Expanded())


@pytest.mark.parametrize("way", [way for way in WAYS if way.name in ("callback", "attach")], ids=str)
def test_expanded_memory_is_refused_for_constraints(way: Way) -> None:
    with pytest.raises(ValueError, match="share one place in memory"):
        way(NonNegative("*scale"), "proximal", net=Expanded())


def test_expanded_memory_that_nothing_trains_is_only_measured() -> None:
    net = Expanded()
    net.scale.requires_grad_(False)
    attach(net, SGD(net.parameters(), lr=0.1), L1(0.1, ["*scale", "*weight"]))
    assert float(parameter_norm(net, "*scale", order=1.0)) == pytest.approx(5.0)


@pytest.mark.parametrize("penalty", [L1(0.1), L2(0.1), GroupLasso(0.1), NuclearNorm(0.1)], ids=str)
@pytest.mark.parametrize("apply", ["gradient", "decoupled", "proximal"])
def test_what_has_no_values_is_refused(penalty: Any, apply: Any) -> None:
    model = nn.Linear(3, 2, device="meta")
    with pytest.raises(ValueError, match="weight is on the meta device, which holds no values"):
        attach(model, SGD(model.parameters(), lr=0.1), penalty, apply=apply)


@pytest.mark.parametrize("constraint", [NonNegative(), MaxNorm(1.0)], ids=str)
def test_what_has_no_values_is_refused_for_constraints(constraint: Any) -> None:
    model = nn.Linear(3, 2, device="meta")
    with pytest.raises(ValueError, match="weight is on the meta device"):
        attach(model, SGD(model.parameters(), lr=0.1), constraint)


def test_what_has_no_values_is_not_measured() -> None:
    model = nn.Linear(3, 2, device="meta")
    for measure in (sparsity, parameter_norm, L1(0.1)):
        with pytest.raises(ValueError, match="weight is on the meta device"):
            measure(model)  # type: ignore[operator]
    attach(model.to_empty(device="cpu"), SGD(model.parameters(), lr=0.1), L1(0.1))
