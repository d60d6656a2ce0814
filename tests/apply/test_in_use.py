"""Penalties of weights that a layer computes: the tensor in use, and its gradient through the map."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim import SGD

from lightning_reg import L1, L2, GroupLasso, NuclearNorm, attach
from lightning_reg.constraints import MaxNorm, NonNegative, UnitNorm
from lightning_reg.groups.forms import layout_of
from lightning_reg.look.layers import layer_states
from lightning_reg.metrics import group_sparsity, sparsity
from lightning_reg.select.parameters import select_parameters
from lightning_reg.tensors.steps import StepSize
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


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


def _doubled(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


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
@pytest.mark.parametrize("term", [L1(0.1), NonNegative()], ids=["penalty", "constraint"])
def test_what_acts_in_place_is_refused_with_the_layers_name(kind: str, term: Any) -> None:
    net = _net(kind)
    way = {} if isinstance(term, NonNegative) else {"apply": "proximal"}
    with pytest.raises(ValueError, match=r"0\.weight is computed from other parameters by \w+, so that"):
        attach(net, SGD(net.parameters(), lr=0.1), term, **way)


def test_the_scale_of_a_weight_norm_can_be_selected_instead() -> None:
    net = _net("weight_norm")
    optimizer = SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"or select its scale, '0.parametrizations.weight.original0'"):
        attach(net, optimizer, L1(0.1), apply="proximal")
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


def _plainly(apply: Any) -> dict[str, Any]:
    return {"dual_averaging": False} if apply == "proximal" else {}


@pytest.mark.parametrize("apply", ["gradient", "decoupled", "proximal"])
def test_a_layer_that_is_pruned_while_it_trains(apply: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 3, bias=False))
    nn.init.uniform_(net[0].weight, 1.0, 2.0)  # no row becomes zero
    optimizer = SGD(net.parameters(), lr=0.1)
    handle = attach(net, optimizer, GroupLasso(0.3), apply=apply, **_plainly(apply))
    for _ in range(2):
        net(torch.ones(2, 4)).square().mean().backward()
        optimizer.step()
    prune.custom_from_mask(net[0], "weight", torch.tensor([[1.0, 0, 0, 1]]).expand(3, 4))
    used = net[0].weight.detach().clone().requires_grad_()
    net.zero_grad()
    net[0].weight_orig.grad = torch.zeros(3, 4)
    expected = 0.3 * 2.0 * used.norm(dim=1).sum()  # √4 weights a group
    torch.testing.assert_close(handle.value(), expected.detach())
    (gradient,) = torch.autograd.grad(expected, used)
    optimizer.step()
    net(torch.ones(1, 4))
    mask = net[0].weight_mask
    torch.testing.assert_close(net[0].weight.detach(), (used.detach() - 0.1 * gradient) * mask)


def test_metrics_see_the_mask_and_the_next_one() -> None:
    layer = prune.ln_structured(nn.Linear(10, 8), "weight", amount=0.5, n=2, dim=0)
    assert sparsity(layer) == 0.5 and group_sparsity(layer) == 0.5
    optimizer = SGD(layer.parameters(), lr=0.1)
    attach(layer, optimizer, L1(0.1))
    prune.ln_structured(layer, "weight", amount=0.5, n=2, dim=0)
    layer(torch.ones(1, 10)).sum().backward()
    optimizer.step()
    assert sparsity(layer) == 0.75


def _normed(layer: nn.Module, new: bool, **options: Any) -> nn.Module:
    norm = nn.utils.parametrizations.weight_norm if new else nn.utils.weight_norm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, of the old one
        return norm(layer, **options)


NORMED = [
    pytest.param(lambda: nn.Linear(4, 6), {}, "rows", id="linear"),
    pytest.param(lambda: nn.Conv1d(4, 6, 3), {}, "filters", id="conv"),
    pytest.param(lambda: nn.ConvTranspose1d(4, 6, 3), {"dim": 1}, "rows", id="transposed"),
    pytest.param(lambda: nn.Linear(4, 6), {"dim": 1}, "columns", id="columns"),
    pytest.param(lambda: nn.Linear(4, 6), {"dim": None}, "tensor", id="tensor"),
    pytest.param(lambda: nn.Linear(4, 6), {}, "tensor", id="all rows"),
    pytest.param(lambda: nn.LSTM(4, 6), {"name": "weight_hh_l0"}, "rows", id="recurrent"),
]


@pytest.mark.parametrize("new", [True, False], ids=["new", "old"])
@pytest.mark.parametrize(("make", "options", "groups"), NORMED)
def test_groups_of_whole_slices_act_on_the_norms(make: Any, options: Any, groups: Any, new: bool) -> None:
    """The weight in use has had the proximal operator of the plain weight, but in the step of its norms."""
    torch.manual_seed(0)
    plain, step = make(), 0.5
    layer = _normed(copy.deepcopy(plain), new, **options)
    name = options.get("name", "weight")
    (weight,) = select_parameters(layer, name)
    assert weight.derived is not None and weight.derived.scale is not None
    (one,) = select_parameters(plain, name)
    norms = layout_of(one, groups).norm(layout_of(one, groups).view(one.parameter.detach()))
    size = one.parameter.numel() / norms.numel()
    penalty = GroupLasso(float(norms.median()) / step / size**0.5, name, groups=groups)
    handle = attach(layer, SGD(layer.parameters(), lr=step), penalty, apply="proximal", dual_averaging=False)
    torch.testing.assert_close(handle.value(), penalty(layer).detach())  # that of the weight
    for source in weight.sources:
        source.grad = torch.zeros_like(source)
    before = weight.derived.sources[0].detach().clone()
    handle._loop.optimizer.step()
    expected = penalty.bind([one])
    with torch.no_grad():
        expected.prox_([one.parameter], penalty.strength, [StepSize(step)])
    torch.testing.assert_close(weight.used(), one.parameter)
    assert torch.equal(weight.derived.sources[0], before) and bool((weight.derived.scale == 0).any())


@pytest.mark.parametrize("then", [parametrizations.spectral_norm, _doubled], ids=["spectral_norm", "doubled"])
def test_norms_that_something_else_changes_are_not_those_in_use(then: Any) -> None:
    net = nn.Sequential(then(parametrizations.weight_norm(nn.Linear(4, 3))))
    with pytest.raises(ValueError, match=r"0\.weight is computed .* MaxNorm cannot act on it in place"):
        attach(net, SGD(net.parameters(), lr=0.1), MaxNorm(0.3))
    torch.testing.assert_close(L1(1.0)(net.eval()), net[0].weight.abs().sum())


@pytest.mark.parametrize("kind", ["weight_norm", "old weight_norm"])
def test_what_depends_on_norms_acts_on_those_of_a_weight_norm(kind: str) -> None:
    for constraint, norms in ((MaxNorm(0.3), 0.3), (UnitNorm(), 1.0)):
        net = _net(kind)
        optimizer = SGD(net.parameters(), lr=0.1)
        handle = attach(net, optimizer, constraint)
        for _ in range(3):
            net(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
        net(torch.ones(1, 4))
        found = net[0].weight.norm(dim=1)
        torch.testing.assert_close(found.max(), torch.tensor(norms))
        assert isinstance(constraint, MaxNorm) or found.allclose(torch.tensor(norms))
        handle.remove()
    with pytest.raises(ValueError, match=r"groups='columns' cuts through the slices of 0\.weight"):
        attach(net, optimizer, MaxNorm(0.3, groups="columns"))


def test_a_weight_normed_layer_meets_the_group_lasso_of_the_plain_one() -> None:
    """The norms' certified solution: where no group is zero, the gradient in use is that of the norms."""
    torch.manual_seed(0)
    x, true = torch.randn(256, 6), torch.randn(6, 4) * torch.tensor([1.0, 0.02, 0.7, 0.02])
    y = x @ true
    net = _normed(nn.Linear(6, 4, bias=False), True)
    optimizer = SGD(net.parameters(), lr=0.5)
    attach(net, optimizer, GroupLasso(0.05), apply="proximal")
    for _ in range(150):
        optimizer.zero_grad()
        (0.5 * (net(x) - y).square().sum(1).mean()).backward()
        optimizer.step()
    weight = torch.zeros(4, 6)
    gram, correlation = x.T @ x / 256, y.T @ x / 256
    for _ in range(200):  # proximal gradient on the plain weight
        moved = weight - 0.3 * (weight @ gram - correlation)
        norms = moved.norm(dim=1, keepdim=True)
        weight = moved * (norms - 0.3 * 0.05 * 6**0.5).clamp(min=0) / norms
    torch.testing.assert_close(net.weight.detach(), weight, atol=1e-4, rtol=1e-3)
    assert int((weight.norm(dim=1) == 0).sum()) == 2


class _Unused(nn.Module):
    """A map of two tensors, one of which does not count."""

    def forward(self, weight: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return 2 * weight

    def right_inverse(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return weight / 2, torch.zeros(1)


def test_a_source_that_the_map_leaves_out_gets_nothing() -> None:
    layer = nn.Linear(4, 3)
    parametrize.register_parametrization(layer, "weight", _Unused())
    used, unused = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    optimizer = SGD(layer.parameters(), lr=0.1)
    attach(layer, optimizer, L2(0.1))
    before = used.detach().clone()
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(used.detach(), before * (1 - 0.1 * 0.1 * 4))
    assert not bool(unused.any())
