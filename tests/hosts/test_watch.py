"""Optimizers whose step is more than one step, or makes gradients by itself: right, or said."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.data import DataLoader

from lightning_reg import L1, L2, MaxNorm, NonNegative, RegularizedModule, Simplex, attach
from lightning_reg.callbacks import PenaltyCallback
from tests.hosts.test_attach import Around
from tests.support import QUIET

LR, LAMBDA = 0.1, 0.05
X = torch.randn(16, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Sharp(Optimizer):
    """Sharpness-aware, by a closure alone: the loss is evaluated twice in a step."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": LR})

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            loss = closure()
        parameters = [p for group in self.param_groups for p in group["params"]]
        with torch.no_grad():
            moves = [0.5 * p.grad for p in parameters]
            torch._foreach_add_(parameters, moves)
        with torch.enable_grad():
            closure()
        with torch.no_grad():
            torch._foreach_sub_(parameters, moves)
            for p in parameters:
                p.sub_(p.grad, alpha=LR)
        return loss


def fit_quietly(module: LightningModule, callbacks: list[Any], steps: int) -> None:
    loader = DataLoader(torch.zeros(steps, 1))  # type: ignore[arg-type, var-annotated]
    Trainer(callbacks=callbacks, max_epochs=1, log_every_n_steps=1, **QUIET).fit(module, loader)


def model_of() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 1, dtype=torch.float64)


def by_hand(term: Callable[[nn.Module], Tensor] | None = None, decay: float = 0.0) -> Tensor:
    """Sharp's steps, written out."""
    model = model_of()
    for _ in range(3):
        weight, moved = [p.detach().clone() for p in model.parameters()], []

        def gradients(model: nn.Module = model) -> tuple[Tensor, ...]:
            loss = model(X).square().mean() + (term(model) if term is not None else 0.0)
            return torch.autograd.grad(loss, list(model.parameters()))

        first = gradients()
        weight[0] = weight[0] * (1 - LR * decay)
        moved = [w + 0.5 * g for w, g in zip(weight, first, strict=True)]
        with torch.no_grad():
            for p, w in zip(model.parameters(), moved, strict=True):
                p.copy_(w)
        second = gradients()
        with torch.no_grad():
            for p, w, g in zip(model.parameters(), weight, second, strict=True):
                p.copy_(w - LR * g)
    return next(model.parameters()).detach()


def attached(optimizer_class: Any, *args: Any, **options: Any) -> Tensor:
    model = model_of()
    optimizer = optimizer_class(model.parameters())
    attach(model, optimizer, *args, **options)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(X).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    return next(model.parameters()).detach()


class Fitted(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = model_of()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(X).square().mean()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> Optimizer:
        return Sharp(self.parameters())


def fitted(penalty: Any, apply: Any) -> Tensor:
    module = Fitted()
    fit_quietly(module, [PenaltyCallback(penalty, apply, log=False)], 3)
    return module.net.weight.detach()  # type: ignore[return-value]


@pytest.mark.parametrize("way", ["attach", "lightning"])
def test_a_loss_that_is_evaluated_twice_has_the_gradient_twice(way: str) -> None:
    penalty = L1(LAMBDA, "*weight")
    found = attached(Sharp, penalty) if way == "attach" else fitted(penalty, "gradient")
    torch.testing.assert_close(found, by_hand(lambda model: LAMBDA * model.weight.abs().sum()))  # type: ignore[operator]


@pytest.mark.parametrize("way", ["attach", "lightning"])
def test_a_loss_that_is_evaluated_twice_decays_once(way: str) -> None:
    penalty = L2(LAMBDA, "*weight")
    found = attached(Sharp, penalty, apply="decoupled") if way == "attach" else fitted(penalty, "decoupled")
    torch.testing.assert_close(found, by_hand(decay=LAMBDA))
    assert not torch.allclose(found, by_hand())


class Inside(SGD):
    """Evaluates the loss inside its step, without a closure."""

    loss: Callable[[], Tensor]

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            self.zero_grad(set_to_none=self.frees)
            self.loss().backward()
        return super().step()

    frees = True


class Anew(SGD):
    """Puts gradients of its own in place."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        return super().step()


@pytest.mark.parametrize("kind", ["freed", "zeroed", "assigned", "added to"])
def test_gradients_made_inside_the_step_are_said_once(kind: str) -> None:
    model = model_of()
    optimizer = {"assigned": Anew, "added to": SGD}.get(kind, Inside)(model.parameters(), lr=LR)
    if isinstance(optimizer, Inside):
        optimizer.loss, optimizer.frees = lambda: model(X).square().mean(), kind == "freed"
    handle = attach(model, optimizer, L1(LAMBDA))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(5):
            optimizer.zero_grad(set_to_none=kind != "zeroed")
            if kind != "freed":
                model(X).square().mean().backward()
            optimizer.step()
    expected = [] if kind == "added to" else [f"L1.* may not count: {type(optimizer).__name__} makes"]
    assert len(said) == len(expected)
    assert not expected or "makes gradients of its own inside its step" in str(said[0].message)
    handle.remove()
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_what_shows_by_its_methods_is_refused_by_any_name() -> None:
    def step(self: Any, closure: Any = None) -> None: ...

    def look(self: Any) -> None: ...

    swaps = type("Mine", (SGD,), {"step": step, "train": look, "eval": look})
    climbs = type("Mine", (SGD,), {"ascent_step": look, "descent_step": look})
    for cls, apply, reason in (
        (swaps, "decoupled", "between two averages"),
        (swaps, "proximal", "between two averages"),
        (climbs, "gradient", "two gradients a step"),
    ):
        model = model_of()
        with pytest.raises(ValueError, match=reason):
            attach(model, cls(model.parameters(), lr=LR), L1(LAMBDA), apply=apply)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="MaxNorm does not hold under Mine"):
        attach(model, swaps(model.parameters(), lr=LR), MaxNorm(1.0))
    attach(model, swaps(model.parameters(), lr=LR), L1(LAMBDA))


class Both(Optimizer):
    """Muon for matrices and Adam for the rest, as users write them: ``use_muon`` in each group."""

    def __init__(self, groups: Any) -> None:
        super().__init__(groups, {"lr": LR, "betas": (0.9, 0.99), "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if group["use_muon"]:
                    u, _, v = torch.linalg.svd(p.grad, full_matrices=False)
                    p.sub_(u @ v, alpha=group["lr"])
                else:
                    p.sub_(p.grad.sign(), alpha=group["lr"])


@pytest.mark.parametrize("apply", ["gradient", "decoupled", "proximal"])
def test_one_optimizer_with_groups_of_muon(apply: Any) -> None:
    def run(*penalties: Any, by_hand: bool = False) -> list[Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2, bias=False)).double()
        groups = [
            {"params": net[1].parameters(), "use_muon": True, "lr": 0.02},
            {"params": net[0].parameters(), "use_muon": False, "lr": 0.3},
        ]
        optimizer = Both(groups)
        for penalty in penalties:
            attach(net, optimizer, penalty, apply=apply)
        for _ in range(3):
            optimizer.zero_grad()
            loss = net(torch.arange(5)).square().sum()
            if by_hand and apply == "gradient":
                loss = loss + LAMBDA / 2 * sum(p.square().sum() for p in net.parameters())
            loss.backward()
            if by_hand and apply == "decoupled":
                with torch.no_grad():
                    net[1].weight.mul_(1 - 0.02 * LAMBDA)
                    net[0].weight.mul_(1 - 0.3 * LAMBDA)
            optimizer.step()
        return [p.detach() for p in net.parameters()]

    if apply == "proximal":
        with pytest.raises(ValueError, match=r"orthogonal.*; use apply='gradient' or apply='decoupled'"):
            run(L1(LAMBDA))
        with pytest.raises(ValueError, match="its step for each weight is not known"):
            run(L1(LAMBDA, "0.weight"))
        return
    for found, expected in zip(run(L2(LAMBDA)), run(by_hand=True), strict=True):
        torch.testing.assert_close(found, expected)


class Pair(LightningModule):
    """Muon for the matrix and AdamW for the rest, each with a step of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2, bias=False))
        self.automatic_optimization = False

    def configure_optimizers(self) -> list[Optimizer]:
        muon = torch.optim.Muon(self.net[1].parameters(), lr=0.02, weight_decay=0.0)
        return [muon, AdamW(self.net[0].parameters(), lr=0.1, weight_decay=0.0)]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.zero_grad()
        self.manual_backward(self.loss())
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.step()

    def loss(self) -> Tensor:
        return (self.net(torch.arange(5)) - 1.0).square().sum()  # type: ignore[no-any-return]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9")
@pytest.mark.parametrize("apply", ["gradient", "decoupled", "proximal"])
def test_two_optimizers_in_one_module(apply: Any) -> None:
    penalty, module, twin = L2(LAMBDA), Pair(), Pair()
    if apply == "proximal":
        with pytest.raises(ValueError, match="under Muon: it makes its steps orthogonal"):
            fit_quietly(Pair(), [PenaltyCallback(L1(LAMBDA), apply)], 2)
        # Muon holds nothing of this selection
        fit_quietly(module, [PenaltyCallback(L1(3.0, "net.0.*"), apply)], 30)
        assert int((module.net[0].weight == 0).sum()) > 0 and not (module.net[1].weight == 0).any()
        return
    fit_quietly(module, [PenaltyCallback(penalty, apply)], 3)
    optimizers = twin.configure_optimizers()
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        (twin.loss() + (penalty(twin) if apply == "gradient" else 0.0)).backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.data.mul_(1 - (group["lr"] * LAMBDA if apply == "decoupled" else 0.0))
            optimizer.step()
    for found, expected in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


class Wrapped(Fitted):
    """Steps by an optimizer around another one, which runs no hooks."""

    def __init__(self, around: bool) -> None:
        super().__init__()
        self.around = around

    def configure_optimizers(self) -> Optimizer:
        inner = SGD(self.parameters(), lr=LR)
        return Around(inner) if self.around else inner


@pytest.mark.parametrize("apply", ["gradient", "decoupled"])
def test_a_step_without_hooks_is_followed_where_all_comes_before_it(apply: Any) -> None:
    found = []
    for around in (True, False):
        module = Wrapped(around)
        fit_quietly(module, [PenaltyCallback(L2(LAMBDA), apply)], 3)
        found.append(module.net.weight.detach())
    assert torch.equal(*found)  # type: ignore[call-overload]


def test_a_step_without_hooks_is_refused_where_something_comes_after_it() -> None:
    for penalty, options in (
        (L2(LAMBDA, cautious=True), {"apply": "decoupled"}),
        (L1(LAMBDA), {"apply": "proximal", "metric": "euclidean"}),
        (MaxNorm(1.0), {}),
    ):
        with pytest.raises(ValueError, match="Around runs no hooks in its step, so that"):
            fit_quietly(Wrapped(True), [PenaltyCallback(penalty, **options)], 1)  # type: ignore[arg-type]


class ByHooks(RegularizedModule):
    """Each parameter has an optimizer of its own, which steps as soon as its gradient is there."""

    def __init__(self, *penalties: Any, apply: Any = "loss", in_sight: bool = False) -> None:
        super().__init__(list(penalties), apply=apply)
        self.net, self.in_sight = model_of(), in_sight

    def task_loss(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(X).square().mean()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> Any:
        inner = {p: SGD([p], lr=LR) for p in self.parameters()}

        def step(parameter: Any) -> None:
            inner[parameter].step()
            inner[parameter].zero_grad()

        for parameter in self.parameters():
            parameter.register_post_accumulate_grad_hook(step)
        return SGD(self.parameters(), lr=LR) if self.in_sight else None


@pytest.mark.parametrize("in_sight", [False, True], ids=["no optimizer", "one without gradients"])
@pytest.mark.parametrize("way", ["module", "callback"])
@pytest.mark.parametrize("apply", ["gradient", "loss", "decoupled", "proximal"])
@pytest.mark.filterwarnings("ignore:.*configure_optimizers. returned .None.")
def test_steps_in_the_backward_pass_have_the_loss_and_miss_the_rest(
    apply: Any, way: str, in_sight: bool
) -> None:
    penalty = L2(LAMBDA)
    module = ByHooks(*([penalty] if way == "module" else []), apply=apply, in_sight=in_sight)
    callbacks = [PenaltyCallback(penalty, apply)] if way == "callback" else []
    if apply == "loss":
        fit_quietly(module, callbacks, 3)
        hand = model_of()
        optimizer = SGD(hand.parameters(), lr=LR)
        for _ in range(3):
            optimizer.zero_grad()
            (hand(X).square().mean() + penalty(hand)).backward()
            optimizer.step()
        torch.testing.assert_close(module.net.weight, hand.weight)
        return
    with pytest.warns(UserWarning, match=r"L2.* was not applied to net\.weight .*: they are trained, and"):
        fit_quietly(module, callbacks, 3)


class OwnSteps(LightningModule):
    """A probabilistic library's: it steps by itself, and shows Lightning an optimizer of a dummy."""

    def __init__(self, in_backward: bool) -> None:
        super().__init__()
        self.net, self.dummy = model_of(), nn.Parameter(torch.zeros(1, 1, dtype=torch.float64))
        self.own, self.in_backward = SGD(self.net.parameters(), lr=LR), in_backward
        if in_backward:
            one = {p: SGD([p], lr=LR) for p in self.net.parameters()}

            def step(parameter: Any) -> None:
                one[parameter].step()
                one[parameter].zero_grad()

            for p in one:
                p.register_post_accumulate_grad_hook(step)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.net(X).square().mean()
        if not self.in_backward:
            self.own.zero_grad()
            loss.backward()
            self.own.step()
            loss = loss.detach()
        return loss + 0 * self.dummy.sum()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> Optimizer:
        return SGD([self.dummy], lr=LR)


@pytest.mark.parametrize("in_backward", [False, True], ids=["own step", "backward"])
@pytest.mark.parametrize("apply", ["gradient", "loss", "decoupled", "proximal"])
@pytest.mark.parametrize("select", ["weights", "net*"])
def test_a_selection_behind_a_dummy_parameter_is_said(select: str, apply: Any, in_backward: bool) -> None:
    behind = (
        r"was not applied to net\.weight and 0 more of the 2 parameters of its selection: they are trained"
    )
    nothing = r"acts on nothing yet: no optimizer holds net\.weight"
    with pytest.warns(UserWarning, match=behind if select == "weights" else nothing):
        fit_quietly(OwnSteps(in_backward), [PenaltyCallback(L2(LAMBDA, select), apply)], 3)


class Slower:
    """Lookahead around an optimizer, which runs no hooks."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner, self.count = inner, 0
        self.held = [p for group in inner.param_groups for p in group["params"]]
        self.slow = [p.detach().clone() for p in self.held]

    @torch.no_grad()
    def step(self) -> None:
        self.inner.step()
        self.count += 1
        if self.count % 5 == 0:
            for p, slow in zip(self.held, self.slow, strict=True):
                p.copy_(slow.lerp_(p, 0.5))


TERMS = [(L1(5.0), {"apply": "proximal"}), (NonNegative(), {}), (MaxNorm(0.1), {})]


@pytest.mark.parametrize(("term", "way"), TERMS, ids=["L1", "NonNegative", "MaxNorm"])
@pytest.mark.parametrize("around", ["lookahead", "clamp", "nothing"])
def test_what_does_not_last_is_said_once(around: str, term: Any, way: Any) -> None:
    model = model_of()
    nn.init.constant_(model.weight, -1.0)  # outside of each set, and where the slow weights begin
    inner = SGD(model.parameters(), lr=LR)
    optimizer: Any = Slower(inner) if around == "lookahead" else inner
    attach(model, inner, term, **way)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(30):
            (model(X) + X.sum(1, keepdim=True)).square().mean().backward()
            optimizer.step()
            if around == "clamp":  # somebody else's, which takes nothing back
                with torch.no_grad():
                    model.weight.clamp_(-0.05, 0.05)
            model.zero_grad()
    assert len(said) == (around == "lookahead")
    if said:
        what = "changes its zeros" if way else "takes the weights out of the set"
        assert f"between the steps of SGD something {what}" in str(said[0].message)


def test_what_another_one_at_work_changes_is_no_loss() -> None:
    model = model_of()
    optimizer = SGD(model.parameters(), lr=LR)
    attach(model, optimizer, L1(0.5), apply="proximal")
    attach(model, optimizer, Simplex())
    for _ in range(30):
        model(X).square().mean().backward()
        optimizer.step()
        model.zero_grad()
    assert (model.weight != 0).any()


class InBackward(SGD):
    """Steps inside the backward pass, and has a step that does nothing, as schedulers want one."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)
        for p in self.param_groups[0]["params"]:
            p.register_post_accumulate_grad_hook(self._move)

    @torch.no_grad()
    def _move(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.sub_(parameter.grad, alpha=LR)
        parameter.grad = None

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is not None:
            closure()


class ByLoss(SGD):
    """Differentiates the loss by itself, and leaves no gradient."""

    def step(self, closure: Any) -> None:  # type: ignore[override]
        parameters = self.param_groups[0]["params"]
        with torch.enable_grad():
            gradients = torch.autograd.grad(closure(), parameters)
        with torch.no_grad():
            torch._foreach_sub_(parameters, gradients, alpha=LR)


@pytest.mark.parametrize("apply", ["gradient", "decoupled"])
@pytest.mark.parametrize("cls", [InBackward, ByLoss])
def test_steps_without_a_gradient_are_said(cls: Any, apply: Any) -> None:
    model = model_of()
    optimizer = cls(model.parameters(), lr=LR)
    attach(model, optimizer, L2(0.1), apply=apply)

    def closure() -> Tensor:
        loss = model(X).square().mean()
        if cls is InBackward:
            loss.backward()
        return loss

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(6):
            optimizer.step(closure)
    assert len(said) == 1
    assert "step() never had a gradient to step by" in str(said[0].message)


def test_a_first_step_without_gradients_is_no_silence() -> None:
    model = model_of()
    optimizer = SGD(model.parameters(), lr=LR)
    attach(model, optimizer, L2(0.1))
    optimizer.step()
    for _ in range(5):
        model(X).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


class OfLosses(SGD):
    """Gradient surgery: takes losses, and not a closure."""

    def step(self, losses: Any) -> None:  # type: ignore[override]
        for loss in losses:
            loss.backward()
        super().step()


def test_what_a_step_takes_need_not_be_a_closure() -> None:
    model = model_of()
    optimizer = OfLosses(model.parameters(), lr=LR)
    attach(model, optimizer, L2(0.1))
    with pytest.warns(UserWarning, match="makes gradients of its own inside its step"):
        optimizer.step([model(X).square().mean()])


class Gan(LightningModule):
    """Two optimizers in turn; each leaves no gradient behind its step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.parts = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 1)])

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        for part, optimizer in zip(self.parts, self.optimizers(), strict=True):  # type: ignore[arg-type]
            self.manual_backward(part(batch).square().mean())
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> list[Optimizer]:
        return [SGD(part.parameters(), lr=0.1) for part in self.parts]


def test_an_optimizer_that_steps_later_has_not_taken_the_gradients_of_the_first() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*was not applied")
        trainer = Trainer(max_epochs=1, callbacks=[PenaltyCallback(L1(0.1))], **QUIET)
        trainer.fit(Gan(), DataLoader(torch.randn(8, 3), 2))  # type: ignore[arg-type]
