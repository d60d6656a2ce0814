"""Clipping by norm beside a proximal step: the zeros and the weights of the problem, not of another λ."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import L1, L2, RegularizedModule, attach
from lightning_reg.callbacks import L1PenaltyCallback
from lightning_reg.hosts.clipping import BetweenBackwardAndStep
from tests.support import QUIET
from tests.turns import everyday

STRENGTH = 0.1
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.4),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.9, 0.99)),
}


def problem(count: int = 100, features: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(count, features, generator=generator, dtype=torch.float64)
    truth = torch.zeros(features, 1, dtype=torch.float64)
    truth[:4, 0] = torch.tensor([1.0, -0.5, 0.8, 0.3], dtype=torch.float64)
    noise = torch.randn(count, 1, generator=generator, dtype=torch.float64)
    return inputs, inputs @ truth + 0.5 * noise


def solution(x: Tensor, y: Tensor) -> Tensor:
    """Coordinate descent."""
    weight = torch.zeros(x.shape[1], dtype=x.dtype)
    for _ in range(200):
        for j in range(len(weight)):
            weight[j] = 0.0
            slope = float(x[:, j] @ (y[:, 0] - x @ weight)) / len(y)
            weight[j] = math.copysign(max(abs(slope) - STRENGTH, 0.0), slope) / float(x[:, j].square().mean())
    return weight


X, Y = problem()
SOLUTION = solution(X, Y)


class Lasso(pl.LightningModule):
    """Clips in the way of its class, or as the Trainer says."""

    def __init__(self, optimizer: str = "momentum") -> None:
        super().__init__()
        self.layer = nn.Linear(12, 1, bias=False, dtype=torch.float64)
        nn.init.zeros_(self.layer.weight)
        self.optimizer = optimizer

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return 0.5 * (self.layer(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return OPTIMIZERS[self.optimizer](self.parameters())


class Configured(Lasso):
    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        clip_grad_norm_(self.parameters(), 0.15)


class Manual(Lasso):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        self.clip_gradients(optimizer, gradient_clip_val=0.15, gradient_clip_algorithm="norm")
        optimizer.step()


class Carrying(RegularizedModule):
    def __init__(self) -> None:
        super().__init__(L1(STRENGTH), apply="proximal")
        self.layer = nn.Linear(12, 1, bias=False, dtype=torch.float64)

    def task_loss(self, batch: Any, batch_idx: int) -> Tensor:
        return 0.5 * (self.layer(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return OPTIMIZERS["momentum"](self.parameters())


def is_solved(weight: Tensor) -> bool:
    flat = weight.detach().flatten()
    return torch.equal(flat == 0, SOLUTION == 0) and bool((flat - SOLUTION).abs().max() < 1e-6)


def loop(optimizer: str, *, steps: int = 500, clip: Any = clip_grad_norm_, noticed: bool = True) -> Tensor:
    layer = nn.Linear(12, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(layer.weight)
    steps_by = OPTIMIZERS[optimizer](layer.parameters())
    handle = attach(layer, steps_by, L1(STRENGTH), apply="proximal")
    for _ in range(steps):
        steps_by.zero_grad()
        (0.5 * (layer(X) - Y).square().mean()).backward()
        context: AbstractContextManager[None] = handle.clipping() if noticed else nullcontext()
        with context:
            clip(layer.parameters(), 0.15)
        steps_by.step()
    return layer.weight


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_plain_loop_that_says_so_solves_the_problem(optimizer: str) -> None:
    assert 0 < int((SOLUTION == 0).sum()) < 12
    assert is_solved(loop(optimizer, steps=600 if optimizer == "adam" else 150))


def test_an_unnoticed_clipping_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"norm 0\.15, as after clipping"):
        weight = loop("sgd", steps=60, noticed=False)
    assert not is_solved(weight)


@pytest.mark.parametrize("clip", [clip_grad_value_], ids=["value"])
def test_clipping_by_value_is_warned_of(clip: Any) -> None:
    with pytest.warns(UserWarning, match="clipping by value"):
        loop("sgd", steps=3, clip=clip)


@pytest.mark.parametrize("bound", [0.1, 0.02])
def test_clipping_by_value_that_nobody_says_is_warned_of(bound: float) -> None:
    layer = nn.Linear(20, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    attach(layer, optimizer, L1(0.1), apply="proximal")
    generator = torch.Generator().manual_seed(0)
    with pytest.warns(UserWarning, match="clipping by value"):
        for _ in range(6):
            optimizer.zero_grad()
            layer(torch.randn(16, 20, generator=generator)).square().mean().backward()
            clip_grad_value_(layer.parameters(), bound)
            optimizer.step()


def test_gradients_whose_largest_entry_is_one_by_nature_are_not_taken_for_clipped() -> None:
    """A bias under an absolute error has a slope of 1 while all residuals have one sign."""
    layer = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    attach(layer, optimizer, L1(0.1), apply="proximal")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(20):
            optimizer.zero_grad()
            (layer(torch.rand(16, 3)) - 100.0).abs().mean().backward()
            optimizer.step()


class _Clips(pl.Callback):
    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, *given: Any) -> None:
        clip_grad_norm_(module.parameters(), 0.15)


@pytest.mark.parametrize("first", [True, False])
def test_a_callback_that_clips_is_warned_of_wherever_it_stands(first: bool) -> None:
    ours = L1PenaltyCallback(STRENGTH, apply="proximal", log=False)
    batches = DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True)
    with pytest.warns(UserWarning, match=r"norm 0\.15, as after clipping"):
        pl.Trainer(max_epochs=20, callbacks=[ours, _Clips()] if first else [_Clips(), ours], **QUIET).fit(
            Lasso(), batches
        )


def test_gradients_that_stay_the_same_are_not_taken_for_clipped() -> None:
    layer = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    attach(layer, optimizer, L1(0.1), apply="proximal")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(20):
            optimizer.zero_grad()
            layer(torch.ones(2, 3)).sum().backward()
            optimizer.step()


def test_parts_clipped_apart_have_factors_of_their_own() -> None:
    """Each part's step is as long as the gradient that it was given, also where one is clipped twice."""
    model = nn.ModuleList(
        [nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False)]
    )
    weights = [layer.weight for layer in model]
    before = [w.detach().clone() for w in weights]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = attach(model, optimizer, L1(0.2), apply="proximal")
    other = attach(model, optimizer, L2(0.0))
    for w in weights:
        w.grad = torch.full_like(w, 2.0 / math.sqrt(3))
    with first.clipping(), first.clipping():
        clip_grad_norm_([weights[0]], 1.0)
    with first.clipping(), other.clipping():
        clip_grad_norm_([weights[1]], 0.5)
    with first.clipping():
        clip_grad_norm_([weights[0]], 0.2)
    optimizer.step()
    for old, new, c in zip(before, weights, (0.1, 0.25, 1.0), strict=True):
        moved = old - 0.1 * c * 2.0 / math.sqrt(3)
        expected = moved.sign() * (moved.abs() - 0.1 * c * 0.2).clamp(min=0.0)
        torch.testing.assert_close(new.detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", everyday(2, ["trainer", "module", "configured", "manual"]))
def test_lightning_solves_the_problem(way: str) -> None:
    made = {"trainer": Lasso, "configured": Configured, "manual": Manual, "module": Carrying}
    model = made[way]()
    nn.init.zeros_(model.layer.weight)
    how = {"gradient_clip_val": 0.15} if way in ("trainer", "module") else {}
    callbacks = [] if way == "module" else [L1PenaltyCallback(STRENGTH, apply="proximal", log=False)]
    batches = DataLoader(TensorDataset(X, Y), batch_size=len(X))
    pl.Trainer(max_epochs=150, callbacks=callbacks, **how, **QUIET).fit(model, batches)
    assert is_solved(model.layer.weight)
    assert not {"configure_gradient_clipping", "clip_gradients"} & set(vars(model))


def test_a_trainer_that_clips_by_value_is_warned_of() -> None:
    batches = DataLoader(TensorDataset(X, Y), batch_size=len(X))
    how = {"gradient_clip_val": 0.15, "gradient_clip_algorithm": "value", "max_epochs": 1, **QUIET}
    with pytest.warns(UserWarning, match="clipping by value"):
        pl.Trainer(callbacks=[L1PenaltyCallback(0.1, apply="proximal")], **how).fit(Lasso(), batches)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="clipping by value")
        pl.Trainer(callbacks=[L1PenaltyCallback(0.1)], **how).fit(Lasso(), batches)


def test_the_averaged_factor_is_saved_and_leaves_with_the_handle() -> None:
    layer = nn.Linear(3, 1, bias=False)
    optimizer = OPTIMIZERS["momentum"](layer.parameters())
    handle = attach(layer, optimizer, L1(0.1), apply="proximal")
    for size in (4.0, 1.0):
        layer.weight.grad = torch.tensor([[size, 0.0, 0.0]])
        with handle.clipping():
            clip_grad_norm_(layer.parameters(), 2.0)
        optimizer.step()
    state = optimizer.state[layer.weight]
    (mean,) = (value for key, value in state.items() if key.endswith("/clip"))
    assert mean == pytest.approx((0.8 * 0.5 + 1.0) / 1.8, rel=1e-5)
    handle.remove()
    assert [*state] == ["momentum_buffer"]


class InTurn(pl.LightningModule):
    """Two networks in turn, whose gradients it clips by itself, with the penalty by hand or by a callback."""

    def __init__(self, by_hand: float = 0.0) -> None:
        super().__init__()
        self.build(by_hand)

    def build(self: Any, by_hand: float = 0.0) -> None:
        torch.manual_seed(0)
        self.automatic_optimization, self.by_hand = False, by_hand
        self.parts = nn.ModuleList(nn.Linear(12, 1, dtype=torch.float64) for _ in range(2))

    def training_step(self: Any, batch: list[Tensor], batch_idx: int) -> None:
        for part, optimizer in zip(self.parts, self.optimizers(), strict=True):
            optimizer.zero_grad()
            loss = (part(batch[0]) - batch[1]).square().mean()
            self.manual_backward(loss + self.by_hand * part.weight.abs().sum())
            self.clip_gradients(optimizer, gradient_clip_val=0.2, gradient_clip_algorithm="norm")
            if batch_idx != 2:  # a step left out
                optimizer.step()

    def configure_optimizers(self: Any) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(part.parameters(), lr=0.1, momentum=0.5) for part in self.parts]


@pytest.mark.parametrize("ready", [False, True], ids=["callback", "module"])
def test_under_manual_optimization_a_gradient_is_added_before_the_module_clips(ready: bool) -> None:
    class Ready(RegularizedModule):
        def __init__(self) -> None:
            super().__init__([L1(0.5)], apply="gradient")
            InTurn.build(self)

        training_step, configure_optimizers = InTurn.training_step, InTurn.configure_optimizers

    batches = DataLoader(TensorDataset(X, Y), batch_size=20)

    def trained(module: pl.LightningModule, *callbacks: pl.Callback) -> Tensor:
        pl.Trainer(max_epochs=3, callbacks=list(callbacks), **QUIET).fit(module, batches)
        assert "clip_gradients" not in vars(module)
        return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])

    expected, without = trained(InTurn(0.5)), trained(InTurn())
    found = trained(Ready()) if ready else trained(InTurn(), L1PenaltyCallback(0.5))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert float((expected - without).abs().max()) > 0.05


@pytest.mark.parametrize("dead", [0, 9], ids=["first rows", "smallest tensors"])
def test_clipping_shows_though_some_gradients_are_zero(dead: int) -> None:
    """As those of a padding token, and of layers that a batch does not reach."""
    model = nn.ModuleList([nn.Embedding(10, 300), *(nn.Linear(2, 1) for _ in range(dead))])
    embedding: Any = model[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    attach(model, optimizer, L1(0.01, select="0.weight"), apply="proximal", dual_averaging=False)
    watch = BetweenBackwardAndStep([*model.parameters()], optimizer)
    for step in range(3):
        optimizer.zero_grad()
        loss = embedding(torch.tensor([3, 4, 4])).square().sum()
        (loss + sum(0.0 * parameter.sum() for parameter in model.parameters())).backward()
        norm = clip_grad_norm_(model.parameters(), 1.0)
        ahead = embedding.weight.detach() - embedding.weight.grad
        watch.note()
        optimizer.step()
        expected = ahead.sign() * (ahead.abs() - 0.01 / (norm + 1e-6)).clamp(min=0.0)
        torch.testing.assert_close(embedding.weight.detach(), expected, rtol=1e-5, atol=1e-7, msg=f"{step}")
    watch.remove()


def test_a_scaler_that_is_off_has_left_no_scale() -> None:
    layer = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    handle = attach(layer, optimizer, L1(0.1))
    layer(torch.ones(1, 3)).sum().backward()
    handle.add_gradient(torch.amp.GradScaler("cpu", enabled=False))
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, 1.0 + 0.1 * layer.weight.detach().sign())
