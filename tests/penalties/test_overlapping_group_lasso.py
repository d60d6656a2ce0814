"""Groups on several levels, against projected gradients in the dual; in training, the lasso of a tree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_reg import (
    Coupled,
    GroupLasso,
    OverlappingGroupLasso,
    Reweighted,
    SparseGroupLasso,
    TargetSparsity,
    attach,
)
from lightning_reg.groups.layout import Labels, Slices
from lightning_reg.prox.overlapping import are_nested
from lightning_reg.select.parameters import select_parameters
from lightning_reg.tensors.steps import StepSize

#: Levels of a tensor of (3, 4), and the entries of each group in its flattened form.
ROWS = [[4 * i + j for j in range(4)] for i in range(3)]
COLUMNS = [[4 * i + j for i in range(3)] for j in range(4)]
SINGLE = [[i] for i in range(12)]
LEVELS: dict[str, tuple[tuple[Any, ...], list[list[list[int]]]]] = {
    "a tree": (("rows", "weights", "tensor"), [ROWS, SINGLE, [list(range(12))]]),
    "crossed": (("rows", "columns"), [ROWS, COLUMNS]),
    "crossed, and weights": (("columns", "rows", "weights"), [COLUMNS, ROWS, SINGLE]),
    "some in no group": (
        (lambda name, parameter, module: torch.tensor([[0, 0, -1, 1]] * 3), "columns"),
        [[[0, 1, 4, 5, 8, 9], [3, 7, 11]], COLUMNS],
    ),
}


def by_the_dual(
    v: NDArray, eta: NDArray, levels: list[list[list[int]]], factors: list[Any], strength: float
) -> NDArray:
    """Minimise Σ(x − v)²/2η + λ Σ c √|g| ‖x_g‖ by accelerated projected gradients."""
    groups = [
        (np.array(g), strength * c * len(g) ** 0.5)
        for level, each in zip(levels, factors, strict=True)
        for g, c in zip(level, np.broadcast_to(each, len(level)), strict=True)
    ]
    z = [np.zeros(len(g)) for g, _ in groups]
    ahead, momentum = [one.copy() for one in z], 1.0
    step = 1.0 / (len(levels) * eta.max())
    for _ in range(40_000):
        x = v.copy()
        for (g, _), one in zip(groups, ahead, strict=True):
            x[g] -= eta[g] * one
        before, z = z, []
        for (g, radius), one in zip(groups, ahead, strict=True):
            moved = one + step * x[g]
            z.append(moved * min(1.0, radius / max(np.linalg.norm(moved), 1e-300)))
        if sum(((a - b) * (b - c)).sum() for a, b, c in zip(ahead, z, before, strict=True)) > 0:
            momentum = 1.0  # a restart where it overshoots
        last, momentum = momentum, (1.0 + (1.0 + 4.0 * momentum**2) ** 0.5) / 2.0
        ahead = [b + (last - 1.0) / momentum * (b - c) for b, c in zip(z, before, strict=True)]
        if max(np.abs(b - c).max() for b, c in zip(z, before, strict=True)) < 1e-15:
            break
    x = v.copy()
    for (g, _), one in zip(groups, z, strict=True):
        x[g] -= eta[g] * one
    return x


@pytest.mark.parametrize("steps", ["one", "each"])
@pytest.mark.parametrize("kind", LEVELS)
def test_the_prox_is_that_of_the_dual(kind: str, steps: str) -> None:
    words, levels = LEVELS[kind]
    rng = np.random.default_rng(3)
    v = (rng.normal(size=(3, 4)) * [[1.0], [0.1], [1.0]] * [1.0, 1.0, 0.1, 1.0]).ravel()
    eta = rng.uniform(0.2, 2.0, size=12) if steps == "each" else np.full(12, 0.7)
    factors = [1.0, 0.6, 0.3][: len(levels)]
    expected = by_the_dual(v, eta, levels, factors, 0.3)
    model = nn.Linear(4, 3, bias=False).double()
    penalty = OverlappingGroupLasso(0.3, groups=words, level_factors=factors)
    (selected,) = select_parameters(model, "weights")
    bound = penalty.bind([selected])
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(v.reshape(3, 4)))
    size = StepSize.of(torch.from_numpy(eta.reshape(3, 4)) if steps == "each" else 0.7)
    bound.prox_([model.weight], 0.3, [size])
    found = model.weight.detach().numpy().ravel()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    assert 0 < (found == 0).sum() < 12
    assert np.abs(expected[found == 0]).max() < 1e-9 and np.abs(expected[found != 0]).min() > 1e-6


@pytest.mark.parametrize("steps", ["one", "each"])
@pytest.mark.parametrize("kind", ["a tree", "crossed", "some in no group"])
def test_each_group_of_each_level_has_a_strength_of_its_own(kind: str, steps: str) -> None:
    """The prox against the dual, value and gradient against the norms written out."""
    words, levels = LEVELS[kind]
    rng = np.random.default_rng(4)
    v = (rng.normal(size=(3, 4)) * [[1.0], [0.3], [1.0]] * [1.0, 1.0, 0.3, 1.0]).ravel()
    eta = rng.uniform(0.2, 2.0, size=12) if steps == "each" else np.full(12, 0.7)
    factors: list[Any] = [rng.uniform(0.0, 2.0, size=len(level)).round(1) for level in levels]
    factors[0][0] = 0.0
    expected = by_the_dual(v, eta, levels, factors, 0.2)
    model = nn.Linear(4, 3, bias=False).double()
    penalty = OverlappingGroupLasso(1.0, groups=words, factors=tuple(map(torch.from_numpy, factors)))
    bound = penalty.bind(select_parameters(model, "weights"))
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(v.reshape(3, 4)))
    value = bound.total([model.weight], 0.2, model.weight)
    norms = [
        c * len(g) ** 0.5 * np.linalg.norm(v[g])
        for level, each in zip(levels, factors, strict=True)
        for g, c in zip(level, each, strict=True)
    ]
    assert float(value.detach()) == pytest.approx(0.2 * sum(norms))
    (gradient,) = torch.autograd.grad(value, model.weight)
    torch.testing.assert_close(bound.gradient(model.weight, 0.2), gradient)
    size = StepSize.of(torch.from_numpy(eta.reshape(3, 4)) if steps == "each" else 0.7)
    bound.prox_([model.weight], 0.2, [size])
    found = model.weight.detach().numpy().ravel()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    assert (found == 0).any() or kind == "some in no group"


@pytest.mark.parametrize("averaged", [True, False])
def test_in_training_groups_without_a_factor_stay(averaged: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False))
    rows, columns = torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 0.0, 1.0])
    penalty = OverlappingGroupLasso(10.0, factors={"0.weight": (rows, columns), "1.weight": 0.0})
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    attach(model, optimizer, penalty, apply="proximal", dual_averaging=averaged)
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    assert (model[0].weight != 0).tolist() == [[True, True, True, False], [False] * 4, [False] * 4]
    assert model[1].weight.all()


def test_nested_groups_in_one_metric_compose() -> None:
    """Leaves first: an oracle in a line. The other order is not it."""
    weight = torch.tensor([[3.0, 1.5], [0.9, 0.8]], dtype=torch.float64)
    penalty = OverlappingGroupLasso(1.0, groups=("tensor", "rows"), level_factors=(1.0, 1.0))
    rows, whole = GroupLasso(1.0, groups="rows"), GroupLasso(1.0, groups="tensor")
    found = penalty.prox(weight, 0.5, 1.0)
    torch.testing.assert_close(found, whole.prox(rows.prox(weight, 0.5, 1.0), 0.5, 1.0), rtol=0, atol=0)
    assert not torch.allclose(found, rows.prox(whole.prox(weight, 0.5, 1.0), 0.5, 1.0))


@pytest.mark.parametrize("step", [0.7, torch.rand(3, 4, dtype=torch.float64) + 0.1])
def test_weights_and_rows_are_the_sparse_group_lasso(step: Any) -> None:
    weight = torch.randn(3, 4, dtype=torch.float64)
    ours = OverlappingGroupLasso(1.0, groups=("rows", "weights"), level_factors=(0.6, 0.4))
    theirs = SparseGroupLasso(1.0, l1_ratio=0.4)
    for strength in (0.1, 0.5):
        torch.testing.assert_close(ours.prox(weight, strength, step), theirs.prox(weight, strength, step))
        torch.testing.assert_close(ours.gradient(weight, strength), theirs.gradient(weight, strength))
        torch.testing.assert_close(ours.value(weight, strength), theirs.value(weight, strength))


def test_what_is_nested() -> None:
    weight = torch.zeros(2, 4)
    rows, whole = Slices((2, 4), (0,)), Slices((2, 4), ())
    pairs, across = (
        Labels(torch.tensor([[0, 0, 1, 1], [2, 2, 3, 3]])),
        Labels(torch.tensor([[0, 0, 1, 1]] * 2)),
    )
    part = Labels(torch.tensor([[0, 0, -1, -1], [1, 1, -1, -1]]))
    assert are_nested([pairs, rows, whole], weight) and are_nested([part, rows, whole], weight)
    assert are_nested([pairs, across], weight) and not are_nested([rows, across], weight)
    # each nested in the one behind it, since the groups of the first are in none of the second's
    free = Labels(torch.tensor([[-1, -1, 0, 1]] * 2))
    assert are_nested([free, part], weight) and are_nested([part, rows], weight)
    assert not are_nested([free, part, rows], weight)
    assert not are_nested([rows, part], weight)  # some of a row are in no group


def test_kernels_filters_and_a_layer_of_a_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 2, 1))
    kernels = lambda name, parameter, module: Slices(tuple(parameter.shape), (0, 1))  # noqa: E731
    penalty = OverlappingGroupLasso(0.3, groups=(kernels, "filters", "tensor"))
    expected = sum(
        9**0.5 * w.norm(dim=(2, 3)).sum() * (1.0 if w.shape[-1] == 3 else 1 / 3)
        + w[0].numel() ** 0.5 * w.flatten(1).norm(dim=1).sum()
        + w.numel() ** 0.5 * w.norm()
        for w in (model[0].weight, model[1].weight)
    )
    torch.testing.assert_close(penalty(model), 0.3 * expected)
    penalty(model).backward()
    bound = penalty.bind(select_parameters(model, "weights"))
    for layer in model:
        grown = torch.zeros_like(layer.weight)
        bound.add_gradient_([grown], [layer.weight], 0.3)
        torch.testing.assert_close(grown, layer.weight.grad)


# --- training ------------------------------------------------------------------------------------------

#: A tree of twelve features: pairs, halves, all.
PAIRS = torch.arange(12)[None] // 2
HALVES = torch.arange(12)[None] // 6
TREE = OverlappingGroupLasso(
    0.04, groups=(lambda n, p, m: PAIRS, lambda n, p, m: HALVES, "weights"), level_factors=(0.5, 0.5, 1.0)
)
TREE_LEVELS = [
    [[2 * i, 2 * i + 1] for i in range(6)],
    [list(range(6)), list(range(6, 12))],
    [[i] for i in range(12)],
]


def problem(count: int = 160) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 12, generator=generator, dtype=torch.float64)
    truth = torch.zeros(12, dtype=torch.float64)
    truth[:3] = torch.tensor([1.5, -1.0, 0.7])
    return x, x @ truth + 0.3 * torch.randn(count, generator=generator, dtype=torch.float64)


def solution() -> NDArray:
    """Proximal gradients, with the prox of the dual."""
    x, y = (one.numpy() for one in problem())
    smooth = np.linalg.norm(x, 2) ** 2 / len(y)
    w = np.zeros(12)
    for _ in range(60):
        moved = w - x.T @ (x @ w - y) / len(y) / smooth
        w = by_the_dual(moved, np.full(12, 1.0 / smooth), TREE_LEVELS, [0.5, 0.5, 1.0], 0.04)
    return w


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.05, betas=(0.8, 0.95)),
}


def trained(optimizer: str, batch: int, epochs: int) -> tuple[Tensor, list[Tensor]]:
    """The weights, and what was zero in each of the last epochs."""
    x, y = problem()
    torch.manual_seed(0)
    model = nn.Linear(12, 1, bias=False).double()
    made = OPTIMIZERS[optimizer](model.parameters())
    attach(model, made, TREE, apply="proximal")
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(made, epochs)
    zeros = []
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(batch):
            made.zero_grad()
            (0.5 * (model(x[part])[:, 0] - y[part]).square().mean()).backward()
            made.step()
        decay.step()
        zeros.append(model.weight.detach()[0] == 0)
    return model.weight.detach()[0], zeros[-5:]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_full_batches_reach_the_solution(optimizer: str) -> None:
    expected = torch.from_numpy(solution())
    found, _ = trained(optimizer, 160, 250 if optimizer == "adam" else 800)
    assert torch.equal(found == 0, expected.abs() < 1e-9) and 0 < int((found == 0).sum()) < 12
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_small_batches_find_the_zeros_of_the_problem(optimizer: str) -> None:
    expected = torch.from_numpy(solution()).abs() < 1e-9
    found, zeros = trained(optimizer, 16, 20)
    assert torch.equal(found == 0, expected)
    assert all(torch.equal(one, expected) for one in zeros)


def test_what_it_cannot_be_is_refused() -> None:
    model = nn.Linear(4, 3)
    for options, says in (
        ({"groups": "rows"}, r"groups='rows'\) needs levels, such as"),
        ({"groups": ()}, "needs levels"),
        ({"groups": ("rows", "units")}, "'units' span several; use GroupLasso"),
        ({"groups": ("rows", Coupled([{"weight": "rows"}]))}, "span several; use GroupLasso"),
        ({"groups": ("rows", "raws")}, "groups='raws' is unknown"),
        ({"level_factors": (1.0,)}, "needs a finite number, 0 or more, for each of 2 levels"),
        ({"level_factors": (1.0, -1.0)}, "needs a finite number, 0 or more, for each of 2 levels"),
        ({"strength": TargetSparsity(0.5)}, "give a number, or use GroupLasso"),
        ({"factors": Reweighted(0.1, at=(5,))}, "follow one; give your own, or use GroupLasso"),
    ):
        with pytest.raises(ValueError, match=says):
            OverlappingGroupLasso(**{"strength": 0.1, **options})  # type: ignore[arg-type]
    for factors, says in (
        (torch.ones(3), r"of shape \(3,\) for all levels of weight, which needs one number"),
        ((torch.ones(3),), "gives 1 for weight, which has 2 levels"),
        ((1.0, torch.ones(3)), r"of shape \(3,\) for level 1 of weight, which needs \(4,\)"),
        ({"weight": (1.0, -1.0)}, "not all finite and 0 or more"),
    ):
        with pytest.raises(ValueError, match=says):
            OverlappingGroupLasso(0.1, factors=factors)(model)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"factors=tuple\) is for one parameter, and 2 are selected"):
        OverlappingGroupLasso(0.1, factors=(1.0, 1.0))(nn.Sequential(model, nn.Linear(3, 2)))
    with pytest.raises(ValueError, match="groups='channels' is for convolutions"):
        OverlappingGroupLasso(0.1, groups=("channels", "tensor"))(model)
