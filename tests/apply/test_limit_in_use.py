"""``MaxNorm`` beside ``spectral_norm``: the weight in use keeps both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as by_hook
from torch.optim import SGD, Adam

from lightning_reg import L2, MaxNorm, NonNegative, UnitNorm, attach

NORMS = [parametrizations.spectral_norm, by_hook]
#: A layer, its input, the groups of the limit, and how many there are.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str, int]] = {
    "linear": (lambda: nn.Linear(7, 6), (7,), "rows", 6),
    "columns": (lambda: nn.Linear(7, 6), (7,), "columns", 7),
    "convolution": (lambda: nn.Conv2d(3, 8, 3), (3, 6, 6), "rows", 8),
    "transposed": (lambda: nn.ConvTranspose2d(3, 8, 3), (3, 6, 6), "rows", 8),
}


def longest(weight: torch.Tensor, groups: str, count: int) -> float:
    dim = next(i for i, size in enumerate(weight.shape) if size == count)
    return float(weight.detach().movedim(dim, 0).flatten(1).norm(dim=1).max())


@pytest.mark.parametrize("norm", NORMS, ids=["parametrization", "hook"])
@pytest.mark.parametrize("case", LAYERS)
def test_the_weight_in_use_keeps_both(case: str, norm: Any) -> None:
    make, shape, groups, count = LAYERS[case]
    torch.manual_seed(0)
    layer = norm(make())
    free = norm(make())
    limit = 1.3 / count**0.5
    optimizer = SGD(layer.parameters(), lr=0.3, momentum=0.9)
    attach(layer, optimizer, MaxNorm(limit, groups=groups))
    others = SGD(free.parameters(), lr=0.3, momentum=0.9)
    x = torch.randn(16, *shape)
    target = torch.randn_like(layer(x))
    losses = []
    for _ in range(12):
        for net, steps in ((layer, optimizer), (free, others)):
            steps.zero_grad()
            loss = (net(x) - target).square().mean()
            loss.backward()
            steps.step()
        losses.append((layer(x) - target).square().mean().item())
        assert longest(layer.weight, groups, count) <= limit * (1 + 2e-5)
        layer.eval()
        layer(x)
        assert longest(layer.weight, groups, count) <= limit * (1 + 2e-5)
        matrix = layer.weight.detach().movedim(1 if case == "transposed" else 0, 0).flatten(1)
        assert float(torch.linalg.matrix_norm(matrix, 2)) == pytest.approx(1.0, rel=1e-5)
        layer.train()
    assert longest(free.weight, groups, count) > 1.02 * limit  # without it the limit is exceeded
    assert losses[-1] < losses[0]


def test_a_limit_that_holds_changes_nothing() -> None:
    def run(limited: bool) -> torch.Tensor:
        torch.manual_seed(0)
        net = parametrizations.spectral_norm(nn.Linear(5, 4))
        optimizer = Adam(net.parameters(), lr=0.01)
        if limited:
            attach(net, optimizer, MaxNorm(2.0))
        for _ in range(5):
            optimizer.zero_grad()
            net(torch.ones(2, 5)).square().mean().backward()
            optimizer.step()
        return nn.utils.parameters_to_vector(net.parameters()).detach()

    assert torch.equal(run(True), run(False))


def test_what_cannot_hold_is_refused_with_the_least_that_can() -> None:
    net = parametrizations.spectral_norm(nn.Linear(5, 4))
    optimizer = SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"MaxNorm cannot act on it.*or give a limit of 0\.5 or more"):
        attach(net, optimizer, MaxNorm(0.49))
    attach(net, optimizer, MaxNorm(0.5)).remove()
    for other in (UnitNorm(), NonNegative()):
        with pytest.raises(ValueError, match="leave it out with select="):
            attach(net, optimizer, other)
    nn.utils.parametrize.register_parametrization(net, "weight", Negated())  # of any norm, for all we know
    with pytest.raises(ValueError, match="computed from other parameters by Negated, so that MaxNorm cannot"):
        attach(net, optimizer, MaxNorm(2.0))


class Negated(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return -weight


def test_the_least_limit_is_that_of_equal_rows_in_one_direction() -> None:
    weights = torch.randn(50, 4, 5)
    rows = (weights / torch.linalg.matrix_norm(weights, 2)[:, None, None]).norm(dim=-1).amax(dim=-1)
    assert bool((rows >= 0.5).all()) and bool((rows <= 1 + 1e-6).all())
    equal = torch.ones(4, 5) / torch.linalg.matrix_norm(torch.ones(4, 5), 2)
    torch.testing.assert_close(equal.norm(dim=1), torch.full((4,), 0.5))


def test_it_acts_beside_plain_layers_and_after_a_decay() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(parametrizations.spectral_norm(nn.Linear(5, 4)), nn.Linear(4, 3))
    optimizer = SGD(net.parameters(), lr=0.5)
    attach(net, optimizer, MaxNorm(0.7))
    attach(net, optimizer, L2(0.1), apply="gradient")
    for _ in range(10):
        optimizer.zero_grad()
        net(torch.randn(8, 5)).square().mean().backward()
        optimizer.step()
        assert all(longest(layer.weight, "rows", len(layer.weight)) <= 0.7 + 2e-5 for layer in net)  # type: ignore[arg-type,union-attr]
