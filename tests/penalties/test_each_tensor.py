"""A strength of its own for each tensor, against one penalty for each of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_reg import NuclearNorm, Penalty, Reweighted, SpectralNorm, attach
from lightning_reg.select.parameters import select_parameters
from lightning_reg.tensors.steps import StepSize
from tests.penalties.cases import CASES

#: Penalties of whole tensors, bound or not to vectors of their own.
WHOLE = [
    replace(case.penalty, strength=0.3)
    for case in CASES
    if type(case.penalty).__name__
    in ("Hoyer", "HoyerSquare", "NuclearNorm", "SpectralNorm", "Orthogonality", "SLOPE", "TotalVariation")
]


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()


@pytest.mark.parametrize("penalty", WHOLE, ids=lambda p: f"{type(p).__name__} {getattr(p, 'form', '')}")
def test_each_tensor_is_penalized_by_its_own_strength(penalty: Any) -> None:
    model = _model()
    first, second = weights = [model[0].weight, model[2].weight]
    selected = select_parameters(model, "weights")
    bound = replace(penalty, factors={"0.weight": 2.5}).bind(selected)
    parts = [penalty.bind([one]) for one in selected]
    expected = parts[0].total([first], 0.75, first) + parts[1].total([second], 0.3, second)
    value = bound.total(weights, 0.3, first)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, weights), torch.autograd.grad(expected, weights))
    grown, wanted = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    bound.add_gradient_(grown, weights, 0.3, alpha=2.0)
    for part, target, weight, factor in zip(parts, wanted, weights, (2.5, 1.0), strict=True):
        part.add_gradient_([target], [weight], 0.3 * factor, alpha=2.0)
    torch.testing.assert_close(grown, wanted)
    other = nn.Parameter(first.detach().clone())  # as under sharding or an average of weights
    torch.testing.assert_close(
        bound.standing_in([first], [other]).at_rest().gradient(other, 0.3), bound.gradient(first, 0.3)
    )
    if penalty.has_prox:
        with torch.no_grad():
            moved = [penalty.prox(w, 0.3 * f, 0.7) for w, f in zip(weights, (2.5, 1.0), strict=True)]
            bound.prox_(weights, 0.3, [StepSize.of(0.7)] * 2)
        torch.testing.assert_close([w.detach() for w in weights], moved)


def test_in_training_what_has_no_factor_stays() -> None:
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer, NuclearNorm(50.0, factors={"0.weight": 0.0}), apply="proximal")
    model(torch.ones(2, 4, dtype=torch.float64)).sum().backward()
    optimizer.step()
    assert model[0].weight.all() and not model[2].weight.any()


def test_what_the_penalty_remembers_is_kept() -> None:
    model = _model()
    penalty = SpectralNorm(0.3, factors=lambda name, parameter, module: 2.0)
    selected = select_parameters(model, "weights")
    one, other = penalty.bind(selected), penalty.bind(selected)
    one.gradient(model[0].weight, 0.3)
    assert list(one.state_dict()) == ["0.weight"] and not other.state_dict()
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(other.state_dict(), one.state_dict())


@dataclass(frozen=True)
class Mean(Penalty):
    """λ·(mean w)², a penalty of the user's own."""

    strength: float
    select: str = "weights"
    factors: Any = field(default=None, repr=False, compare=False)
    name: str | None = None

    def value(self, weight: Tensor, strength: float) -> Tensor:
        return weight.mean().square() * strength

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        return torch.full_like(weight, 2.0 * strength * float(weight.mean()) / weight.numel())


def test_a_penalty_of_ones_own_has_them_by_a_field() -> None:
    model = _model()
    value = Mean(0.3, factors={"2.weight": 4.0})(model)
    first, second = model[0].weight.mean(), model[2].weight.mean()
    torch.testing.assert_close(value, 0.3 * first.square() + 1.2 * second.square())


@pytest.mark.parametrize(
    ("factors", "says"),
    [
        (
            {"0.weight": torch.ones(3, 4)},
            r"shape \(3, 4\) for 0.weight, which needs one number",
        ),
        ({"0.weight": -1.0}, "not all finite and 0 or more"),
        (
            Reweighted(0.1, at=(5,)),
            "has no weights or groups of its own to take factors from",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_training(factors: Any, says: str) -> None:
    model = _model()
    with pytest.raises(ValueError, match=says):
        attach(model, torch.optim.SGD(model.parameters(), lr=0.1), NuclearNorm(0.1, factors=factors))
