"""Structured and non-convex penalties against solvers made for them, under SGD and Adam, in float64.

The objective is ‖y − Xw‖²/2n + Ω(w). Convex solutions carry a duality gap, which needs no other solver.
"""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from lightning_reg import (
    L1,
    MCP,
    SCAD,
    GroupLasso,
    LHalf,
    OverlappingGroupLasso,
    SparseGroupLasso,
    attach,
)
from lightning_reg.groups.layout import Slices
from tests.turns import everyday, part_of, turn

datasets = pytest.importorskip("sklearn.datasets")


def diabetes():
    x, y = datasets.load_diabetes(return_X_y=True)
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    return x, y


def correlated(n=200, p=1000, rho=0.5, live=4, size=5, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p))
    for j in range(1, p):
        x[:, j] = rho * x[:, j - 1] + np.sqrt(1 - rho**2) * x[:, j]
    w = np.zeros(p)
    for g in rng.choice(p // size, live, replace=False):
        w[g * size : (g + 1) * size] = rng.choice([-1, 1], size) * rng.uniform(1, 2, size)
    x /= np.linalg.norm(x, axis=0) / np.sqrt(n)
    return x, x @ w + 0.5 * rng.normal(size=n)


def train(x, y, penalty, optimizer, steps, start=None, rate=0.02):
    """Full-batch steps of a linear model by closed-form gradients, with a cosine learning rate."""
    n, p = x.shape
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    model = nn.Linear(p, 1, bias=False, dtype=torch.float64)
    model.weight.data.copy_(torch.zeros(p) if start is None else torch.from_numpy(start))
    smooth = float(np.linalg.norm(x, 2) ** 2 / n)
    made = {
        "sgd": lambda q: torch.optim.SGD(q, lr=1.0 / smooth),
        "momentum": lambda q: torch.optim.SGD(q, lr=0.1 / smooth, momentum=0.95, nesterov=True),
        "adam": lambda q: torch.optim.Adam(q, lr=rate),
    }[optimizer](model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(made, steps)
    attach(model, made, penalty, apply="proximal")
    for _ in range(steps):
        residual = torch.mv(inputs, model.weight.detach()[0]) - targets
        model.weight.grad = (torch.mv(inputs.T, residual) / n)[None]
        made.step()
        schedule.step()
    return model.weight.detach().numpy()[0]


def groups_of(size):
    return lambda name, parameter, module: Slices((parameter.shape[1] // size, size), (0,))


def norms(w, size):
    return np.linalg.norm(w.reshape(-1, size), axis=1)


def loss(x, y, w):
    return ((y - x @ w) ** 2).sum() / (2 * len(y))


def lambda_max(x, y, size):
    return norms(x.T @ y, size).max() / (len(y) * np.sqrt(size))


def group_gap(x, y, w, lam, size):
    """Primal minus dual objective of group lasso at ``w`` and its rescaled residual."""
    n, residual = len(y), y - x @ w
    theta = residual / max(lam * n, norms(x.T @ residual, size).max() / np.sqrt(size))
    primal = loss(x, y, w) + lam * np.sqrt(size) * norms(w, size).sum()
    return primal - ((y**2).sum() - ((y - lam * n * theta) ** 2).sum()) / (2 * n)


@pytest.mark.parametrize(
    ("optimizer", "steps"), everyday(1, [("momentum", 1000), ("adam", 800), ("sgd", 500)])
)
def test_group_lasso_has_no_duality_gap_on_diabetes(optimizer, steps):
    x, y = diabetes()
    lam = lambda_max(x, y, 2) / 4
    w = train(x, y, GroupLasso(lam, groups=groups_of(2)), optimizer, steps)
    assert 0 < (norms(w, 2) > 0).sum() < 5
    assert group_gap(x, y, w, lam, 2) <= 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", part_of(["sgd", "adam"], 2, turn()))
def test_all_groups_are_zero_from_lambda_max_on(optimizer):
    x, y = diabetes()
    edge = lambda_max(x, y, 2)
    start = np.random.default_rng(0).normal(size=10)
    for factor, alive in ((1.0 + 1e-9, 0), (1.5, 0), (0.99, 1)):
        w = train(x, y, GroupLasso(edge * factor, groups=groups_of(2)), optimizer, 2000, start)
        assert (norms(w, 2) > 0).sum() == alive


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", part_of(["adam", "sgd"], 2, turn()))
def test_sparse_group_lasso_is_optimal_on_diabetes(optimizer):
    """The subgradient conditions of both parts, coordinate by coordinate."""
    x, y = diabetes()
    lam, rho = 0.05, 0.4
    w = train(x, y, SparseGroupLasso(lam, groups=groups_of(2), l1_ratio=rho), optimizer, 4000)
    pull = (x.T @ (y - x @ w) / len(y)).reshape(-1, 2)
    assert 0 < (w == 0).sum() < 10
    for u, g in zip(w.reshape(-1, 2), pull, strict=True):
        soft = np.sign(g) * np.maximum(np.abs(g) - lam * rho, 0)
        if u.any():
            group = lam * (1 - rho) * np.sqrt(2) * u / np.linalg.norm(u)
            np.testing.assert_allclose(soft, group, atol=1e-7)
        else:
            assert np.linalg.norm(soft) <= lam * (1 - rho) * np.sqrt(2)


@cache
def trained_group_lasso(data, size, share, optimizer, steps):
    """Data, strength and solution, for tests that look at the same."""
    x, y = data()
    lam = lambda_max(x, y, size) / share
    return x, y, lam, train(x, y, GroupLasso(lam, groups=groups_of(size)), optimizer, steps)


@pytest.mark.slow
@pytest.mark.xdist_group("numba")
@pytest.mark.parametrize(("optimizer", "steps"), part_of([("adam", 6000), ("momentum", 12_000)], 2, turn()))
def test_group_lasso_on_a_correlated_design_has_no_duality_gap(optimizer, steps):
    x, y, lam, w = trained_group_lasso(correlated, 5, 10, optimizer, steps)
    assert 0 < (norms(w, 5) > 0).sum() < 20
    assert group_gap(x, y, w, lam, 5) <= 1e-8


def skglm_group_lasso(x, y, lam, size):
    skglm = pytest.importorskip("skglm")
    from skglm.datafits import QuadraticGroup
    from skglm.penalties import WeightedGroupL2
    from skglm.solvers import GroupBCD

    p = x.shape[1]
    bounds, order = np.arange(0, p + 1, size).astype(np.int32), np.arange(p).astype(np.int32)
    penalty = WeightedGroupL2(lam, np.full(p // size, np.sqrt(size)), bounds, order)
    solver = GroupBCD(tol=1e-13, max_iter=2000, fit_intercept=False)
    model = skglm.GeneralizedLinearEstimator(QuadraticGroup(bounds, order), penalty, solver)
    return model.fit(x, y).coef_.ravel()


def celer_group_lasso(x, y, lam, size):
    celer = pytest.importorskip("celer")
    weights = np.full(x.shape[1] // size, np.sqrt(size))
    model = celer.GroupLasso(size, alpha=lam, weights=weights, tol=1e-13, fit_intercept=False)
    return model.fit(x, y).coef_


@pytest.mark.slow
@pytest.mark.xdist_group("numba")
@pytest.mark.filterwarnings("ignore")  # numba's and the solvers' own
@pytest.mark.parametrize("solver", [skglm_group_lasso, celer_group_lasso])
@pytest.mark.parametrize(
    ("data", "size", "share", "optimizer", "steps"),
    part_of(
        [
            (diabetes, 2, 4, "sgd", 3000),
            (diabetes, 2, 4, "adam", 3000),
            (correlated, 5, 10, "adam", 6000),
            (correlated, 5, 10, "momentum", 12_000),
        ],
        2,
        turn(),
    ),
)
def test_group_lasso_is_the_reference_solvers(solver, data, size, share, optimizer, steps):
    x, y, lam, ours = trained_group_lasso(data, size, share, optimizer, steps)
    theirs = solver(x, y, lam, size)
    assert np.array_equal(ours != 0, theirs != 0)
    gap = (
        loss(x, y, ours)
        - loss(x, y, theirs)
        + lam * np.sqrt(size) * (norms(ours, size).sum() - norms(theirs, size).sum())
    )
    assert abs(gap) <= 1e-8


def non_convex(name, lam):
    penalties = pytest.importorskip("skglm.penalties")
    return {
        "l1": (L1(lam), penalties.L1(lam)),
        "mcp": (MCP(lam, gamma=3.0), penalties.MCPenalty(lam, 3.0)),
        "scad": (SCAD(lam), penalties.SCAD(lam, 3.7)),
        "l_half": (LHalf(lam), penalties.L0_5(lam)),
    }[name]


def skglm_fit(x, y, penalty):
    skglm = pytest.importorskip("skglm")
    from skglm.datafits import Quadratic
    from skglm.solvers import AndersonCD

    solver = AndersonCD(tol=1e-12, max_iter=1000, fit_intercept=False, ws_strategy="fixpoint")
    return skglm.GeneralizedLinearEstimator(Quadratic(), penalty, solver).fit(x, y).coef_.ravel()


@pytest.mark.slow
@pytest.mark.xdist_group("numba")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "data", "optimizer"),
    part_of(
        [  # half of all combinations, in which any two settings meet; in a turn, two in which all differs
            ("l1", diabetes, "momentum"),
            ("l1", correlated, "adam"),
            ("scad", diabetes, "momentum"),
            ("scad", correlated, "adam"),
            ("mcp", correlated, "momentum"),
            ("mcp", diabetes, "adam"),
            ("l_half", correlated, "momentum"),
            ("l_half", diabetes, "adam"),
        ],
        4,
        turn(),
    ),
)
def test_non_convex_solutions_of_skglm_are_ours(name, data, optimizer):
    """A non-convex problem has many solutions, so ours starts near theirs, every weight moved off it."""
    x, y = data()
    lam = np.abs(x.T @ y).max() / len(y) / (5 if data is correlated else 8)
    ours, penalty = non_convex(name, lam)
    theirs = skglm_fit(x, y, penalty)
    start = theirs + 1e-3 * np.random.default_rng(1).normal(size=theirs.shape)
    w = train(x, y, ours, optimizer, 8000, start, rate=0.01)  # Adam's first steps are lr long
    assert 0 < (theirs != 0).sum() < x.shape[1]
    assert np.array_equal(w != 0, theirs != 0)
    assert abs(loss(x, y, w) + penalty.value(w) - loss(x, y, theirs) - penalty.value(theirs)) <= 1e-8


#: Factors of the ten weights of diabetes, and of their five pairs; one of each is 0.
EACH = np.array([1.0, 0.0, 0.3, 0.3, 2.0, 1.0, 0.5, 0.7, 0.2, 1.5])
PAIRS = np.array([0.5, 0.1, 2.0, 0.0, 0.8])
RATIO = 0.4


def adaptive(kind, lam):
    """A penalty with factors, and its value by hand."""
    each, pairs = torch.from_numpy(EACH), torch.from_numpy(PAIRS)
    levels = ("weights", groups_of(2))
    lasso = lambda w: (EACH * np.abs(w)).sum()  # noqa: E731
    groups = lambda w: np.sqrt(2) * (PAIRS * norms(w, 2)).sum()  # noqa: E731
    return {
        "lasso": (L1(lam, factors=each[None]), lambda w: lam * lasso(w)),
        "group lasso": (GroupLasso(lam, groups=groups_of(2), factors=pairs), lambda w: lam * groups(w)),
        "sparse group lasso": (
            OverlappingGroupLasso(
                lam, groups=levels, level_factors=(RATIO, 1 - RATIO), factors=(each, pairs)
            ),
            lambda w: lam * (RATIO * lasso(w) + (1 - RATIO) * groups(w)),
        ),
    }[kind]


@cache
def trained_adaptive(kind, lam, optimizer):
    """A solution, for tests that look at the same."""
    return train(*diabetes(), adaptive(kind, lam)[0], optimizer, 1000)


def skglm_adaptive(x, y, kind, lam):
    skglm = pytest.importorskip("skglm")
    from skglm.datafits import Quadratic, QuadraticGroup
    from skglm.penalties import WeightedGroupL2, WeightedL1
    from skglm.solvers import AndersonCD, GroupBCD

    if kind == "lasso":
        solver = AndersonCD(tol=1e-13, max_iter=1000, fit_intercept=False)
        return skglm.GeneralizedLinearEstimator(Quadratic(), WeightedL1(lam, EACH), solver).fit(x, y).coef_
    bounds, order = np.arange(0, 11, 2).astype(np.int32), np.arange(10).astype(np.int32)
    penalty = WeightedGroupL2(lam, np.sqrt(2) * PAIRS, bounds, order)
    solver = GroupBCD(tol=1e-13, max_iter=2000, fit_intercept=False)
    return skglm.GeneralizedLinearEstimator(QuadraticGroup(bounds, order), penalty, solver).fit(x, y).coef_


def asgl_adaptive(x, y, kind, lam):
    asgl = pytest.importorskip("asgl")
    word = {"lasso": "alasso", "group lasso": "agl", "sparse group lasso": "asgl"}[kind]
    model = asgl.Regressor(  # whose loss is twice ours
        penalization=word,
        lambda1=2 * lam,
        alpha=RATIO,
        fit_intercept=False,
        individual_weights=EACH,
        group_weights=PAIRS,
        solver="CLARABEL",
        tol=1e-6,
    )
    groups = {} if kind == "lasso" else {"group_index": np.repeat(np.arange(1, 6), 2)}
    return model.fit(x, y, **groups).coef_


@pytest.mark.slow
@pytest.mark.xdist_group("numba")
@pytest.mark.filterwarnings("ignore")  # numba's and the solvers' own
@pytest.mark.parametrize(
    ("solver", "kind", "optimizer"),
    part_of(
        [
            (skglm_adaptive, "lasso", "adam"),
            (skglm_adaptive, "group lasso", "sgd"),
            (asgl_adaptive, "lasso", "sgd"),
            (asgl_adaptive, "group lasso", "adam"),
            (asgl_adaptive, "sparse group lasso", "adam"),
        ],
        2,
        turn(),
    ),
)
def test_factors_are_the_weights_of_reference_solvers(solver, kind, optimizer):
    x, y = diabetes()
    lam = 0.1
    value = adaptive(kind, lam)[1]
    theirs = solver(x, y, kind, lam).ravel()
    ours = trained_adaptive(kind, lam, optimizer)
    exact = solver is skglm_adaptive
    assert 0 < (ours == 0).sum() < 10
    assert np.array_equal(ours == 0, np.abs(theirs) < (1e-300 if exact else 1e-5))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-7 if exact else 1e-4)
    assert loss(x, y, ours) + value(ours) <= loss(x, y, theirs) + value(theirs) + 1e-10
