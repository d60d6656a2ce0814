"""Groups that span tensors, and a strength steered to a share of zeros."""

import pytest
import torch
from torch import nn

from lightning_reg import (
    Coupled,
    GroupLasso,
    LInf,
    SparseGroupLasso,
    attach,
)
from lightning_reg.apply import Term
from lightning_reg.tensors.steps import StepSize

UNIT = Coupled([{"0.weight": "rows", "0.bias": "rows", "2.weight": "columns"}])


def net(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).to(dtype)


def joined(model):
    """Each unit's weights as one row."""
    return torch.cat([model[0].weight, model[0].bias[:, None], model[2].weight.T], 1)


PENALTIES = [
    GroupLasso(0.1, groups=UNIT),
    SparseGroupLasso(0.1, groups=UNIT, l1_ratio=0.3),
    LInf(0.1, groups=UNIT),
]


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("metric", [False, True])
def test_coupled_groups_are_one_matrix_of_rows(penalty, metric):
    """Value, gradient and prox are those of the same penalty on the tensors side by side."""
    model = net()
    flat = type(penalty)(0.1, groups="rows", **({"l1_ratio": 0.3} if "l1_ratio" in vars(penalty) else {}))
    together = joined(model).detach()
    term = Term(penalty, model)
    torch.testing.assert_close(term.value(0.1), flat.value(together, 0.1))
    weights = [s.parameter for s in term.selected]
    targets = [torch.zeros_like(w) for w in weights]
    term.bound.add_gradient_(targets, weights, 0.1)
    gradient = flat.gradient(together, 0.1)
    torch.testing.assert_close(targets[0], gradient[:, :3])
    torch.testing.assert_close(targets[1], gradient[:, 3])
    torch.testing.assert_close(targets[2], gradient[:, 4:].T)
    steps = [torch.rand_like(w) + 0.1 if metric else torch.full_like(w, 0.7) for w in weights]
    step = torch.cat([steps[0], steps[1][:, None], steps[2].T], 1)
    with torch.no_grad():
        term.bound.prox_(weights, 0.5, [StepSize.of(s) for s in steps])
    torch.testing.assert_close(joined(model), flat.prox(together, 0.5, step), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_a_group_may_span_parameter_groups_of_other_rates(make):
    model = net()
    biases = [p for p in model.parameters() if p.dim() == 1]
    weights = [p for p in model.parameters() if p.dim() > 1]
    optimizer = make([{"params": weights, "lr": 0.05}, {"params": biases, "lr": 0.01}])
    attach(model, optimizer, GroupLasso(0.5, groups=UNIT), apply="proximal")
    for _ in range(100):
        optimizer.zero_grad()
        x = torch.randn(16, 3, dtype=torch.float64)
        nn.functional.mse_loss(model(x), x[:, :2].relu()).backward()
        optimizer.step()
    rows = joined(model).detach()
    dead = (rows == 0).all(1)
    assert dead.any() and torch.equal(dead, (rows == 0).any(1))  # a unit goes as a whole


def test_decoupled_needs_one_rate():
    model = net()
    optimizer = torch.optim.SGD([{"params": [p], "lr": 0.1 + i} for i, p in enumerate(model.parameters())])
    attach(model, optimizer, GroupLasso(0.5, groups=UNIT), apply="decoupled")
    model(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
    with pytest.raises(ValueError, match="needs one learning rate"):
        optimizer.step()


def test_flattened_columns_go_with_their_channel():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 9, 2))
    groups = Coupled([{"0.weight": "filters", "2.weight": "columns"}])
    norms = (
        model[0].weight.flatten(1).square().sum(1) + model[2].weight.view(2, 4, 9).square().sum((0, 2))
    ).sqrt()
    torch.testing.assert_close(GroupLasso(1.0, groups=groups)(model), (9 + 18) ** 0.5 * norms.sum())


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        ([{"0.weight": "rows", "9.weight": "columns"}], "names 9.weight, which the module lacks"),
        (
            [{"0.weight": "rows", "2.weight": "rows"}],
            "in their number of groups: 0.weight 5, 2.weight 2",
        ),
    ],
)
def test_sets_that_do_not_fit_the_module_are_refused(sets, says):
    with pytest.raises(ValueError, match=says):
        GroupLasso(1.0, groups=Coupled(sets))(net())


def test_bad_sets_are_refused():
    for sets in ([], [{}]):
        with pytest.raises(ValueError, match="none of them empty"):
            Coupled(sets)
    for sets in ({"0.weight": "rows"}, ["0.weight"]):
        with pytest.raises(ValueError, match="no list of sets; give a list of dicts by parameter name"):
            Coupled(sets)
    with pytest.raises(ValueError, match="in two sets"):
        Coupled([{"a": "rows"}, {"a": "rows"}])
    with pytest.raises(ValueError, match="is in no set"):
        GroupLasso(1.0, select="all", groups=UNIT)(net())
