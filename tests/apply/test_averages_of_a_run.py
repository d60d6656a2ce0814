"""What happens to averages when something changes in a run, against the rule in Python's numbers."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.utils.data import DataLoader

from lightning_reg import L1, Box, ElasticNet, NonNegative, attach
from lightning_reg.apply.dual_averaging import is_average
from lightning_reg.callbacks import PenaltyCallback
from tests.support import QUIET, data

RATE, COUNT = 0.1, 40
START = (torch.randn(COUNT, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.1).abs()


def slopes(step: int, shift: float = 0.0) -> Tensor:
    """The gradient of a batch."""
    generator = torch.Generator().manual_seed(100 + step)
    mean = torch.linspace(-1.0, 1.0, COUNT, dtype=torch.float64) + shift
    return mean + torch.randn(COUNT, generator=generator, dtype=torch.float64)


def of_l1(w: float, s: float, share: float, strength: float) -> tuple[float, float]:
    threshold = RATE * strength
    s = (1 - share) * s + share * w / threshold
    if abs(s) < 1:
        return 0.0, s
    return (1 if w > 0 else -1) * max(abs(w) - threshold, 0.0), max(-1.0, min(1.0, s))


def of_bounds(w: float, s: float, share: float, low: float, high: float) -> tuple[float, float]:
    inside = min(max(w, low), high)
    at = low if s < 0 else high if s > 0 else inside
    new = (1 - share) * s + share * (w - at)
    new = 0.0 if s * new < 0 else new
    return low if new < 0 else high if new > 0 else inside, new


@dataclass
class ByHand:
    """The weights of one tensor under SGD, their averages, and how many steps these have seen."""

    rule: Callable[..., tuple[float, float]]
    how: tuple[float, ...]
    k: float = 4.0
    w: list[float] = field(default_factory=START.tolist)
    s: list[float] = field(default_factory=lambda: [0.0] * COUNT)
    t: int = 0

    def step(self, gradient: Tensor) -> None:
        self.t += 1
        share = min(1.0, self.k / (self.t + self.k - 1))
        moved = [w - RATE * g for w, g in zip(self.w, gradient.tolist(), strict=True)]
        pairs = [self.rule(w, s, share, *self.how) for w, s in zip(moved, self.s, strict=True)]
        self.w, self.s = [w for w, _ in pairs], [s for _, s in pairs]


TERMS: dict[str, tuple[Any, Callable[..., tuple[float, float]], tuple[float, ...]]] = {
    "L1": (L1(0.7, "all"), of_l1, (0.7,)),
    "NonNegative": (NonNegative(select="all"), of_bounds, (0.0, float("inf"))),
    "Box": (Box(-0.05, 0.1, select="all"), of_bounds, (-0.05, 0.1)),
}
each_term = pytest.mark.parametrize("term", TERMS)


class Run:
    """SGD on two tensors with something attached to them."""

    def __init__(self, term: Any, **how: Any) -> None:
        self.model = nn.ParameterDict({name: nn.Parameter(START.clone()) for name in "ab"})
        self.optimizer = torch.optim.SGD(self.model.parameters(), RATE)
        self.handle = attach(self.model, self.optimizer, term, apply="proximal", **how)

    def step(self, step: int, *names: str) -> None:
        for name in self.model:
            self.model[name].grad = slopes(step) if name in (names or "ab") else None
        self.optimizer.step()

    def restored(self, term: Any, **how: Any) -> Run:
        """The same run, begun anew from what is saved."""
        buffer = io.BytesIO()
        saved = [self.model.state_dict(), self.optimizer.state_dict(), self.handle.state_dict()]
        torch.save(saved, buffer)
        buffer.seek(0)
        model, optimizer, _ = torch.load(buffer, weights_only=True)
        other = Run(term, **how)
        other.model.load_state_dict(model)
        other.optimizer.load_state_dict(optimizer)
        return other

    def kept(self, name: str = "a") -> dict[str, Any]:
        state = self.optimizer.state[self.model[name]]
        return {key: value for key, value in state.items() if is_average(key)}

    def check(self, hand: ByHand, name: str = "a") -> None:
        found = torch.tensor(hand.w, dtype=torch.float64)
        torch.testing.assert_close(self.model[name].detach(), found, rtol=0, atol=1e-14)
        (average,) = (value for value in self.kept(name).values() if isinstance(value, Tensor))
        torch.testing.assert_close(average, torch.tensor(hand.s, dtype=torch.float64), rtol=0, atol=1e-12)
        assert [value for key, value in self.kept(name).items() if key.endswith("/step")] == [hand.t]


def begun(term: str, steps: int = 5, **how: Any) -> tuple[Run, ByHand]:
    one, rule, numbers = TERMS[term]
    run, hand = Run(one, **how), ByHand(rule, numbers)
    for step in range(steps):
        run.step(step)
        hand.step(slopes(step))
    if steps:
        run.check(hand)
    held = run.model["a"].detach() == torch.tensor(hand.w, dtype=torch.float64).mode().values
    assert not steps or 0 < int(held.sum()) < COUNT
    return run, hand


@each_term
def test_another_strength_or_window_goes_on_with_the_averages_that_are_there(term: str) -> None:
    """They are in units of λ."""
    run, hand = begun(term)
    other, hand.how = TERMS[term][0], TERMS[term][2]
    if term == "L1":
        other, hand.how = L1(0.4, "all"), (0.4,)
    run, hand.k = run.restored(other, dual_averaging=8), 8.0
    for step in range(5, 9):
        run.step(step)
        hand.step(slopes(step))
        run.check(hand)


@each_term
def test_a_rate_of_zero_a_frozen_tensor_and_none_in_the_batch_leave_all_as_it_is(term: str) -> None:
    run, hand = begun(term)
    group, weight = run.optimizer.param_groups[0], run.model["a"]
    group["lr"] = 0.0
    run.step(5)
    run.check(hand)
    group["lr"] = RATE
    run.step(6, "b")
    run.check(hand)
    weight.requires_grad_(False)
    run.step(7, "b")
    run.check(hand)
    weight.requires_grad_(True)
    run.step(8)
    hand.step(slopes(8))
    run.check(hand)


@each_term
def test_another_selection_begins_where_there_is_no_average_and_goes_on_where_there_is(term: str) -> None:
    one, rule, numbers = TERMS[term]
    some = type(one)(*numbers[: {"L1": 1, "Box": 2}.get(term, 0)], select="a")
    run, first = Run(some), ByHand(rule, numbers)
    for step in range(5):
        run.step(step, "a")
        first.step(slopes(step))
    assert not run.kept("b")
    run, second = run.restored(one), ByHand(rule, numbers)
    for step in range(5, 8):
        run.step(step)
        first.step(slopes(step))
        second.step(slopes(step))
    run.check(first)
    run.check(second, "b")


def test_another_penalty_begins_anew_with_a_plain_step() -> None:
    run, hand = begun("L1")
    run = run.restored(ElasticNet(0.7, select="all", l1_ratio=0.5))
    moved = torch.tensor(hand.w, dtype=torch.float64) - RATE * slopes(5)
    run.step(5)
    soft = moved.sign() * (moved.abs() - RATE * 0.35).clamp(min=0.0)
    torch.testing.assert_close(run.model["a"].detach(), soft / (1 + RATE * 0.35))
    assert sorted(v for k, v in run.kept().items() if k.endswith("/step")) == [1, 5]


@each_term
def test_a_group_that_is_added_begins_with_a_count_of_its_own(term: str) -> None:
    run, _ = begun(term)
    run.model["c"] = nn.Parameter(START.clone())
    run.optimizer.add_param_group({"params": [run.model["c"]], "lr": RATE})
    hand = ByHand(*TERMS[term][1:])
    for step in range(5, 8):
        run.step(step, "a", "c")
        hand.step(slopes(step))
    run.check(hand, "c")


@pytest.mark.skipif(Version(torch.__version__) < Version("2.7"), reason="tried with later ones alone")
@each_term
def test_torchs_checkpoints_find_room_in_an_optimizer_that_has_taken_no_step(term: str) -> None:
    """They fill its state by a step with rates of 0, and load what they find there."""
    run, hand = begun(term, steps=0)
    state = get_optimizer_state_dict(run.model, run.optimizer)["state"]["a"]  # type: ignore[index]
    assert [name for name in state if is_average(name)] == list(run.kept())
    hand.w = run.model["a"].tolist()  # projected, and not moved
    run.check(hand)
    for step in range(3):
        run.step(step)
        hand.step(slopes(step))
    run.check(hand)


@each_term
@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
def test_a_step_that_a_scaler_skips_moves_no_average(term: str, fused: bool) -> None:
    run, hand = begun(term)
    for group in run.optimizer.param_groups:
        group["fused"] = fused
    run.optimizer._step_supports_amp_scaling = fused  # type: ignore[attr-defined]
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=100)
    scaler.scale(torch.zeros(()))
    for name in "ab":
        run.model[name].grad = torch.full_like(START, torch.inf)
    scaler.step(run.optimizer)
    scaler.update()
    run.check(hand)
    for name in "ab":
        run.model[name].grad = slopes(6) * scaler.get_scale()
    scaler.step(run.optimizer)
    hand.step(slopes(6))
    run.check(hand)


def test_16_bit_weights_have_averages_of_almost_32_bits() -> None:
    """Of weights that stay at zero: one in bfloat16 alone is off by a thousandth."""
    weight, rate = nn.Parameter(torch.zeros(COUNT, dtype=torch.bfloat16)), 0.125  # its steps are not rounded
    optimizer = torch.optim.SGD([weight], rate)
    attach(nn.ParameterList([weight]), optimizer, L1(4.0, "all"), apply="proximal")
    by_hand = torch.zeros(COUNT, dtype=torch.float64)
    for t in range(1, 201):
        weight.grad = slopes(t).bfloat16()
        optimizer.step()
        share = 4.0 / (t + 3)
        by_hand += share * (-weight.grad.double() / 4.0 - by_hand)
        assert not weight.any() and float(by_hand.abs().max()) < 1.0
    high, low = (value.double() for value in optimizer.state[weight].values() if isinstance(value, Tensor))
    torch.testing.assert_close(high + low, by_hand, rtol=0, atol=1e-4)
    assert float((high - by_hand).abs().max()) > 5e-4  # it takes both


def test_complex_weights_step_by_step() -> None:
    """A threshold on the modulus, and the average in the unit disc."""
    generator = torch.Generator().manual_seed(2)
    weight = nn.Parameter(0.1 * torch.randn(COUNT, dtype=torch.complex128, generator=generator))
    optimizer = torch.optim.SGD([weight], RATE)
    attach(nn.ParameterList([weight]), optimizer, L1(1.5, "all"), apply="proximal")
    by_hand, average, zeros = weight.tolist(), [0j] * COUNT, 0
    for t in range(1, 9):
        weight.grad = torch.randn(COUNT, dtype=torch.complex128, generator=generator) + 0.5
        optimizer.step()
        share, threshold = 4.0 / (t + 3), RATE * 1.5
        for i, g in enumerate(weight.grad.tolist()):
            w = by_hand[i] - RATE * g
            s = (1 - share) * average[i] + share * w / threshold
            by_hand[i] = 0j if abs(s) < 1 else w * max(1 - threshold / abs(w), 0.0)
            average[i] = s / max(1.0, abs(s))
        torch.testing.assert_close(weight.detach(), torch.tensor(by_hand, dtype=torch.complex128))
        zeros += by_hand.count(0j)
    assert COUNT < zeros < 8 * COUNT


class Two(pl.LightningModule):
    """Two networks with an optimizer each, toggled as in a GAN; the second every other batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.first, self.second = nn.Linear(10, 1), nn.Linear(10, 1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        for i, optimizer in enumerate(self.optimizers()):  # type: ignore[arg-type]
            if i == 1 and batch_idx % 2:
                continue
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            (self.first(x) + self.second(x) - y).square().mean().backward()
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(net.parameters(), 0.05) for net in (self.first, self.second)]


def test_toggled_optimizers_move_the_averages_of_their_own_weights() -> None:
    module, by_hand = Two(), Two()
    loader = DataLoader(data(), batch_size=8)
    steps: dict[str, int] = {}

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *given: Any) -> None:
            for net, optimizer in zip((module.first, module.second), trainer.optimizers, strict=True):
                for name, value in optimizer.state[net.weight].items():
                    if name.endswith("/step"):
                        steps[str(id(net))] = value

    penalty = PenaltyCallback(L1(0.5), "proximal")
    pl.Trainer(**QUIET, max_epochs=2, callbacks=[penalty, Look()]).fit(module, loader)
    assert list(steps.values()) == [16, 8]
    optimizers = by_hand.configure_optimizers()
    for net, optimizer in zip((by_hand.first, by_hand.second), optimizers, strict=True):
        attach(net, optimizer, L1(0.5), apply="proximal")
    for _ in range(2):
        for i, (x, y) in enumerate(loader):
            for optimizer in optimizers[: 1 + (i % 2 == 0)]:
                by_hand.zero_grad()
                (by_hand.first(x) + by_hand.second(x) - y).square().mean().backward()
                optimizer.step()
    for ours, theirs in zip(module.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert bool((module.first.weight == 0).any())


def test_accumulated_batches_move_the_averages_once() -> None:
    class Net(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(10, 1)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return (self.layer(batch[0]) - batch[1]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.05)

    found = []
    for size, accumulate in ((8, 2), (16, 1)):
        module = Net()

        class Look(pl.Callback):
            def on_train_end(self, trainer: Any, pl_module: Any) -> None:
                state = trainer.optimizers[0].state[pl_module.layer.weight]
                found.append({name.split("/")[-1]: value for name, value in state.items()})

        options = {**QUIET, "accumulate_grad_batches": accumulate, "max_epochs": 2}
        trainer = pl.Trainer(callbacks=[PenaltyCallback(L1(0.5), "proximal"), Look()], **options)
        trainer.fit(module, DataLoader(data(), batch_size=size))
        found[-1]["weight"] = module.layer.weight.detach()
    assert found[0]["step"] == found[1]["step"] == 8
    assert bool((found[0]["weight"] == 0).any())
    for name, value in found[0].items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(value, found[1][name], msg=name)
