"""What a few steps of a copy show of an optimizer that nobody has told of."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from lightning_reg import L1, L2, NonNegative, attach, register_optimizer
from lightning_reg.apply.optimizers import Facts, facts_of
from lightning_reg.apply.optimizers import trial as module
from lightning_reg.apply.optimizers.trial import tried


class Unknown(Optimizer):
    """Keeps what it needs beside its groups, as most people's optimizers do."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})
        self.count = 0
        self.kept = {p: p.detach().clone() for group in self.param_groups for p in group["params"]}
        self.sums = {p: torch.zeros_like(p) for p in self.kept}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.count += 1
        for group in self.param_groups:
            for p in group["params"]:
                self.move(p, group["lr"])

    def move(self, p: Tensor, lr: float) -> None:
        raise NotImplementedError


class Plain(Unknown):
    def move(self, p: Tensor, lr: float) -> None:
        assert p.grad is not None
        p.sub_(p.grad, alpha=lr)


class Masters(Unknown):
    """Steps copies in a wider precision, and overwrites the weights with them."""

    def move(self, p: Tensor, lr: float) -> None:
        assert p.grad is not None
        p.copy_(self.kept[p].sub_(p.grad, alpha=lr))


class Between(Unknown):
    """Schedule-free by another name."""

    def move(self, p: Tensor, lr: float) -> None:
        assert p.grad is not None
        self.kept[p].sub_(p.grad, alpha=lr)
        self.sums[p].lerp_(self.kept[p], 1 / self.count)
        p.copy_(self.kept[p].lerp(self.sums[p], 0.9))


class FromTheStart(Unknown):
    """Dual averaging: from where it started, by the sum of all gradients."""

    def move(self, p: Tensor, lr: float) -> None:
        assert p.grad is not None
        p.copy_(self.kept[p] - lr * self.sums[p].add_(p.grad))


class Slow(Unknown):
    """Lookahead by another name: half of what is changed stays."""

    def move(self, p: Tensor, lr: float) -> None:
        assert p.grad is not None
        p.sub_(p.grad, alpha=lr)
        if self.count % 5 == 0:
            p.copy_(self.kept[p].lerp_(p, 0.5))


class Sometimes(Unknown):
    """Accumulates inside."""

    def move(self, p: Tensor, lr: float) -> None:
        assert p.grad is not None
        self.sums[p].add_(p.grad)
        if self.count % 4 == 0:
            p.sub_(self.sums[p], alpha=lr / 4)
            self.sums[p].zero_()


class Around(Unknown):
    """Steps masters of its own by an optimizer inside it, as apex does."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr)
        self.inner = SGD([nn.Parameter(p.detach().double()) for p in self.kept], lr=lr, momentum=0.5)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        own = self.inner.param_groups[0]["params"]
        for p, master in zip(self.kept, own, strict=True):
            assert p.grad is not None
            master.grad = p.grad.double()
        self.inner.step()
        for p, master in zip(self.kept, own, strict=True):
            p.copy_(master)


class Uncopied(Masters):
    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.many = (n for n in range(3))  # cannot be copied


def of(cls: type[Unknown], **options: Any) -> tuple[nn.Module, Unknown]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return model, cls(model.parameters(), **options)


@pytest.mark.parametrize("cls", [Masters, Between, FromTheStart, Around])
@pytest.mark.parametrize("lr", [0.1, 0.0], ids=["", "warm-up"])
def test_weights_that_are_kept_elsewhere(cls: type[Unknown], lr: float) -> None:
    model, optimizer = of(cls, lr=lr)
    for penalty, options in [
        (L2(0.1), {"apply": "decoupled"}),
        (L1(0.1), {"apply": "proximal", "metric": "euclidean"}),
        (NonNegative(), {}),
    ]:
        with pytest.raises(ValueError, match="keeps the weights elsewhere too, and takes back"):
            attach(model, optimizer, penalty, **options)  # type: ignore[arg-type]
    attach(model, optimizer, L1(0.1)).remove()


def test_gradients_that_are_accumulated_inside() -> None:
    model, optimizer = of(Sometimes)
    with pytest.raises(ValueError, match=r"some of its steps only.*; use apply='gradient'"):
        attach(model, optimizer, L2(0.1), apply="decoupled")
    with pytest.raises(ValueError, match="some of its steps only"):
        attach(model, optimizer, L1(0.1), apply="proximal", metric="euclidean")
    attach(model, optimizer, NonNegative()).remove()


@pytest.mark.parametrize("cls", [Plain, Slow, Uncopied])
def test_what_keeps_a_change_or_shows_nothing_is_taken(cls: type[Unknown]) -> None:
    model, optimizer = of(cls)
    assert tried(optimizer, Facts()) == Facts()
    attach(model, optimizer, L2(0.1), apply="decoupled").remove()
    attach(model, optimizer, NonNegative()).remove()


def test_a_trial_leaves_no_trace() -> None:
    model, optimizer = of(Around)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    torch.optim.lr_scheduler.StepLR(optimizer, 3)  # replaces its step
    attach(model, optimizer, L2(0.1))
    before = [p.detach().clone() for p in (*model.parameters(), *optimizer.inner.param_groups[0]["params"])]
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    states = (torch.get_rng_state(), random.getstate(), optimizer.count, len(optimizer.inner.state))
    buffers = [state["momentum_buffer"].clone() for state in optimizer.inner.state.values()]
    facts = tried(optimizer, facts_of(optimizer, optimizer.param_groups[0]))
    assert facts.placed is not None
    after = [*model.parameters(), *optimizer.inner.param_groups[0]["params"]]
    assert all(map(torch.equal, before, after))
    assert all(torch.equal(g, p.grad) for g, p in zip(gradients, model.parameters(), strict=True))  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), optimizer.count, len(optimizer.inner.state)) == states[1:]
    now = [state["momentum_buffer"] for state in optimizer.inner.state.values()]
    assert all(map(torch.equal, buffers, now))


def test_of_a_large_model_the_smallest_tensors_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ENTRIES", 4)  # the bias fits, the weight does not
    _, optimizer = of(Masters)
    seen = []
    run = module._run
    monkeypatch.setattr(module, "_run", lambda *a, **k: seen.append(run(*a, **k)) or seen[-1])
    assert tried(optimizer, Facts()).placed is not None
    assert seen[0][1].shape == (2,)


def test_who_has_told_of_an_optimizer_is_believed() -> None:
    class Told(Masters):
        pass

    register_optimizer(Told, metric=lambda group, state: group["lr"])
    model, optimizer = of(Told)
    attach(model, optimizer, L1(0.1), apply="proximal").remove()


def test_an_optimizer_is_tried_once_for_all_its_groups_and_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, real = [], module._run
    monkeypatch.setattr(module, "_run", lambda *args, **how: runs.append(how) or real(*args, **how))
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = Plain([{"params": [p]} for p in model.parameters()])
    attach(model, optimizer, L2(0.1), apply="decoupled")
    attach(model, optimizer, NonNegative())
    assert runs == [{"pushed": False}, {"pushed": True}]
    other = Masters([{"params": [p]} for p in model.parameters()])
    for _ in range(2):  # what was shown is remembered, not only that it was tried
        with pytest.raises(ValueError, match="keeps the weights elsewhere"):
            attach(model, other, NonNegative())
    assert len(runs) == 4
