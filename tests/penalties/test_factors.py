"""A strength of its own for each weight or group, against rescaled problems and one penalty each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_reg import (
    L1,
    L2SP,
    Coupled,
    ElasticNet,
    GroupLasso,
    L2Norm,
    LInf,
    SparseGroupLasso,
    attach,
    fisher_diagonal,
)
from lightning_reg.penalties._grouped import GroupedPenalty
from lightning_reg.penalties.elementwise import ElementwisePenalty
from lightning_reg.select.parameters import select_parameters
from lightning_reg.tensors.steps import StepSize
from tests.penalties.cases import CASES

ELEMENTWISE = [
    replace(case.penalty, strength=0.3) for case in CASES if isinstance(case.penalty, ElementwisePenalty)
]


def _model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3).double()


@pytest.mark.parametrize("penalty", ELEMENTWISE, ids=lambda p: type(p).__name__)
def test_each_weight_is_penalized_by_its_own_strength(penalty: Any) -> None:
    model = _model()
    factors = torch.tensor([0.0, 0.5, 1.0, 3.0], dtype=torch.float64).expand(3, 4)
    (selected,) = select_parameters(model, "weights")
    weight = model.weight
    bound = replace(penalty, factors=factors).bind([selected])
    expected = sum(
        penalty.value(w, 0.3 * float(f)) for w, f in zip(weight.flatten(), factors.flatten(), strict=True)
    )
    torch.testing.assert_close(bound.total([weight], 0.3, weight), expected)
    torch.testing.assert_close(penalty.value(weight, 0.3), penalty.each(weight, 0.3).sum())
    moved, grown = weight.detach().clone(), torch.zeros_like(weight)
    one_by_one = torch.stack(
        [
            torch.stack([penalty.prox(w, 0.3 * float(f), 0.7) for w, f in zip(row, some, strict=True)])
            for row, some in zip(weight.detach(), factors, strict=True)
        ]
    )
    gradients = torch.stack(
        [
            torch.stack([penalty.gradient(w, 0.3 * float(f)) for w, f in zip(row, some, strict=True)])
            for row, some in zip(weight.detach(), factors, strict=True)
        ]
    )
    bound.add_gradient_([grown], [weight], 0.3)
    torch.testing.assert_close(grown, gradients)
    with torch.no_grad():
        bound.prox_([weight], 0.3, [StepSize.of(0.7)])
    torch.testing.assert_close(weight.detach(), one_by_one)
    assert torch.equal(weight[:, 0], moved[:, 0])  # a factor of 0 leaves a weight alone


@pytest.mark.parametrize(
    "kind", [type(case.penalty) for case in CASES if isinstance(case.penalty, GroupedPenalty)]
)
def test_each_group_is_penalized_by_its_own_strength(kind: Any) -> None:
    model = _model()
    (selected,) = select_parameters(model, "weights")
    factors = torch.tensor([0.0, 0.5, 2.0])
    bound = kind(0.3, groups="rows", factors={"weight": factors}).bind([selected])
    one = kind(0.3, groups="tensor" if kind is LInf else "rows")
    rows = [model.weight[i : i + 1].detach().clone() for i in range(3)]
    values = [one.value(row, 0.3 * float(f)) for row, f in zip(rows, factors, strict=True)]
    torch.testing.assert_close(bound.total([model.weight], 0.3, model.weight).detach(), sum(values))
    gradients = torch.cat([one.gradient(row, 0.3 * float(f)) for row, f in zip(rows, factors, strict=True)])
    torch.testing.assert_close(bound.gradient(model.weight, 0.3).detach(), gradients)
    expected = torch.cat([one.prox(row, 0.3 * float(f), 0.7) for row, f in zip(rows, factors, strict=True)])
    with torch.no_grad():
        bound.prox_([model.weight], 0.3, [StepSize.of(0.7)])
    torch.testing.assert_close(model.weight.detach(), expected)


@pytest.mark.parametrize("step", [0.7, torch.rand(3, 4, dtype=torch.float64) + 0.1])
def test_groups_with_factors_in_a_metric(step: Any) -> None:
    """A row at a time: both parts of the penalty are scaled, under one step and under one for each weight."""
    model = _model()
    (selected,) = select_parameters(model, "weights")
    factors = torch.tensor([0.0, 0.5, 2.0])
    rows = [model.weight[i : i + 1].detach().clone() for i in range(3)]
    steps = [step if isinstance(step, float) else step[i : i + 1] for i in range(3)]
    one = SparseGroupLasso(0.3, l1_ratio=0.3)
    expected = torch.cat(
        [one.prox(r, 0.3 * float(f), s) for r, f, s in zip(rows, factors, steps, strict=True)]
    )
    bound = SparseGroupLasso(0.3, l1_ratio=0.3, factors=factors).bind([selected])
    with torch.no_grad():
        bound.prox_([model.weight], 0.3, [StepSize.of(step)])
    torch.testing.assert_close(model.weight.detach(), expected)


def test_a_norm_of_each_tensor_takes_a_number_for_each() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double()
    value = L2Norm(0.3, factors={"0.weight": 2.0})(model)
    torch.testing.assert_close(value, 0.6 * model[0].weight.norm() + 0.3 * model[1].weight.norm())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer, L2Norm(50.0, factors={"0.weight": 0.0}), apply="proximal")
    model(torch.ones(2, 4, dtype=torch.float64)).sum().backward()
    optimizer.step()
    assert model[0].weight.all() and not model[1].weight.any()


@pytest.mark.slow
def test_an_adaptive_lasso_is_the_lasso_of_rescaled_columns() -> None:
    """Under Adam, to 1e-8 of scikit-learn's solution: factors 1/|least squares|, columns divided by them."""
    linear = pytest.importorskip("sklearn.linear_model")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 8, generator=generator, dtype=torch.float64)
    truth = torch.tensor([2.0, -1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    y = x @ truth + 0.1 * torch.randn(60, generator=generator, dtype=torch.float64)
    factors = 1.0 / torch.linalg.lstsq(x, y[:, None]).solution[:, 0].abs()
    strength = 0.02
    solver = linear.Lasso(alpha=strength, fit_intercept=False, tol=1e-14, max_iter=100_000)
    expected = torch.tensor(solver.fit((x / factors).numpy(), y.numpy()).coef_) / factors
    model = nn.Linear(8, 1, bias=False).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.5, 0.9))
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    attach(model, optimizer, L1(strength, factors={"weight": factors[None]}), apply="proximal")
    for _ in range(2000):
        optimizer.zero_grad()
        (0.5 * (model(x)[:, 0] - y).square().mean()).backward()
        optimizer.step()
        decay.step()
    assert torch.equal(model.weight[0] == 0, expected == 0)
    assert 0 < int((expected == 0).sum()) < 8
    torch.testing.assert_close(model.weight[0].detach(), expected, rtol=0, atol=1e-8)


def test_in_the_loss_autograd_gives_the_same_gradient() -> None:
    model = _model()
    penalty = ElasticNet(0.3, factors=lambda name, parameter, module: 1.0 + torch.arange(4.0))
    penalty(model).backward()
    grown = torch.zeros_like(model.weight)
    penalty.bind(select_parameters(model, "weights")).add_gradient_([grown], [model.weight], 0.3)
    torch.testing.assert_close(model.weight.grad, grown)


def test_factors_of_coupled_groups_go_by_the_first_name() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    groups = Coupled([{"0.weight": "rows", "0.bias": "rows", "2.weight": "columns"}])
    factors = {"0.weight": torch.tensor([0.0, 1.0, 0.0, 1.0])}
    penalty = GroupLasso(1e6, groups=groups, factors=factors)
    bound = penalty.bind(select_parameters(model, penalty.select))
    weights = [p for n, p in model.named_parameters() if n != "2.bias"]
    with torch.no_grad():
        bound.prox_(weights, 1e6, [StepSize.of(1.0)] * 3)
    assert (model[0].bias != 0).tolist() == [True, False, True, False]
    assert model[2].weight.any(0).tolist() == [True, False, True, False]


@pytest.mark.parametrize("averaged", [True, False])
@pytest.mark.parametrize("penalty", [L1, GroupLasso])
def test_in_training_what_has_no_factor_stays(penalty: Any, averaged: bool) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    factors: Tensor = torch.tensor([[0.0], [1.0], [1.0]]) if penalty is L1 else torch.tensor([0.0, 1.0, 1.0])
    attach(model, optimizer, penalty(10.0, factors=factors), apply="proximal", dual_averaging=averaged)
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    assert model.weight.any(1).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("factors", "says"),
    [
        (torch.ones(3, 3), r"of shape \(3, 3\) for weight, which needs \(3, 4\)"),
        (-torch.ones(3, 4), "not all finite and 0 or more"),
        ({"weight": float("nan")}, "not all finite and 0 or more"),
        ({"wieght": 1.0}, "names wieght, which is not selected; there is weight"),
    ],
)
@pytest.mark.parametrize("kind", [L1, GroupLasso])
def test_factors_that_do_not_fit_are_refused_before_training(kind: Any, factors: Any, says: str) -> None:
    if kind is GroupLasso and isinstance(factors, Tensor):
        factors, says = factors[:, 0].repeat(1 + ("needs" in says)), says.replace(r"\(3, 3\)", r"\(6,\)")
        says = says.replace(r"\(3, 4\)", r"\(3,\)")
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=says):
        attach(model, optimizer, kind(0.1, factors=factors))


def test_a_tensor_for_several_parameters_and_another_form_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="is for one parameter, and 2 are selected"):
        L1(0.1, factors=torch.ones(3, 4))(model)
    with pytest.raises(TypeError, match="neither a tensor nor a dict"):
        L1(0.1, factors=3)(model)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"L1\(factors=\.\.\.\) gives None for 0\.weight; give a number"):
        L1(0.1, factors=lambda name, parameter, module: None)(model)  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match=r"L2SP\(importance=\.\.\.\) of 0\.weight are not all finite and 0"):
        L2SP(0.1, importance={"0.weight": -torch.ones(3, 4)}).bind(select_parameters(model, "weights"))


def test_a_row_of_factors_is_refused_for_a_square() -> None:
    """Nobody could tell its rows from its columns."""
    row = torch.tensor([1.0, 0.0, 2.0])
    model = nn.Linear(3, 1)
    expected = 0.5 * (model.weight.abs() @ row).sum()
    torch.testing.assert_close(L1(0.5, factors=row)(model), expected)
    with pytest.raises(ValueError, match=r"of shape \(3,\) for weight, which needs \(3, 3\)"):
        L1(0.5, factors=row)(nn.Linear(3, 3))


# --- elastic weight consolidation ----------------------------------------------------------------------


def test_elastic_weight_consolidation_against_autograd() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randint(2, (6,))

    def loss(model: nn.Module, i: int) -> Tensor:
        return nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])

    fisher = fisher_diagonal(model, range(6), loss)
    for name, parameter in model.named_parameters():
        squares = [torch.autograd.grad(loss(model, i), parameter)[0].square() for i in range(6)]
        torch.testing.assert_close(fisher[name], torch.stack(squares).mean(0))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    penalty = L2SP(0.7, "all", reference=start, importance=fisher)
    value = penalty(model)
    by_hand = sum((fisher[n] * (p - start[n]).square()).sum() for n, p in model.named_parameters())
    torch.testing.assert_close(value, 0.35 * by_hand)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(value, parameters)
    bound = penalty.bind(select_parameters(model, "all"))
    grown = [torch.zeros_like(p) for p in parameters]
    bound.add_gradient_(grown, parameters, 0.7)
    for gradient, mine, (name, p) in zip(gradients, grown, model.named_parameters(), strict=True):
        torch.testing.assert_close(mine, gradient)
        torch.testing.assert_close(bound.gradient(p, 0.7), gradient)
        torch.testing.assert_close(gradient, 0.7 * fisher[name] * (p.detach() - start[name]))
    before = [p.detach().clone() for p in parameters]
    bound.prox_(parameters, 0.7, [StepSize.of(0.5)] * 4)
    for was, (name, p) in zip(before, model.named_parameters(), strict=True):
        torch.testing.assert_close((was - p.detach()) / 0.5, 0.7 * fisher[name] * (p.detach() - start[name]))


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="no batches"):
        fisher_diagonal(nn.Linear(2, 1), [], lambda model, batch: model(batch))
