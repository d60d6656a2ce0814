"""attach(): the engine in a plain PyTorch loop."""

from __future__ import annotations

import copy
import itertools
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.optim import SGD, Adam, AdamW, Optimizer

from lightning_reg import (
    L1,
    L2,
    Coupled,
    ElasticNet,
    GroupLasso,
    L2Norm,
    Linear,
    NuclearNorm,
    Penalty,
    attach,
)
from tests.penalties.cases import CASES, Case

MODES = ["gradient", "decoupled", "proximal"]
in_every_mode = pytest.mark.parametrize("apply", MODES)


def tutorial_net(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 5), nn.ReLU(), nn.Linear(5, 1)).to(dtype)


def tutorial_sgd(model: nn.Module) -> SGD:
    return SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)


def batches(count: int, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 16, 10, generator=generator, dtype=torch.float64)
    targets = inputs[..., :1] - 0.5 * inputs[..., 1:2] + 0.1
    return [(x, y) for x, y in zip(inputs.to(dtype), targets.to(dtype), strict=True)]


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def train(
    model: nn.Module,
    optimizer: Optimizer,
    steps: int = 200,
    *,
    term: Callable[[int], Tensor] | None = None,
    before_step: Callable[[], Any] = lambda: None,
) -> nn.Module:
    """A plain loop; ``term(step)`` is the hand-written penalty."""
    for step, batch in enumerate(batches(steps, next(model.parameters()).dtype)):
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        if term is not None:
            loss = loss + term(step)
        loss.backward()
        before_step()
        optimizer.step()
    return model


def assert_same(model: nn.Module, other: nn.Module, tolerance: float = 0.0) -> None:
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        if tolerance == 0.0:
            assert torch.equal(a, b), f"{name}: {float((a - b).detach().abs().max())}"
        else:
            distance = float((a - b).detach().norm() / b.detach().norm())
            assert distance <= tolerance, f"{name}: {distance}"


def snapshot(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def one_step(model: nn.Module, optimizer: Optimizer) -> None:
    train(model, optimizer, 1)


# --- gradient is what adding the term to the loss does -----------------------------------------------

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
TUTORIAL = {
    "l1": (L1(1e-3, select="all"), lambda p: 1e-3 * torch.norm(p, 1)),
    "l2-norm": (L2Norm(1e-3, select="all"), lambda p: 1e-3 * torch.norm(p, 2)),
}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", TUTORIAL)
def test_gradient_is_the_tutorials_loop(name: str, dtype: torch.dtype) -> None:
    penalty, of = TUTORIAL[name]
    by_hand = tutorial_net(dtype)
    train(by_hand, tutorial_sgd(by_hand), 60, term=lambda _: sum(of(p) for p in by_hand.parameters()))

    model = tutorial_net(dtype)
    optimizer = tutorial_sgd(model)
    handle = attach(model, optimizer, penalty)
    train(model, optimizer, 60)

    assert handle.step == 60
    assert_same(model, by_hand, TOLERANCE[dtype])
    without = tutorial_net(dtype)
    train(without, tutorial_sgd(without), 60)
    with pytest.raises(AssertionError):  # and the term matters
        assert_same(model, without, 10 * TOLERANCE[dtype])


@pytest.mark.parametrize("name", TUTORIAL)
def test_the_penalty_as_a_loss_term_is_the_tutorials_loop_exactly(name: str) -> None:
    penalty, of = TUTORIAL[name]
    by_hand, model = tutorial_net(), tutorial_net()
    train(by_hand, tutorial_sgd(by_hand), 50, term=lambda _: sum(of(p) for p in by_hand.parameters()))
    train(model, tutorial_sgd(model), 50, term=lambda _: penalty(model))
    assert_same(model, by_hand, 1e-6)


@pytest.mark.parametrize("optimizer", [SGD, Adam, AdamW])
@pytest.mark.parametrize("case", [c for c in CASES if c.penalty.has_gradient and c.same_when_bound], ids=str)
def test_gradient_is_the_loss_term_for_every_penalty(case: Case, optimizer: Any) -> None:
    penalty = copy.copy(case.penalty)
    object.__setattr__(penalty, "strength", Linear(0.0, 0.02))
    model, other = tutorial_net(torch.float64), tutorial_net(torch.float64)
    train(other, made := optimizer(other.parameters(), lr=0.01), 12, term=lambda s: penalty(other, s, 12))
    del made
    stepping = optimizer(model.parameters(), lr=0.01)
    attach(model, stepping, penalty, total_steps=12)
    train(model, stepping, 12)
    assert_same(model, other, 1e-10)


def test_two_penalties_add_up() -> None:
    model, other = tutorial_net(torch.float64), tutorial_net(torch.float64)
    one, two = L1(1e-3), L2(1e-2, select="*.bias")
    train(other, tutorial_sgd(other), 50, term=lambda _: one(other) + two(other))
    optimizer = tutorial_sgd(model)
    attach(model, optimizer, one)
    attach(model, optimizer, two)
    train(model, optimizer, 50)
    assert_same(model, other, 1e-12)


@pytest.mark.parametrize("clip", ["norm", "value"])
def test_add_gradient_before_clipping_is_exact(clip: str) -> None:
    def clipping(model: nn.Module) -> None:
        if clip == "norm":
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        else:
            nn.utils.clip_grad_value_(model.parameters(), 0.01)

    penalty = L1(0.05)
    other = tutorial_net(torch.float64)
    train(other, tutorial_sgd(other), 60, term=lambda _: penalty(other), before_step=lambda: clipping(other))

    def run(add: bool) -> nn.Module:
        model = tutorial_net(torch.float64)
        optimizer = tutorial_sgd(model)
        handle = attach(model, optimizer, penalty)
        before = (lambda: (handle.add_gradient(), clipping(model))) if add else (lambda: clipping(model))
        train(model, optimizer, 60, before_step=before)
        assert handle.step == 60
        return model

    assert_same(run(add=True), other, 1e-12)
    with pytest.raises(AssertionError):  # at the step it comes after the clipping
        assert_same(run(add=False), other, 1e-4)


def test_add_gradient_counts_for_one_step_only() -> None:
    def run(when: set[int]) -> nn.Module:
        model = tutorial_net(torch.float64)
        optimizer = tutorial_sgd(model)
        handle = attach(model, optimizer, L1(0.05))
        count = itertools.count()
        train(model, optimizer, 6, before_step=lambda: handle.add_gradient() if next(count) in when else None)
        return model

    assert_same(run({1, 4}), run(set()), 1e-14)


@in_every_mode
def test_a_closure_is_the_same_as_no_closure(apply: Any) -> None:
    models = []
    for how in ("plain", "argument", "keyword"):
        model = tutorial_net(torch.float64)
        optimizer = tutorial_sgd(model)
        attach(model, optimizer, L1(0.05), apply=apply)
        for batch in batches(20, torch.float64):

            def closure(model=model, optimizer=optimizer, batch=batch) -> Tensor:
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                loss.backward()
                return loss

            if how == "plain":
                closure()
                assert optimizer.step() is None
            else:
                loss = optimizer.step(closure) if how == "argument" else optimizer.step(closure=closure)
                assert isinstance(loss, Tensor)
        models.append(model)
    assert_same(models[1], models[0])
    assert_same(models[2], models[0])


def test_accumulated_gradients_get_the_term_once() -> None:
    model, other = tutorial_net(torch.float64), tutorial_net(torch.float64)
    optimizer, by_hand = tutorial_sgd(model), tutorial_sgd(other)
    penalty = L1(0.05)
    attach(model, optimizer, penalty)
    data = batches(12, torch.float64)
    for i in range(0, 12, 4):
        optimizer.zero_grad()
        by_hand.zero_grad()
        for batch in data[i : i + 4]:
            (loss_of(model, batch) / 4).backward()
            ((loss_of(other, batch) + penalty(other)) / 4).backward()
        optimizer.step()
        by_hand.step()
    assert_same(model, other, 1e-12)


# --- weight decay ------------------------------------------------------------------------------------


def test_decoupled_uses_the_rate_of_each_group() -> None:
    a, b = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    model = nn.ParameterList([a, b])
    optimizer = SGD([{"params": [a]}, {"params": [b], "lr": 0.5}], lr=0.1)
    attach(model, optimizer, L1(1.0), apply="decoupled")
    a.grad, b.grad = torch.zeros(2, 2), torch.zeros(2, 2)
    optimizer.step()
    assert torch.equal(a, torch.full((2, 2), 0.9)) and torch.equal(b, torch.full((2, 2), 0.5))


# --- which tensors -----------------------------------------------------------------------------------


@in_every_mode
def test_only_what_is_selected_changes(apply: Any) -> None:
    model, other = tutorial_net(), tutorial_net()
    optimizer, plain = SGD(model.parameters(), lr=0.01), SGD(other.parameters(), lr=0.01)
    attach(model, optimizer, L1(0.5, select="2.weight"), apply=apply)
    one_step(model, optimizer)
    one_step(other, plain)
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b) == (name != "2.weight"), name


@in_every_mode
def test_only_what_the_stepping_optimizer_holds_changes(apply: Any) -> None:
    model = nn.ModuleDict({"a": nn.Linear(10, 1), "b": nn.Linear(10, 1)})
    first, second = (SGD(model[name].parameters(), lr=0.01) for name in "ab")
    handles = [attach(model, optimizer, L1(0.5), apply=apply) for optimizer in (first, second)]
    for name in "ab":
        loss_of(model[name], batches(1)[0]).backward()
    b = snapshot(model["b"])
    gradients = [p.grad.clone() for p in model["b"].parameters()]
    first.step()
    assert all(torch.equal(p, was) for p, was in zip(model["b"].parameters(), b, strict=True))
    assert all(torch.equal(p.grad, was) for p, was in zip(model["b"].parameters(), gradients, strict=True))
    second.step()
    assert [handle.step for handle in handles] == [1, 1]


@in_every_mode
def test_tied_embeddings_count_once(apply: Any) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(4, 3)
            self.decoder = nn.Linear(3, 4, bias=False)
            self.decoder.weight = self.embedding.weight

    model = Tied()
    nn.init.ones_(model.embedding.weight)
    optimizer = SGD(model.parameters(), lr=0.1)
    attach(model, optimizer, L1(1.0, select=["embedding.*", "decoder.*"]), apply=apply)
    model.embedding.weight.grad = torch.zeros(4, 3)
    optimizer.step()
    torch.testing.assert_close(model.embedding.weight.detach(), torch.full((4, 3), 0.9))


@in_every_mode
def test_frozen_in_mid_run_with_its_last_gradient(apply: Any) -> None:
    model = tutorial_net()
    optimizer = SGD(model.parameters(), lr=0.01)
    attach(model, optimizer, L1(0.5), apply=apply)
    one_step(model, optimizer)
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.param_groups[0]["lr"] = 0.0 if apply != "decoupled" else 0.01
    optimizer.step()
    assert torch.equal(model[0].weight, before)


@in_every_mode
def test_a_layer_that_did_not_exist_at_attach(apply: Any) -> None:
    model = nn.Sequential(nn.Linear(10, 1))
    optimizer = SGD(model.parameters(), lr=0.1)
    attach(model, optimizer, L1(1.0), apply=apply)
    one_step(model, optimizer)
    model.append(nn.Linear(1, 1))
    optimizer.add_param_group({"params": list(model[1].parameters())})
    nn.init.ones_(model[1].weight)
    model[1].weight.grad = torch.zeros(1, 1)
    optimizer.step()
    torch.testing.assert_close(model[1].weight.detach(), torch.tensor([[0.9]]))


# --- kinds of tensors --------------------------------------------------------------------------------


def embedding_step(make: Callable[..., Optimizer], penalty: Penalty, how: str) -> Tensor:
    torch.manual_seed(0)
    model = nn.Embedding(6, 3, sparse=True, dtype=torch.float64)
    optimizer = make(model.parameters(), lr=0.1)
    if how == "gradient":
        with pytest.warns(UserWarning, match="the sparse gradient of weight dense, since L1 has one"):
            attach(model, optimizer, penalty)
    elif how in MODES:
        attach(model, optimizer, penalty, apply=how)  # type: ignore[arg-type]
    for rows in ([0, 1], [1, 4], [0, 5]):
        optimizer.zero_grad()
        loss = model(torch.tensor(rows)).square().sum()
        if how == "loss":
            loss = loss + penalty(model)
        loss.backward()
        optimizer.step()
    return model.weight.detach()


@pytest.mark.parametrize("make", [SGD, lambda p, lr: SGD(p, lr=lr, momentum=0.9), torch.optim.Adagrad])
def test_sparse_embedding_gradients_are_the_loss_terms(make: Any) -> None:
    expected = embedding_step(make, L1(0.1), "loss")
    torch.testing.assert_close(embedding_step(make, L1(0.1), "gradient"), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("apply", ["decoupled", "proximal"])
def test_sparse_embedding_gradients_in_other_modes(apply: str) -> None:
    weight, without = (embedding_step(SGD, L1(s), apply) for s in (0.1, 0.0))
    assert not torch.equal(weight, without)
    # all rows are in the selection, named by a batch or not
    assert bool((weight.abs().sum(1) < without.abs().sum(1)).all())


def test_sparse_adam_takes_no_dense_gradient() -> None:
    model = nn.Embedding(6, 3, sparse=True)
    with pytest.raises(ValueError, match=r"SparseAdam.*use apply='decoupled'"):
        attach(model, torch.optim.SparseAdam(model.parameters()), L1(0.1))


def test_sparse_adam_takes_decoupled() -> None:
    make = torch.optim.SparseAdam
    assert not torch.equal(embedding_step(make, L1(0.1), "decoupled"), embedding_step(make, L1(0.0), "gone"))


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 2, dtype=torch.complex128))

    def loss(self) -> Tensor:
        return (self.weight - (1.0 + 2.0j)).abs().square().sum()


@pytest.mark.parametrize("penalty", [L1(0.1), L2(0.1), L2Norm(0.1), ElasticNet(0.1)], ids=repr)
@pytest.mark.parametrize("optimizer", [SGD, Adam])
def test_complex_weights(penalty: Penalty, optimizer: Any) -> None:
    model, other = Complex(), Complex()
    stepping, plain = optimizer(model.parameters(), lr=0.05), optimizer(other.parameters(), lr=0.05)
    attach(model, stepping, penalty)
    for _ in range(20):
        stepping.zero_grad()
        plain.zero_grad()
        model.loss().backward()
        (other.loss() + penalty(other)).backward()
        stepping.step()
        plain.step()
    torch.testing.assert_close(model.weight, other.weight, rtol=1e-12, atol=0)


def test_complex_weights_in_the_proximal_mode() -> None:
    model = Complex()
    optimizer = SGD(model.parameters(), lr=0.05)
    attach(model, optimizer, L1(10.0), apply="proximal")
    for _ in range(200):
        optimizer.zero_grad()
        model.loss().backward()
        optimizer.step()
    assert not model.weight.any()  # |2(1 + 2i)| < 10: the solution is zero
    with pytest.raises(ValueError, match=r"complex.*Adam.*SGD"):
        attach(model, Adam(model.parameters()), L1(1.0), apply="proximal")


@in_every_mode
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(apply: Any, dtype: torch.dtype) -> None:
    model, other = tutorial_net(dtype), tutorial_net(dtype)
    optimizer = Adam(model.parameters(), lr=0.01)
    attach(model, optimizer, L1(0.5), apply=apply)
    train(model, optimizer, 20)
    train(other, Adam(other.parameters(), lr=0.01), 20)
    for parameter, without in zip(model.parameters(), other.parameters(), strict=True):
        assert parameter.dtype == dtype and bool(parameter.isfinite().all())
        if parameter.dim() == 2:
            assert float(parameter.detach().abs().sum()) < 0.9 * float(without.detach().abs().sum())


# --- GradScaler --------------------------------------------------------------------------------------

scaled = pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])


def scaled_run(
    apply: Any, fused: bool, *, scale: float | None, bad: int | None = None, unscale: bool = False
) -> tuple[nn.Module, Any, list[list[Tensor]]]:
    model = tutorial_net(torch.float64)
    optimizer = Adam(model.parameters(), lr=0.01, fused=fused)
    handle = attach(model, optimizer, L1(Linear(0.0, 0.5)), apply=apply, total_steps=20)
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=scale or 1.0, enabled=scale is not None, growth_interval=7
    )
    history = [snapshot(model)]
    for step, batch in enumerate(batches(20, torch.float64)):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, batch)).backward()
        if step == bad:
            next(model.parameters()).grad[0, 0] = torch.inf
        if unscale:
            scaler.unscale_(optimizer)
            if apply == "gradient":
                handle.add_gradient()
        scaler.step(optimizer)
        scaler.update()
        history.append(snapshot(model))
    return model, handle, history


@in_every_mode
@scaled
@pytest.mark.parametrize("unscale", [False, True], ids=["", "unscaled-by-hand"])
def test_a_grad_scaler_changes_nothing(apply: Any, fused: bool, unscale: bool) -> None:
    model, handle, _ = scaled_run(apply, fused, scale=1024.0, unscale=unscale)
    plain, _, _ = scaled_run(apply, fused, scale=None)
    assert handle.step == 20
    assert_same(model, plain, 1e-10)


@in_every_mode
@scaled
@pytest.mark.parametrize("unscale", [False, True], ids=["", "unscaled-by-hand"])
@pytest.mark.parametrize("bad", [0, 5])
def test_a_step_that_the_scaler_skips_changes_nothing(
    apply: Any, fused: bool, unscale: bool, bad: int
) -> None:
    _, handle, history = scaled_run(apply, fused, scale=1024.0, bad=bad, unscale=unscale)
    assert all(torch.equal(a, b) for a, b in zip(history[bad], history[bad + 1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(history[bad + 1], history[bad + 2], strict=True))
    assert handle.step == 19  # the schedule's clock stands still too


def clipped_run(how: str, fused: bool = False, bad: int | None = None) -> tuple[nn.Module, Any]:
    """Clipping under a GradScaler; ``how`` the term comes in, ``by hand`` without a scaler."""
    model = tutorial_net(torch.float64)
    optimizer = Adam(model.parameters(), lr=0.01, fused=fused)
    penalty = L1(Linear(0.0, 0.5))
    handle = None if how == "by hand" else attach(model, optimizer, penalty, total_steps=20)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=handle is not None, growth_interval=7)
    for step, batch in enumerate(batches(20, torch.float64)):
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        if handle is None:
            loss = loss + penalty(model, step, 20)
        elif how == "in backward":
            handle.add_gradient_in_backward(scaler)
        scaler.scale(loss).backward()
        if step == bad:
            next(model.parameters()).grad[0, 0] = torch.inf
        if how == "before unscale_":
            handle.add_gradient(scaler)
        scaler.unscale_(optimizer)
        if how == "after unscale_":
            handle.add_gradient(scaler)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
    return model, handle


@scaled
@pytest.mark.parametrize("how", ["before unscale_", "after unscale_", "in backward"])
def test_clipping_under_a_grad_scaler(how: str, fused: bool) -> None:
    model, handle = clipped_run(how, fused)
    assert handle.step == 20
    assert_same(model, clipped_run("by hand")[0], 1e-12)
    _, handle = clipped_run(how, fused, bad=4)
    assert handle.step == 19


# --- in the backward pass ----------------------------------------------------------------------------


class Tied(nn.Module):
    """A weight that is used twice, and a sparse embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(6, 10, sparse=True, dtype=torch.float64)
        self.first = nn.Linear(10, 10, dtype=torch.float64)
        self.last = nn.Linear(10, 10, dtype=torch.float64)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.arange(len(x)) % 4
        return self.last(self.first(x + self.embedding(rows)).relu()).sum(1, keepdim=True)


@pytest.mark.parametrize(
    "penalty",
    [
        L1(0.05, select="all"),
        L2Norm(0.05, select="all"),
        GroupLasso(0.05, groups=Coupled([{"first.weight": "rows", "first.bias": "rows"}])),
    ],
    ids=["elementwise", "by tensor", "coupled"],
)
@pytest.mark.filterwarnings("ignore:.*makes the sparse gradient of embedding.weight dense")
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_gradient_in_the_backward_pass(penalty: Penalty, accumulate: int) -> None:
    def run(how: str) -> nn.Module:
        model = Tied()
        optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
        handle = attach(model, optimizer, penalty) if how == "attached" else None
        for i, batch in enumerate(batches(12 * accumulate, torch.float64)):
            if handle is not None and i % accumulate == 0:
                handle.add_gradient_in_backward()
            loss = loss_of(model, batch)
            if how == "by hand":
                loss = loss + penalty(model)
            (loss / accumulate).backward()
            if (i + 1) % accumulate == 0:
                for p in model.parameters():
                    p.grad = p.grad.to_dense() if p.grad.is_sparse else p.grad
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()
        if handle is not None:
            assert handle.step == 12
            handle.remove()
            assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
        return model

    assert_same(run("attached"), by_hand := run("by hand"), 1e-12)
    with pytest.raises(AssertionError):
        assert_same(run("without"), by_hand, 1e-4)


def test_the_gradient_in_the_backward_pass_leaves_what_has_none() -> None:
    model = nn.ModuleDict({"used": nn.Linear(10, 1), "unused": nn.Linear(10, 1), "frozen": nn.Linear(10, 1)})
    model["frozen"].requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.01)
    handle = attach(model, optimizer, L1(0.5))
    handle.add_gradient_in_backward()
    loss_of(model["used"], batches(1)[0]).backward()
    assert model["unused"].weight.grad is None and model["frozen"].weight.grad is None
    with_term = model["used"].weight.grad.clone()
    model.zero_grad()
    loss_of(model["used"], batches(1)[0]).backward()  # it comes once
    torch.testing.assert_close(with_term, model["used"].weight.grad + 0.5 * model["used"].weight.sign())


def test_the_value_is_that_of_the_term() -> None:
    model = tutorial_net()
    optimizer = SGD(model[0].parameters(), lr=0.01)
    handle = attach(model, optimizer, L1(Linear(0.0, 1.0)), total_steps=4)
    handle.step = 2
    torch.testing.assert_close(handle.value(), 0.5 * model[0].weight.detach().abs().sum())
    assert handle.strength == 0.5 and not handle.value().requires_grad


# --- resuming, removing ------------------------------------------------------------------------------


@in_every_mode
def test_resuming_is_bit_identical(apply: Any, tmp_path: Any) -> None:
    def start() -> tuple[nn.Module, Optimizer, Any]:
        model = tutorial_net()
        optimizer = Adam(model.parameters(), lr=0.01)
        return model, optimizer, attach(model, optimizer, L1(Linear(0.0, 0.1)), apply=apply, total_steps=20)

    def go_on(model: nn.Module, optimizer: Optimizer, data: list[Any]) -> None:
        for batch in data:
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()

    whole, optimizer, _ = start()
    go_on(whole, optimizer, batches(20))

    model, optimizer, handle = start()
    go_on(model, optimizer, batches(20)[:9])
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "handle": handle.state_dict()}
    torch.save(state, tmp_path / "state.pt")

    model, optimizer, handle = start()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    handle.load_state_dict(state["handle"])
    assert handle.step == 9
    go_on(model, optimizer, batches(20)[9:])
    assert_same(model, whole)


def hooks(optimizer: Optimizer) -> int:
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


@in_every_mode
def test_remove_leaves_no_trace(apply: Any) -> None:
    model, other = tutorial_net(), tutorial_net()
    optimizer, plain = SGD(model.parameters(), lr=0.01), SGD(other.parameters(), lr=0.01)
    handle = attach(model, optimizer, L1(0.5), apply=apply)
    assert hooks(optimizer) > 0
    one_step(model, optimizer)
    other.load_state_dict(model.state_dict())
    handle.remove()
    handle.remove()  # twice is fine
    assert hooks(optimizer) == 0
    assert vars(optimizer).keys() == vars(plain).keys()
    one_step(model, optimizer)
    one_step(other, plain)
    assert_same(model, other)
    assert repr(optimizer.state_dict()) == repr(plain.state_dict())
    assert model.state_dict().keys() == other.state_dict().keys()
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


def test_removing_one_leaves_the_other() -> None:
    model, other = tutorial_net(), tutorial_net()
    optimizer, single = tutorial_sgd(model), tutorial_sgd(other)
    first = attach(model, optimizer, L1(0.5))
    attach(model, optimizer, L2(0.1))
    attach(other, single, L2(0.1))
    first.remove()
    train(model, optimizer, 3)
    train(other, single, 3)
    assert_same(model, other)


def test_a_scheduled_strength_is_that_of_the_step() -> None:
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(model.weight, 100.0)
    optimizer = SGD(model.parameters(), lr=1.0)
    attach(model, optimizer, L1(Linear(0.0, 1.0)), apply="decoupled", total_steps=4)
    seen = []
    for _ in range(6):
        model.weight.grad = torch.zeros(1, 1, dtype=torch.float64)
        before = model.weight.item()
        optimizer.step()
        seen.append(before - model.weight.item())
    assert seen == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


# --- what is refused ---------------------------------------------------------------------------------


# torch's strong-Wolfe search gives up a little above the minimum, with or without a penalty
@pytest.mark.parametrize(("search", "tolerance"), [(None, 1e-12), ("strong_wolfe", 1e-8)])
def test_lbfgs_solves_ridge_with_the_penalty_in_its_closure(search: str | None, tolerance: float) -> None:
    x, y = batches(1, torch.float64)[0]
    torch.manual_seed(0)
    model = nn.Linear(10, 1, bias=False, dtype=torch.float64)
    penalty = L2(0.3)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=200, tolerance_grad=1e-14, tolerance_change=0, line_search_fn=search
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 0.5 * (model(x) - y).square().mean() + penalty(model)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    ridge = torch.linalg.solve(x.T @ x / 16 + 0.3 * torch.eye(10, dtype=torch.float64), x.T @ y / 16)
    torch.testing.assert_close(model.weight.detach().T, ridge, rtol=0, atol=tolerance)


@pytest.mark.parametrize("apply", ["gradient", "decoupled"])
def test_maximize_is_refused(apply: Any) -> None:
    model = tutorial_net()
    optimizer = SGD(model.parameters(), lr=0.1, maximize=True)
    with pytest.raises(ValueError, match=r"SGD\(maximize=True\).*L1.*use apply='proximal'"):
        attach(model, optimizer, L1(1.0), apply=apply)


def test_an_unknown_optimizer_is_refused_and_the_known_ones_named() -> None:
    model = tutorial_net()
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"Adafactor: .*SGD, Adam, AdamW, NAdam, RAdam, Adagrad, RMSprop"):
        attach(model, optimizer, L1(1.0), apply="proximal")
    attach(model, optimizer, L1(0.5), apply="proximal", metric="euclidean")
    before = model[0].weight.detach().clone()
    one_step(model, optimizer)
    assert not torch.equal(model[0].weight, before)


def test_a_prox_for_one_step_a_tensor_is_refused_under_adam() -> None:
    model = tutorial_net()
    with pytest.raises(ValueError, match=r"NuclearNorm.*Adam.*SGD"):
        attach(model, Adam(model.parameters()), NuclearNorm(1.0), apply="proximal")
    attach(model, SGD(model.parameters(), lr=0.1, momentum=0.9), NuclearNorm(1.0), apply="proximal")
    attach(model, Adam(model.parameters()), NuclearNorm(1.0), apply="proximal", metric="euclidean")


class NoProx(L1):
    prox = Penalty.prox


@pytest.mark.parametrize(
    ("penalty", "options", "error", "sentence"),
    [
        (L1(1.0), {"apply": "loss"}, ValueError, r"loss \+ penalty\(model\)"),
        (L1(1.0), {"apply": "grad"}, ValueError, "'grad' is unknown; .*'gradient', 'loss'"),
        (L1(1.0), {"metric": "adam", "apply": "proximal"}, ValueError, "'adam' is unknown"),
        (L1(1.0), {"metric": "euclidean"}, ValueError, "leave it out"),
        (NoProx(1.0), {"apply": "proximal"}, ValueError, "NoProx has no proximal operator.*gradient"),
        (1e-4, {}, TypeError, "not a penalty"),
        (L1, {}, TypeError, "not a penalty"),
        (L1(1.0, select="9.weight"), {}, ValueError, "matches none of the 4"),
        (L1(Linear(0.0, 1.0)), {}, ValueError, "total_steps"),
        (
            L1(lambda step, total: float("nan") if step == 700 else 1.0),
            {"total_steps": 1000},
            ValueError,
            "700",
        ),
        (L1(Linear(0.0, 1.0)), {"total_steps": 0}, ValueError, "total_steps=0"),
        (L1(Linear(0.0, 1.0)), {"total_steps": -3}, ValueError, "total_steps=-3"),
        (L1(Linear(0.0, 1.0)), {"total_steps": 10.5}, ValueError, "total_steps=10.5"),
    ],
)
def test_bad_input(penalty: Any, options: dict[str, Any], error: type[Exception], sentence: str) -> None:
    model = tutorial_net()
    optimizer = tutorial_sgd(model)
    with pytest.raises(error, match=sentence):
        attach(model, optimizer, penalty, **options)
    assert hooks(optimizer) == 0


def test_a_strength_that_turns_bad_past_the_known_run_stops_before_the_step() -> None:
    model = tutorial_net()
    optimizer = tutorial_sgd(model)
    attach(model, optimizer, L1(lambda step, total: float("nan") if step == 3 else 0.1))
    train(model, optimizer, 3)
    before = snapshot(model)
    with pytest.raises(ValueError, match="strength at step 3 is nan"):
        one_step(model, optimizer)
    assert all(torch.equal(p, was) for p, was in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("apply", ["decoupled", "proximal"])
def test_add_gradient_is_for_the_gradient_mode(apply: Any) -> None:
    model = tutorial_net()
    handle = attach(model, tutorial_sgd(model), L1(1.0), apply=apply)
    with pytest.raises(RuntimeError, match=f"apply='{apply}'"):
        handle.add_gradient()
    with pytest.raises(RuntimeError, match=f"apply='{apply}'"):
        handle.add_gradient_in_backward()


# --- penalty(model) ----------------------------------------------------------------------------------


def test_calling_a_penalty_sums_over_the_selection() -> None:
    model = tutorial_net()
    value = L1(0.1)(model)
    assert value.requires_grad
    torch.testing.assert_close(value, 0.1 * (model[0].weight.abs().sum() + model[2].weight.abs().sum()))


def test_calling_a_penalty_leaves_frozen_weights_out_and_outside_autocast() -> None:
    model = tutorial_net()
    model[2].requires_grad_(False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = L2(0.1)(model)
    assert value.dtype == torch.float32
    assert torch.equal(value, 0.05 * model[0].weight.square().sum())


class Product(L1):
    elementwise = False

    def value(self, weight: Tensor, strength: float) -> Tensor:
        return strength * (weight @ weight.T).trace()  # which autocast would do in bfloat16


def test_calling_a_penalty_under_autocast_changes_no_digit() -> None:
    model = tutorial_net()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = Product(0.1)(model)
    assert torch.equal(value, sum(Product(0.1).value(layer.weight, 0.1) for layer in (model[0], model[2])))


def test_calling_a_penalty_at_strength_0_builds_no_graph() -> None:
    value = L1(0.0)(tutorial_net())
    assert not value.requires_grad and float(value) == 0.0


def test_calling_a_scheduled_penalty_needs_the_step() -> None:
    penalty = L1(Linear(0.0, 1.0))
    model = tutorial_net()
    assert torch.equal(penalty(model, step=5, total_steps=10), L1(0.5)(model))
    with pytest.raises(ValueError, match="scheduled strength"):
        penalty(model)


def test_log_names() -> None:
    assert [p.log_name for p in (L1(1.0), ElasticNet(1.0), L1(1.0, name="mine"))] == [
        "l1",
        "elastic_net",
        "mine",
    ]
    assert L2Norm(1.0).log_name == "l2_norm"


@pytest.mark.parametrize("l1_ratio", [-0.1, 1.1, float("nan")])
def test_l1_ratio_outside_its_range(l1_ratio: float) -> None:
    with pytest.raises(ValueError, match="l1_ratio"):
        ElasticNet(1.0, l1_ratio=l1_ratio)


def test_penalties_are_values() -> None:
    assert L1(0.1) == L1(0.1) != L1(0.2)
    assert pickle.loads(pickle.dumps(ElasticNet(Linear(0.0, 1.0)))) == ElasticNet(Linear(0.0, 1.0))
    with pytest.raises(AttributeError):
        L1(0.1).strength = 0.2  # type: ignore[misc]


class Around(Optimizer):
    """An optimizer around another, as some libraries write them: without ``Optimizer.__init__``."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner
        self.param_groups, self.state, self.defaults = inner.param_groups, inner.state, inner.defaults
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = {}, {}  # type: ignore[assignment]

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


@pytest.mark.parametrize("apply", ["gradient", "decoupled", "proximal"])
def test_an_optimizer_that_runs_no_hooks_is_refused(apply: Any) -> None:
    model = tutorial_net()
    inner = SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"Around runs no hooks in its step.*; give the optimizer inside it"):
        attach(model, Around(inner), L1(0.1), apply=apply)
    attach(model, inner, L1(0.1), apply=apply)


def test_printing_an_attachment_says_what_is_attached() -> None:
    model = nn.Sequential(nn.LazyLinear(2), nn.Linear(2, 1))
    optimizer = SGD(model.parameters(), lr=0.1)
    handle = attach(model, optimizer, L1(0.1), apply="proximal")
    repr(handle)  # a look changes nothing, though a layer has no shape yet
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    assert repr(handle) == (
        "Attachment(L1(strength=0.1, select='weights', name=None), apply='proximal', on 0.weight, 1.weight, "
        "after 1 steps of SGD)"
    )


class Elsewhere(SGD):
    """Moves the weights by a method that is not ``step``."""

    @torch.no_grad()
    def move(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(group["lr"] * parameter.grad)


@pytest.mark.parametrize("steps", [False, True], ids=["silent", "stepped"])
def test_weights_that_move_without_a_step_are_warned_of_once(steps: bool) -> None:
    model = nn.Linear(3, 1)
    optimizer = Elsewhere(model.parameters(), lr=0.1)
    handle = attach(model, optimizer, L1(0.1))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.ones(2, 3)).sum().backward()
            optimizer.step() if steps else optimizer.move()
    assert len(said) == (not steps)
    assert steps or "Elsewhere.step() was never called" in str(said[0].message)
    handle.remove()
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_accumulating_gradients_is_no_silence() -> None:
    model = nn.Linear(3, 1)
    handle = attach(model, SGD(model.parameters(), lr=0.1), L1(0.1))
    for _ in range(6):
        model(torch.ones(2, 3)).sum().backward()
    handle.remove()
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


@in_every_mode
def test_gradients_that_are_freed_in_the_step(apply: Any) -> None:
    class Frugal(SGD):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            self.zero_grad()

    weights = []
    for optimizer_class in (SGD, Frugal):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = optimizer_class(model.parameters(), lr=0.1)
        attach(model, optimizer, L1(1.0), apply, metric="euclidean" if apply == "proximal" else "optimizer")
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        weights.append(model.weight.detach().clone())
    assert torch.equal(*weights)


def test_what_is_attached_after_another_has_left_has_averages_of_its_own() -> None:
    def trained(first: bool) -> tuple[Tensor, list[str]]:
        torch.manual_seed(0)
        model = nn.Linear(30, 4)
        optimizer = SGD(model.parameters(), 0.05)
        gone = attach(model, optimizer, L1(0.0), apply="proximal") if first else None
        attach(model, optimizer, L1(0.04), apply="proximal")
        if gone is not None:
            gone.remove()
        attach(model, optimizer, L1(0.05), apply="proximal")
        for _ in range(10):
            x = torch.randn(8, 30)
            optimizer.zero_grad()
            (model(x) - x[:, :4]).square().mean().backward()
            optimizer.step()
        return model.weight.detach(), [*optimizer.state[model.weight]]

    weight, averages = trained(first=True)
    expected, _ = trained(first=False)
    assert torch.equal(weight, expected)
    assert len(averages) == 4  # of two, with their steps


@pytest.mark.parametrize("apply", ["gradient", "decoupled", "proximal"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_step_that_only_fills_the_state_for_a_checkpoint_is_none(momentum: float, apply: Any) -> None:
    """As torch's get_state_dict takes one before the first, with gradients and rates of 0."""

    def trained(saved: bool) -> tuple[Tensor, int]:
        torch.manual_seed(0)
        model = nn.Linear(6, 4)
        made = SGD(model.parameters(), lr=0.1, momentum=momentum)
        penalty = L2(Linear(0.0, 1.0), decay="independent") if apply == "decoupled" else L1(Linear(0.0, 1.0))
        handle = attach(model, made, penalty, apply=apply, total_steps=6)
        start = model.weight.detach().clone()
        if saved:
            get_state_dict(model, made)
            assert torch.equal(model.weight, start) and handle.step == 0
        for _ in range(4):
            x = torch.randn(8, 6)
            made.zero_grad()
            (model(x) - 1.0).square().mean().backward()
            made.step()
        return model.weight.detach(), handle.step

    weight, steps = trained(saved=True)
    expected, _ = trained(saved=False)
    torch.testing.assert_close(weight, expected)
    assert steps == 4


def test_a_cell_that_is_run_twice_is_told() -> None:
    model = nn.Linear(4, 2)
    optimizer = SGD(model.parameters(), 0.1)
    attach(model, optimizer, L1(0.1), apply="proximal")
    attach(model, optimizer, L1(0.2), apply="proximal")  # another one is another one
    optimizer.add_param_group({"params": [*(beside := nn.Linear(3, 2)).parameters()]})
    attach(beside, optimizer, L1(0.1), apply="proximal")  # on another model
    with pytest.warns(UserWarning, match=r"L1\(strength=0.1.*attached to this SGD a second time, and counts"):
        attach(model, optimizer, L1(0.1), apply="proximal")
