"""Proximal training ends where scikit-learn's coordinate descent does, under every optimizer we name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_reg import L1, ElasticNet, Penalty, attach
from tests.optimizers import CAPTURABLE, FOREACH, FUSED, MAXIMIZE, PLAIN, Variant, allow_capturable

STEPS = 4000
STRENGTH = 0.1
LASSO = L1(STRENGTH)
ELASTIC_NET = ElasticNet(STRENGTH, l1_ratio=0.5)


@dataclass(frozen=True)
class Problem:
    """½·mean (Xw − y)² + Ω(w) on the diabetes data, columns and target standardised."""

    inputs: Tensor
    targets: Tensor

    def loss(self, weight: Tensor) -> Tensor:
        residual = self.inputs @ weight.view(-1) - self.targets
        return 0.5 * residual.square().mean()

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
    variant: Variant, penalty: Penalty, *, apply: Any = "proximal", autograd: bool = False, **how: Any
) -> Tensor:
    """Full batch, cosine learning rate; returns the weight."""
    problem = diabetes()
    model = nn.Linear(problem.inputs.shape[1], 1, bias=False, dtype=torch.float64)
    nn.init.constant_(model.weight, 0.1)
    optimizer = variant(model.parameters())
    attach(model, optimizer, penalty, apply=apply, **how)
    sign = -1.0 if variant.options.get("maximize") else 1.0
    count = len(problem.targets)
    gram, correlation = problem.inputs.T @ problem.inputs / count, problem.inputs.T @ problem.targets / count
    for step in range(STEPS):
        for group in optimizer.param_groups:
            rate = variant.lr * 0.5 * (1.0 + math.cos(math.pi * step / STEPS))
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        if autograd:
            optimizer.zero_grad()
            (sign * problem.loss(model.weight)).backward()
        else:  # what autograd gives, in a tenth of the time
            weight = model.weight.detach().view(-1)
            model.weight.grad = (sign * (gram @ weight - correlation)).view(1, -1)
        optimizer.step()
    return model.weight.detach().view(-1)


def check(weight: Tensor, penalty: Penalty) -> None:
    problem, best = diabetes(), solution(penalty)
    gap = problem.objective(weight, penalty) - problem.objective(best, penalty)
    assert torch.equal(weight != 0, best != 0), f"support {weight} against {best}, gap {gap}"
    assert abs(gap) <= 1e-10


def everyday(variants: list[Variant]) -> list[Any]:
    """The first variant of each optimizer on every run, the others with the slow tests."""
    seen: set[type] = set()
    params = []
    for variant in variants:
        first = variant.optimizer not in seen
        seen.add(variant.optimizer)
        params.append(pytest.param(variant, id=str(variant), marks=() if first else pytest.mark.slow))
    return params


@pytest.mark.parametrize("variant", PLAIN, ids=str)
def test_lasso_under_every_optimizer(variant: Variant) -> None:
    check(train(variant, LASSO), LASSO)


@pytest.mark.parametrize("variant", everyday(PLAIN))
def test_elastic_net_under_every_optimizer(variant: Variant) -> None:
    check(train(variant, ELASTIC_NET), ELASTIC_NET)


@pytest.mark.parametrize(
    "variant", [*everyday(FOREACH), *everyday(FUSED), *everyday(CAPTURABLE), *everyday(MAXIMIZE)]
)
def test_lasso_under_every_implementation(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    allow_capturable(monkeypatch)
    check(train(variant, LASSO), LASSO)


@pytest.mark.slow
@pytest.mark.parametrize("variant", [*FOREACH, *FUSED, *CAPTURABLE, *MAXIMIZE], ids=str)
def test_elastic_net_under_every_implementation(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    allow_capturable(monkeypatch)
    check(train(variant, ELASTIC_NET), ELASTIC_NET)


@pytest.mark.parametrize("variant", [PLAIN[1], PLAIN[4]], ids=str)
def test_lasso_through_autograd(variant: Variant) -> None:
    check(train(variant, LASSO, autograd=True), LASSO)


@pytest.mark.parametrize("variant", [PLAIN[1], PLAIN[4]], ids=str)
def test_the_gradient_of_l1_comes_near_and_makes_no_zeros(variant: Variant) -> None:
    weight = train(variant, LASSO, apply="gradient")
    assert bool((solution(LASSO) == 0).any()) and bool((weight != 0).all())
    gap = diabetes().objective(weight, LASSO) - diabetes().objective(solution(LASSO), LASSO)
    assert 0 < gap < 1e-4


def test_the_euclidean_metric_solves_it_under_plain_sgd() -> None:
    check(train(PLAIN[0], LASSO, metric="euclidean"), LASSO)


def test_the_euclidean_metric_solves_another_problem_under_momentum_and_adam() -> None:
    # why the metric is the optimizer's by default; SGD with momentum 0.9 solves the problem for λ/10
    for variant in (PLAIN[1], PLAIN[4]):
        weight = train(variant, LASSO, metric="euclidean")
        gap = diabetes().objective(weight, LASSO) - diabetes().objective(solution(LASSO), LASSO)
        assert gap > 1e-3
