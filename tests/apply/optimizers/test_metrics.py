"""The metric of each optimizer against what the optimizer does: its last update per unit of gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import ASGD, SGD, Adadelta, Adagrad, Adam, AdamW, NAdam, Optimizer, RAdam, RMSprop

from lightning_reg import L1, attach
from lightning_reg.apply.optimizers import (
    euclidean_step_sizes,
    has_metric,
    has_one_step,
    metric_names,
    step_size,
)
from tests.optimizers import EVERY, MAXIMIZE, PLAIN, Variant, allow_capturable
from tests.turns import everyday

GRADIENT = torch.tensor([[0.5, -2.0], [0.03, 1.0]], dtype=torch.float64)
PAST = torch.tensor([[3.0, 1.0], [6.0, 0.5]], dtype=torch.float64)


def measured(
    make: Any, steps: int, *, prelude: int = 20, freeze: bool = False, **options: Any
) -> tuple[Tensor, Tensor]:
    """Step a real optimizer under a constant gradient; return (update per unit gradient, step_size)."""
    parameter = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    optimizer: Optimizer = make([parameter], lr=0.1, **options)
    generator = torch.Generator().manual_seed(0)
    for _ in range(prelude):  # a past, so that no moment is what the constant gradient would make it
        parameter.grad = PAST * (1.0 + torch.randn(2, 2, dtype=torch.float64, generator=generator))
        optimizer.step()
    if freeze:  # RMSprop's momentum sums updates: hold v still, as it is while training settles
        optimizer.param_groups[0]["alpha"] = 1.0
    for _ in range(steps):
        before = parameter.detach().clone()
        parameter.grad = GRADIENT.clone()
        optimizer.step()
    update = before - parameter.detach()
    if optimizer.param_groups[0].get("maximize"):
        update = -update
    size = step_size(optimizer, optimizer.param_groups[0], parameter).dense()
    return update / GRADIENT, torch.as_tensor(size, dtype=torch.float64).expand(2, 2)


@pytest.mark.parametrize("variant", [*EVERY, *MAXIMIZE], ids=str)
def test_step_size_is_the_update_per_unit_of_gradient(
    variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_capturable(monkeypatch)
    # μ_t of NAdam settles in 1e6 steps, with this decay in some hundreds
    options, steps = ({"momentum_decay": 1.0}, 700) if variant.optimizer is NAdam else ({}, 300)
    update, size = measured(variant, steps, freeze=variant.optimizer is RMSprop, **options)
    # torch's capturable code keeps 1 − β^t in float32
    rtol = 1e-4 if variant.options.get("capturable") else 1e-9
    torch.testing.assert_close(size, update, rtol=rtol, atol=0)
    if variant.optimizer not in (SGD, ASGD):
        assert float(size.max() / size.min()) > 1.5  # the weights were told apart


def test_dampening_without_momentum_dampens_nothing() -> None:
    update, size = measured(SGD, 3, dampening=0.5)
    torch.testing.assert_close(size, update, rtol=1e-12, atol=0)


def test_nadam_with_its_own_momentum_decay() -> None:
    update, size = measured(NAdam, 700)
    torch.testing.assert_close(size, update, rtol=1e-3, atol=0)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("steps", everyday(6, [1, 2, 5, 6, 7, 40, 2000]))
def test_radam_before_and_after_its_rectification(steps: int, foreach: bool) -> None:
    # without a past, its averaged gradient is the gradient from the first step on
    update, size = measured(RAdam, steps, prelude=0, foreach=foreach)
    torch.testing.assert_close(size, update, rtol=1e-9, atol=0)
    assert bool((size == 0.1).all()) == (steps <= 5)


@pytest.mark.parametrize("eps", [1e-8, 0.1])
@pytest.mark.parametrize("optimizer", [Adam, AdamW, NAdam, RAdam, RMSprop, Adagrad, Adadelta])
@pytest.mark.parametrize("steps", [1, 3, 50])
def test_eps_and_bias_corrections_early_on(optimizer: Any, eps: float, steps: int) -> None:
    options = {NAdam: {"momentum_decay": 1.0}, AdamW: {"weight_decay": 0.0}}.get(optimizer, {})
    if optimizer is NAdam and steps < 50:
        pytest.skip("its momentum schedule has not settled")
    update, size = measured(optimizer, steps, prelude=0, eps=eps, **options)
    torch.testing.assert_close(size, update, rtol=1e-9 if optimizer is not NAdam else 1e-2, atol=0)


def test_the_learning_rate_is_read_at_the_step_and_may_be_a_tensor() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    parameter.grad = torch.ones(2, 2)
    optimizer = Adam([parameter], lr=torch.tensor(0.1))
    optimizer.step()
    group = optimizer.param_groups[0]
    torch.testing.assert_close(step_size(optimizer, group, parameter).dense(), torch.full((2, 2), 0.1))
    group["lr"] = torch.tensor(0.3)
    torch.testing.assert_close(step_size(optimizer, group, parameter).dense(), torch.full((2, 2), 0.3))


def test_asgd_steps_by_the_rate_of_the_step_before_also_after_a_resume() -> None:
    """A soft threshold of each step by hand, under a rate that falls, in one run and in two."""
    options = {"lr": 0.3, "lambd": 0.2, "alpha": 0.75}

    def start() -> tuple[torch.nn.Linear, ASGD]:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1, bias=False)
        return model, ASGD(model.parameters(), **options)  # type: ignore[arg-type]

    def run(model: Any, optimizer: ASGD, steps: range, by_hand: bool) -> None:
        for i in steps:
            optimizer.param_groups[0]["lr"] = 0.3 / (1 + i)
            state = optimizer.state[model.weight] if optimizer.state else {}
            eta = float(state.get("eta", 0.3))
            model.weight.grad = torch.full((1, 4), 0.1 * (i - 2))
            optimizer.step()
            if by_hand:
                with torch.no_grad():
                    model.weight.copy_(torch.nn.functional.softshrink(model.weight, 0.1 * eta))

    model, optimizer = start()
    run(model, optimizer, range(6), by_hand=True)
    for stops in (False, True):
        found, stepping = start()
        attach(found, stepping, L1(0.1), apply="proximal", dual_averaging=False)
        run(found, stepping, range(3), by_hand=False)
        if stops:
            weights, state = found.state_dict(), stepping.state_dict()
            found, stepping = start()
            attach(found, stepping, L1(0.1), apply="proximal", dual_averaging=False)
            found.load_state_dict(weights)
            stepping.load_state_dict(state)
        run(found, stepping, range(3, 6), by_hand=False)
        torch.testing.assert_close(found.weight, model.weight, rtol=1e-6, atol=1e-7)


def test_each_group_has_its_own_options() -> None:
    a, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = SGD([{"params": [a]}, {"params": [b], "lr": 0.5, "momentum": 0.9}], lr=0.1)
    assert step_size(optimizer, optimizer.param_groups[0], a).dense() == 0.1
    assert step_size(optimizer, optimizer.param_groups[1], b).dense() == pytest.approx(5.0)


@pytest.mark.parametrize("variant", PLAIN, ids=str)
def test_asking_changes_nothing_in_the_optimizer(variant: Variant) -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    parameter.grad = torch.ones(2, 2)
    optimizer = variant([parameter])
    optimizer.step()
    before = repr(optimizer.state_dict())
    step_size(optimizer, optimizer.param_groups[0], parameter).dense()
    assert repr(optimizer.state_dict()) == before


def test_euclidean_is_the_learning_rate() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = Adam([parameter], lr=0.2)
    assert euclidean_step_sizes(optimizer, optimizer.param_groups[0], [parameter])[0].dense() == 0.2


# --- whose metric is known ---------------------------------------------------------------------------


class SameStep(Adam):
    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr=lr, betas=(0.5, 0.9))


class OtherStep(Adam):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class OtherStepDeep(OtherStep):
    pass


class OtherSGD(SGD):
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad.sign(), alpha=group["lr"])


@pytest.mark.parametrize("cls", [*dict.fromkeys(v.optimizer for v in PLAIN), SameStep])
def test_known(cls: type[Optimizer]) -> None:
    assert has_metric(cls([torch.nn.Parameter(torch.ones(1))], lr=0.1))
    assert cls is SameStep or cls.__name__ in metric_names()


@pytest.mark.parametrize(
    "cls", [OtherStep, OtherStepDeep, OtherSGD, torch.optim.Adafactor, torch.optim.Rprop]
)
def test_unknown(cls: type[Optimizer]) -> None:
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = cls([parameter], lr=0.1)
    assert not has_metric(optimizer) and not has_one_step(optimizer)
    with pytest.raises(TypeError, match=f"{cls.__name__}.*SGD, Adam, AdamW, NAdam, RAdam, Adagrad, RMSprop"):
        step_size(optimizer, optimizer.param_groups[0], parameter)


def test_a_stepped_and_scheduled_optimizer_stays_known() -> None:
    # torch wraps `step` of the class when the first instance is made, and a scheduler that of the instance
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = SameStep([parameter])
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    parameter.grad = torch.ones(1)
    optimizer.step()
    assert has_metric(optimizer)


def test_only_sgd_has_one_step() -> None:
    parameter = torch.nn.Parameter(torch.ones(1))
    assert has_one_step(SGD([parameter], lr=0.1, momentum=0.9))
    assert not has_one_step(Adam([parameter]))
