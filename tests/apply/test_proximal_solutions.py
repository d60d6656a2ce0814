"""Proximal training ends where scikit-learn's coordinate descent does, under every optimizer we name."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import RAdam, RMSprop

from lightning_reg import L1, ElasticNet, Penalty, attach
from tests.optimizers import CAPTURABLE, FOREACH, FUSED, MAXIMIZE, PLAIN, Variant, allow_capturable
from tests.turns import everyday

STEPS = 400
MORE_STEPS = 1000  # for those that begin or move slowly
STRENGTH = 0.1
LASSO = L1(STRENGTH)
ELASTIC_NET = ElasticNet(STRENGTH, l1_ratio=0.5)
PENALTIES: dict[str, Penalty] = {"lasso": LASSO, "elastic_net": ELASTIC_NET}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    # twenty numbers gain nothing from two threads, and fused optimizers spin while they wait
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Problem:
    """½·mean (Xw − y)² + Ω(w) on the diabetes data, columns and target standardised."""

    inputs: Tensor
    targets: Tensor

    def loss(self, weight: Tensor) -> Tensor:
        residual = self.inputs @ weight.view(-1) - self.targets
        return 0.5 * residual.square().mean()

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        count = len(self.inputs)
        return self.inputs.T @ self.inputs / count, self.inputs.T @ self.targets / count

    def gradient(self, weight: Tensor) -> Tensor:
        """What autograd makes of :meth:`loss`, in a tenth of the time."""
        gram, correlation = self._moments
        return weight @ gram - correlation

    def objective(self, weight: Tensor, penalty: Penalty) -> float:
        return float(self.loss(weight) + penalty.value(weight, STRENGTH))


@cache
def diabetes() -> Problem:
    datasets = pytest.importorskip("sklearn.datasets")
    inputs, targets = datasets.load_diabetes(return_X_y=True)
    inputs, targets = (inputs - inputs.mean(0)) / inputs.std(0), (targets - targets.mean()) / targets.std()
    return Problem(torch.tensor(inputs), torch.tensor(targets))


@cache
def solution(penalty: Penalty) -> Tensor:
    """scikit-learn's solution, certified: a subgradient at it vanishes."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    problem = diabetes()
    l1_ratio = getattr(penalty, "l1_ratio", 1.0)
    model = linear_model.ElasticNet(
        alpha=STRENGTH, l1_ratio=l1_ratio, fit_intercept=False, tol=1e-15, max_iter=100_000
    )
    model.fit(problem.inputs.numpy(), problem.targets.numpy())
    weight = torch.tensor(model.coef_)

    residual = problem.targets - problem.inputs @ weight
    slope = problem.inputs.T @ residual / len(residual) - STRENGTH * (1 - l1_ratio) * weight
    bound = STRENGTH * l1_ratio
    support = weight != 0
    assert 0 < int(support.sum()) < len(weight), "the problem must have zeros and others"
    torch.testing.assert_close(slope[support], bound * weight[support].sign(), rtol=0, atol=1e-12)
    assert float(slope[~support].abs().max()) < 0.95 * bound, "no weight may sit on the edge"
    return weight


def train(
    variant: Variant, *, apply: Any = "proximal", autograd: bool = False, **how: Any
) -> dict[Penalty, Tensor]:
    """Full batch, cosine learning rate: a weight for each penalty, side by side in one optimizer."""
    problem = diabetes()
    start = torch.full((1, problem.inputs.shape[1]), 0.1, dtype=torch.float64)
    model = nn.ParameterDict({"lasso": nn.Parameter(start), "elastic_net": nn.Parameter(start.clone())})
    optimizer = variant(model.parameters())
    for name, penalty in PENALTIES.items():
        attach(model, optimizer, dataclasses.replace(penalty, select=name), apply=apply, **how)
    sign = -1.0 if variant.options.get("maximize") else 1.0
    steps = MORE_STEPS if variant.optimizer in (RAdam, RMSprop) else STEPS
    for step in range(steps):
        rate = variant.lr * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        if autograd:
            optimizer.zero_grad()
            (sign * (problem.loss(model["lasso"]) + problem.loss(model["elastic_net"]))).backward()
        else:
            for weight in model.values():
                weight.grad = sign * problem.gradient(weight.detach())
        optimizer.step()
    return {penalty: model[name].detach().view(-1) for name, penalty in PENALTIES.items()}


def gap(weight: Tensor, penalty: Penalty) -> float:
    problem = diabetes()
    return problem.objective(weight, penalty) - problem.objective(solution(penalty), penalty)


def check(weights: dict[Penalty, Tensor]) -> None:
    for penalty, weight in weights.items():
        assert torch.equal(weight != 0, solution(penalty) != 0), (penalty, weight, solution(penalty))
        assert abs(gap(weight, penalty)) <= 1e-10, penalty


def settles(variant: Variant) -> bool:
    # at a penalized solution the full-batch gradient is constant: v − m² falls to 0, the step grows to lr/ε,
    # and momentum is then unstable; its step size is held by the tests of step_size alone
    return not (variant.options.get("centered") and variant.options.get("momentum"))


def firsts(variants: list[Variant], every: int, number: int) -> list[Any]:
    """On every run the first variant of one optimizer in so many; of the others a third are slow tests."""
    settled = [variant for variant in variants if settles(variant)]
    classes = list(dict.fromkeys(variant.optimizer for variant in settled))
    chosen = [next(v for v in settled if v.optimizer is cls) for cls in classes[number::every]]
    return everyday(len(chosen), [*chosen, *(v for v in settled if v not in chosen)], 3)


@pytest.mark.parametrize("variant", firsts(PLAIN, 5, 0), ids=str)
def test_every_optimizer(variant: Variant) -> None:
    check(train(variant))


# every optimizer in some implementation, and every implementation of some optimizer
@pytest.mark.parametrize(
    "variant",
    [
        *firsts(FOREACH, 5, 1),
        *firsts(FUSED, 5, 2),
        *firsts(CAPTURABLE, 5, 3),
        *firsts(MAXIMIZE, 5, 4),
    ],
    ids=str,
)
def test_every_implementation(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    allow_capturable(monkeypatch)
    check(train(variant))


MOMENTUM, ADAM = PLAIN[1], PLAIN[4]


@pytest.mark.parametrize("variant", [MOMENTUM, ADAM], ids=str)  # momentum is what most people train with
def test_through_autograd(variant: Variant) -> None:
    check(train(variant, autograd=True))


@pytest.mark.parametrize("variant", [MOMENTUM, ADAM], ids=str)
def test_the_gradient_of_l1_comes_near_and_makes_no_zeros(variant: Variant) -> None:
    for penalty, weight in train(variant, apply="gradient").items():
        assert bool((solution(penalty) == 0).any()) and bool((weight != 0).all())
        assert 0 < gap(weight, penalty) < 1e-4


def test_the_euclidean_metric_solves_it_under_plain_sgd() -> None:
    check(train(PLAIN[0], metric="euclidean"))


def test_the_euclidean_metric_solves_another_problem_under_momentum_and_adam() -> None:
    # why the metric is the optimizer's by default; SGD with momentum 0.9 solves the problem for λ/10
    for variant in (MOMENTUM, ADAM):
        for penalty, weight in train(variant, metric="euclidean").items():
            assert gap(weight, penalty) > 1e-3


@pytest.mark.parametrize(
    ("clip", "noticed"), everyday(2, [(0.22, True), (0.1, False), (0.1, True), (0.22, False)])
)
def test_clipped_gradients_and_lambda(clip: float, noticed: bool) -> None:
    """Clipping that nobody notices makes λ count for λ divided by the factor of the clip."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    problem = diabetes()
    weight = nn.Parameter(torch.zeros(1, problem.inputs.shape[1], dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.4)
    handle = attach(nn.ParameterList([weight]), optimizer, LASSO, apply="proximal")
    with warnings.catch_warnings():
        if not noticed:
            warnings.filterwarnings("ignore", message="every gradient has the norm")
        for _ in range(MORE_STEPS):  # at a constant rate
            weight.grad = problem.gradient(weight.detach())
            with handle.clipping() if noticed else nullcontext():
                norm = nn.utils.clip_grad_norm_([weight], clip)
            optimizer.step()
    factor = min(1.0, clip / float(norm))
    strength = STRENGTH if noticed else STRENGTH / factor
    model = linear_model.Lasso(alpha=strength, fit_intercept=False, tol=1e-14, max_iter=100_000)
    model.fit(problem.inputs.numpy(), problem.targets.numpy())
    assert factor < (1.0 if noticed else 0.9)
    torch.testing.assert_close(weight.detach().view(-1), torch.tensor(model.coef_), rtol=0, atol=1e-6)
    assert noticed or int((weight != 0).sum()) < int((solution(LASSO) != 0).sum())
