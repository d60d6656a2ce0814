"""Groups that span tensors, and a strength steered to a share of zeros."""

import pytest
import torch
from torch import nn

from lightning_reg import (
    L1,
    Coupled,
    GroupLasso,
    LInf,
    RegularizedModule,
    SparseGroupLasso,
    TargetSparsity,
    attach,
)
from lightning_reg.apply import Term, check_apply
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
    with pytest.raises(ValueError, match="in two sets"):
        Coupled([{"a": "rows"}, {"a": "rows"}])
    with pytest.raises(ValueError, match="is in no set"):
        GroupLasso(1.0, select="all", groups=UNIT)(net())


def digits():
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    return torch.tensor(x / 16).float(), torch.tensor(y)


@pytest.mark.slow
@pytest.mark.parametrize("initial", [1e-6, 1e-2])
@pytest.mark.parametrize(("kind", "share"), [(L1, 0.9), (GroupLasso, 0.5)])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_wanted_share_is_reached_and_held(kind, share, optimizer, initial):
    x, y = digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    made = (
        torch.optim.Adam(model.parameters(), lr=2e-3)
        if optimizer == "adam"
        else torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    )
    strength = TargetSparsity(share, initial=initial)
    handle = attach(model, made, kind(strength, "0.weight"), apply="proximal", total_steps=800)
    shares = []
    for _ in range(800):
        batch = torch.randint(0, len(x), (64,))
        made.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        made.step()
        weight = model[0].weight.detach()
        zeros = weight == 0 if kind is L1 else (weight == 0).all(1)
        shares.append(zeros.float().mean().item())
    assert abs(sum(shares[-100:]) / 100 - share) <= 0.06
    state = handle.state_dict()
    assert state["penalty"]["target_sparsity"].numel() == 4


def test_a_controller_goes_on_from_its_state():
    def train(steps, model, optimizer, handle, seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            optimizer.zero_grad()
            x = torch.randn(8, 3, dtype=torch.float64, generator=generator)
            nn.functional.mse_loss(model(x), x[:, :2]).backward()
            optimizer.step()

    def make():
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        penalty = L1(TargetSparsity(0.5, every=3, until=60))
        return model, optimizer, attach(model, optimizer, penalty, apply="proximal")

    whole = make()
    train(40, *whole, 1)
    half = make()
    train(40, *half, 1)
    other = make()
    other[0].load_state_dict(half[0].state_dict())
    other[1].load_state_dict(half[1].state_dict())
    other[2].load_state_dict(half[2].state_dict())
    train(40, *whole, 2)
    train(40, *other, 2)
    for a, b in zip(whole[0].parameters(), other[0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_target_needs_zeros_and_a_run():
    penalty = L1(TargetSparsity(0.5))
    for apply in ("gradient", "loss", "decoupled"):
        with pytest.raises(ValueError, match="steers by exact zeros"):
            check_apply(penalty, apply)
    with pytest.raises(ValueError, match="found in training"):
        penalty(net())
    with pytest.raises(ValueError, match="steers by exact zeros"):
        RegularizedModule([penalty])
    model = net()
    with pytest.raises(ValueError, match="total_steps"):
        attach(model, torch.optim.SGD(model.parameters(), lr=0.1), penalty, apply="proximal")
    for bad in ({"share": 1.0}, {"share": 0.5, "initial": 0.0}, {"share": 0.5, "begin": 0.8, "until": 0.5}):
        with pytest.raises(ValueError, match="TargetSparsity"):
            TargetSparsity(**bad)
