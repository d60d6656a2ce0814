"""The kinds of decoupled decay against loops written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from lightning_reg import L1, L2, Linear, attach
from lightning_reg.callbacks import L1PenaltyCallback, L2PenaltyCallback
from tests.support import Net, fit, network, weights

STEPS = 12


class OwnAdam:
    """Adam with its own decay, from its formula."""

    def __init__(self, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        self.lr, self.betas, self.eps = lr, betas, eps
        self.m: Tensor | float = 0.0
        self.v: Tensor | float = 0.0
        self.t = 0

    def update(self, gradient: Tensor, rate: float) -> Tensor:
        self.t += 1
        b1, b2 = self.betas
        self.m = b1 * self.m + (1 - b1) * gradient
        self.v = b2 * self.v + (1 - b2) * gradient**2
        mean, spread = self.m / (1 - b1**self.t), self.v / (1 - b2**self.t)
        return rate * mean / (spread**0.5 + self.eps)


def problem() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 6, dtype=torch.float64, generator=generator)
    start = torch.randn(1, 6, dtype=torch.float64, generator=generator)
    return x, x @ torch.tensor([1.0, -2.0, 0.0, 0.5, 0.0, 3.0], dtype=torch.float64), start


def gradient(weight: Tensor) -> Tensor:
    x, y, _ = problem()
    return ((x @ weight.view(-1) - y) @ x / len(y)).view(1, -1)


def by_hand(rates: list[float], decay: Callable[[float, Tensor, Tensor, int], Tensor]) -> Tensor:
    """``w − u − decay(rate, w, u, t)``."""
    weight, adam = problem()[2].clone(), OwnAdam(0.1)
    for step, rate in enumerate(rates):
        update = adam.update(gradient(weight), rate)
        weight = weight - update - decay(rate, weight, update, step)
    return weight


def ours(penalty: L2, make: Any = None) -> tuple[Tensor, list[float]]:
    model = nn.Linear(6, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(problem()[2])
    optimizer = Adam(model.parameters(), lr=0.1)
    scheduler = make(optimizer) if make else None
    attach(model, optimizer, penalty, apply="decoupled", total_steps=STEPS)
    rates = []
    for _ in range(STEPS):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        model.weight.grad = gradient(model.weight.detach())
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return model.weight.detach(), rates


def warm_up(optimizer: Optimizer) -> Any:
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 4) * (1 - step / 20))


def one_cycle(optimizer: Optimizer) -> Any:
    return OneCycleLR(optimizer, max_lr=0.3, total_steps=STEPS + 1, cycle_momentum=False)


@pytest.mark.parametrize("make", [None, warm_up, one_cycle])
def test_independent_of_the_rate(make: Any) -> None:
    weight, rates = ours(L2(0.02, decay="independent"), make)
    expected = by_hand(rates, lambda rate, w, u, t: 0.02 * w)
    torch.testing.assert_close(weight, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("make", "highest"), [(None, 0.1), (warm_up, 0.1), (one_cycle, 0.3)])
def test_corrected_by_the_highest_rate(make: Any, highest: float) -> None:
    weight, rates = ours(L2(0.3, decay="corrected"), make)
    expected = by_hand(rates, lambda rate, w, u, t: 0.3 * rate**2 / highest * w)
    torch.testing.assert_close(weight, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("decay", ["lr", "independent"])
def test_cautious_only_where_update_and_weight_agree(decay: Any) -> None:
    weight, rates = ours(L2(0.1, decay=decay, cautious=True))

    def cautious(rate: float, w: Tensor, u: Tensor, t: int) -> Tensor:
        return (0.1 if decay == "independent" else 0.1 * rate) * w * (u * w >= 0)

    expected = by_hand(rates, cautious)
    torch.testing.assert_close(weight, expected, rtol=1e-12, atol=0)
    plain = by_hand(rates, lambda rate, w, u, t: (0.1 if decay == "independent" else 0.1 * rate) * w)
    assert float((weight - plain).abs().max()) > 1e-3  # some weights were left alone


def test_each_takes_a_schedule() -> None:
    for options in ({"decay": "independent"}, {"decay": "independent", "cautious": True}):
        weight, rates = ours(L2(Linear(0.0, 0.1), **options))  # type: ignore[arg-type]

        def decay(rate: float, w: Tensor, u: Tensor, t: int, options: Any = options) -> Tensor:
            where = (u * w >= 0) if options.get("cautious") else 1.0
            return 0.1 * t / STEPS * w * where

        torch.testing.assert_close(weight, by_hand(rates, decay), rtol=1e-12, atol=0)


def test_the_callback_decays_as_attach_does() -> None:
    module = Net(lambda p: Adam(p, lr=0.01))
    fit(module, L2PenaltyCallback(0.05, apply="decoupled", decay="independent", cautious=True), steps=8)
    other = Net(lambda p: Adam(p, lr=0.01))
    made: list[Any] = []

    def attached(parameters: Any) -> Optimizer:
        optimizer = Adam(parameters, lr=0.01)
        made.append(attach(other, optimizer, L2(0.05, decay="independent", cautious=True), apply="decoupled"))
        return optimizer

    other.make_optimizer = attached
    fit(other, steps=8)
    assert torch.equal(weights(module.net), weights(other.net))
    plain = Net(lambda p: Adam(p, lr=0.01))
    fit(plain, L2PenaltyCallback(0.05, apply="decoupled", decay="independent"), steps=8)
    assert not torch.equal(weights(module.net), weights(plain.net))


def test_cautious_rounds_16_bit_weights_in_the_mean() -> None:
    model = nn.Linear(200, 50, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(model.weight)
    optimizer = SGD(model.parameters(), lr=1.0)
    attach(model, optimizer, L2(2**-12, decay="independent", cautious=True), apply="decoupled")
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    assert float(model.weight.detach().float().mean()) == pytest.approx(1 - 2**-12, abs=6e-5)
    assert model.weight.detach().unique().numel() == 2


@pytest.mark.parametrize("options", [{"decay": "independent"}, {"decay": "corrected"}, {"cautious": True}])
@pytest.mark.parametrize("apply", ["gradient", "proximal", "loss"])
def test_they_are_for_decoupled(apply: Any, options: Any) -> None:
    with pytest.raises(ValueError, match=r"says how apply='decoupled' decays, and this is apply="):
        L2PenaltyCallback(0.1, apply=apply, **options)
    with pytest.raises(ValueError, match=r"L2\(decay='sometimes'\) is unknown; it is one of 'lr', 'ind"):
        L2(0.1, decay="sometimes")  # type: ignore[arg-type]


# --- today's common pair: Muon for matrices, AdamW for the rest --------------------------------------


with_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9")


class Pair(Net):
    """One module with two optimizers, stepped by hand as Lightning asks."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        matrices = [p for p in self.parameters() if p.dim() == 2]
        rest = [p for p in self.parameters() if p.dim() != 2]
        return torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0), torch.optim.AdamW(
            rest, lr=0.01, weight_decay=0.0
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:  # type: ignore[override]
        loss = super().training_step(batch, batch_idx)
        optimizers: Any = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
        return loss


def pair_by_hand(decayed: float = 0.0, l1: float = 0.0, l2: float = 0.0) -> Tensor:
    from tests.support import batches

    net = network()
    matrices, rest = ([p for p in net.parameters() if (p.dim() == 2) == flat] for flat in (True, False))
    first = torch.optim.Muon(matrices, lr=0.02, weight_decay=decayed)
    second = torch.optim.AdamW(rest, lr=0.01, weight_decay=0.0)
    for x, y in list(batches())[:8]:
        loss = nn.functional.mse_loss(net(x), y)
        loss = loss + sum(l1 * w.abs().sum() + l2 / 2 * w.square().sum() for w in matrices)
        net.zero_grad()
        loss.backward()
        first.step()
        second.step()
    return weights(net)


@with_muon
@pytest.mark.parametrize(
    ("callback", "expected"),
    [
        (L1PenaltyCallback(0.1), {"l1": 0.1}),
        (L2PenaltyCallback(0.3), {"l2": 0.3}),
        (L2PenaltyCallback(0.3, apply="decoupled"), {"decayed": 0.3}),
    ],
)
def test_muon_beside_adamw(callback: Any, expected: Any) -> None:
    module = Pair()
    fit(module, callback, steps=16)
    torch.testing.assert_close(weights(module.net), pair_by_hand(**expected), rtol=1e-5, atol=1e-6)


@with_muon
def test_muon_has_no_proximal_metric_and_adamw_beside_it_has() -> None:
    with pytest.raises(ValueError, match=r"under Muon: it makes its steps orthogonal.*apply='decoupled'"):
        fit(Pair(), L1PenaltyCallback(0.1, apply="proximal"), steps=2)
    module = Pair()
    fit(module, L1PenaltyCallback(0.1, apply="decoupled"), steps=16)
    assert not torch.allclose(weights(module.net), pair_by_hand())
    net = network()
    optimizer = torch.optim.Muon([p for p in net.parameters() if p.dim() == 2], lr=0.02)
    attach(net, optimizer, L1(0.1), apply="decoupled")
