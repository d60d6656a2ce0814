"""Penalties of weights that a layer computes: the tensor in use, and its gradient through the map."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.optim import SGD

from lightning_reg import L1, L2, GroupLasso, NuclearNorm, attach
from lightning_reg.constraints import MaxNorm
from lightning_reg.look.layers import layer_states
from lightning_reg.metrics import group_sparsity, sparsity
from tests.select.test_weights import DERIVED

PENALTIES = [L1(0.1), L2(0.1), GroupLasso(0.1), NuclearNorm(0.1)]
BY_MAP = [kind for kind in DERIVED if kind != "prune"]


def _net(kind: str) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(DERIVED[kind](), nn.ReLU(), nn.Linear(3, 1))
    net.eval()  # no power iteration, so that two programs see one weight
    return net


def _train(kind: str, by_hand: Any = None, steps: int = 3, **attached: Any) -> dict[str, torch.Tensor]:
    net = _net(kind)
    optimizer = SGD(net.parameters(), lr=0.1)
    if attached:
        attach(net, optimizer, **attached)
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        loss = net(x).square().mean()
        if by_hand is not None:
            loss = loss + by_hand.value(net[0].weight, 0.1) + by_hand.value(net[2].weight, 0.1)
        loss.backward()
        optimizer.step()
    net(x)
    return {**{n: p.detach() for n, p in net.named_parameters()}, "used": net[0].weight.detach()}


@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda penalty: type(penalty).__name__)
@pytest.mark.parametrize("kind", DERIVED)
def test_the_gradient_is_that_of_the_penalty_in_the_loss(kind: str, penalty: Any) -> None:
    layerwise = penalty
    expected, found = _train(kind, layerwise), _train(kind, penalty=penalty)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], msg=name)


@pytest.mark.parametrize("kind", DERIVED)
def test_the_value_is_of_the_weight_in_use(kind: str) -> None:
    net = _net(kind)
    net(torch.ones(1, 4))
    expected = net[0].weight.abs().sum() + net[2].weight.abs().sum()
    torch.testing.assert_close(L1(1.0)(net), expected)
    (state, _) = layer_states(net)
    assert (state.name, state.entries) == ("0.weight", 12)
    assert state.norm == pytest.approx(net[0].weight.norm().item(), rel=1e-5)


@pytest.mark.parametrize("kind", BY_MAP)
def test_decay_goes_through_the_map(kind: str) -> None:
    net, rate = _net(kind), 0.1
    optimizer = SGD(net.parameters(), lr=rate)
    attach(net, optimizer, L1(0.2), apply="decoupled")
    net(torch.ones(1, 4))
    value = 0.2 * net[0].weight.abs().sum()
    sources = [p for n, p in net[0].named_parameters() if n != "bias"]
    gradients = torch.autograd.grad(value, sources)
    expected = [p.detach() - rate * g for p, g in zip(sources, gradients, strict=True)]
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter, wanted in zip(sources, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), wanted)


@pytest.mark.parametrize("kind", BY_MAP)
@pytest.mark.parametrize("term", [L1(0.1), MaxNorm(1.0)], ids=["penalty", "constraint"])
def test_what_acts_in_place_is_refused_with_the_layers_name(kind: str, term: Any) -> None:
    net = _net(kind)
    way = {} if isinstance(term, MaxNorm) else {"apply": "proximal"}
    with pytest.raises(ValueError, match=r"0\.weight is computed from other parameters by \w+, so that"):
        attach(net, SGD(net.parameters(), lr=0.1), term, **way)


def test_the_scale_of_a_weight_norm_can_be_selected_instead() -> None:
    net = _net("weight_norm")
    optimizer = SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"or select its scale, '0.parametrizations.weight.original0'"):
        attach(net, optimizer, GroupLasso(0.1), apply="proximal")
    attach(net, optimizer, L1(5.0, "0.parametrizations.weight.original0"), apply="proximal")
    net(torch.ones(1, 4)).sum().backward()
    for _ in range(3):
        optimizer.step()
    assert group_sparsity(net, select="0.weight") == 1.0
    assert torch.isfinite(net(torch.ones(1, 4))).all()


@pytest.mark.parametrize("apply", ["gradient", "decoupled", "proximal"])
def test_groups_of_a_pruned_weight_do_not_count_what_is_masked(apply: Any) -> None:
    def run(masked: float) -> torch.Tensor:
        torch.manual_seed(0)
        layer = nn.Linear(4, 3)
        mask = torch.ones(3, 4)
        mask[:, 2:] = 0
        prune.custom_from_mask(layer, "weight", mask)
        with torch.no_grad():
            layer.weight_orig[:, 2:] = masked
        optimizer = SGD(layer.parameters(), lr=0.1)
        attach(layer, optimizer, GroupLasso(0.3), apply=apply)
        layer(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        layer(torch.ones(1, 4))
        return layer.weight.detach()

    torch.testing.assert_close(run(100.0), run(0.0))


def test_metrics_see_the_mask_and_the_next_one() -> None:
    layer = prune.ln_structured(nn.Linear(10, 8), "weight", amount=0.5, n=2, dim=0)
    assert sparsity(layer) == 0.5 and group_sparsity(layer) == 0.5
    optimizer = SGD(layer.parameters(), lr=0.1)
    attach(layer, optimizer, L1(0.1))
    prune.ln_structured(layer, "weight", amount=0.5, n=2, dim=0)
    layer(torch.ones(1, 10)).sum().backward()
    optimizer.step()
    assert sparsity(layer) == 0.75
