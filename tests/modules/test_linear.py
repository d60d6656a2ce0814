"""The linear models against scikit-learn, in float64 and full batches, as a user would fit them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from sklearn import linear_model
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import L1, Cosine, LinearRegression, LogisticRegression, PoissonRegression
from lightning_reg.callbacks import L1PenaltyCallback
from lightning_reg.tune import lambda_max, regularization_path
from tests.support import QUIET, l1_logistic
from tests.turns import everyday, part_of, turn

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]

pytestmark = pytest.mark.filterwarnings(
    "ignore:You are using `torch.load`", "ignore:The .* `barebones`", "ignore:`Trainer.barebones"
)


@lru_cache
def dataset(name: str) -> Arrays:
    """Standardised features, targets, uneven sample weights."""
    load = {"diabetes": load_diabetes, "breast_cancer": load_breast_cancer, "digits": load_digits}[name]
    x, y = load(return_X_y=True)
    if name == "digits":  # a third: scikit-learn's solver goes through it thousands of times
        x, y = x[::3], y[::3]
    x = x[:, x.std(axis=0) > 0]
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    if name == "diabetes":
        y = (y - 100.0) / y.std()  # a mean that is not 0, for the intercept to find
    return x, y, np.random.default_rng(0).uniform(0.2, 3.0, len(y))


def repeated(batch: Any, steps: int) -> DataLoader:
    return DataLoader([batch] * steps, batch_size=None, collate_fn=lambda same: same)


def fit(module: pl.LightningModule, steps: int, *arrays: np.ndarray | None) -> Any:
    batch = [torch.from_numpy(array) for array in arrays if array is not None]
    trainer = pl.Trainer(accelerator="cpu", max_steps=steps, barebones=True)
    trainer.fit(module.double(), repeated(batch, steps))
    return module


ADAM = partial(torch.optim.Adam, lr=0.3)
FAST = partial(torch.optim.Adam, lr=1.0)  # breast cancer's features are nearly collinear


def weighted(losses: np.ndarray, weight: np.ndarray | None) -> float:
    return float(np.average(losses, weights=weight))


def largest_strength(x: np.ndarray, residual: np.ndarray, weight: np.ndarray | None) -> float:
    """The smallest L1 strength whose solution is zero."""
    weight = np.ones(len(x)) if weight is None else weight
    residual = residual.reshape(len(x), -1)
    return float(np.abs(x.T @ (residual * weight[:, None])).max() / weight.sum())


#: Every combination of the two.
CELLS = pytest.mark.parametrize(
    ("bias", "with_weights"),
    [(True, False), (False, False), (True, True), pytest.param(False, True, marks=pytest.mark.slow)],
)


def every_combination() -> Iterator[Any]:
    """The first three are everyday, in which every setting comes; the others are slow tests."""
    first = [(True, False, 0.3, 1.0), (True, True, 0.1, 0.5), (False, False, 0.1, 1.0)]
    sides = (True, False), (False, False), (True, True), (False, True)
    yield from first
    for (bias, with_weights), fraction, ratio in itertools.product(sides, (0.3, 0.1, 0.01), (1.0, 0.5)):
        if (bias, with_weights, fraction, ratio) not in first:
            yield bias, with_weights, fraction, ratio


@pytest.mark.parametrize(
    ("bias", "with_weights", "fraction", "ratio"), everyday(3, [*every_combination()], 3)
)
def test_linear_regression_is_lasso_and_elastic_net(
    bias: bool, with_weights: bool, fraction: float, ratio: float
) -> None:
    x, y, weight = dataset("diabetes")
    weight = weight if with_weights else None
    centred = y - np.average(y, weights=weight) if bias else y
    alpha = fraction * largest_strength(x, centred, weight)
    theirs = linear_model.ElasticNet(
        alpha=alpha, l1_ratio=ratio, fit_intercept=bias, tol=1e-14, max_iter=100_000
    ).fit(x, y, sample_weight=weight)
    options: Any = {"l1_strength": alpha * ratio, "l2_strength": alpha * (1 - ratio)}
    steps = 500 if fraction == 0.01 else 300
    ours = fit(LinearRegression(x.shape[1], bias=bias, optimizer=ADAM, **options), steps, x, y, weight)

    def objective(coef: np.ndarray, intercept: Any) -> float:
        loss = weighted(0.5 * (x @ coef + intercept - y) ** 2, weight)
        return loss + alpha * (ratio * np.abs(coef).sum() + (1 - ratio) / 2 * (coef**2).sum())

    fitted = ours.to_sklearn()
    gap = objective(fitted.coef_, fitted.intercept_) - objective(theirs.coef_, theirs.intercept_)
    assert gap <= 1e-8
    np.testing.assert_array_equal(fitted.coef_ != 0, theirs.coef_ != 0)
    np.testing.assert_allclose(fitted.predict(x), theirs.predict(x), atol=1e-4)
    assert (fitted.intercept_ == 0) == (not bias)


@pytest.mark.slow
def test_linear_regression_is_ridge_and_least_squares() -> None:
    x, y, weight = dataset("diabetes")
    ridge = linear_model.Ridge(alpha=0.1 * weight.sum()).fit(x, y, sample_weight=weight)
    ours = fit(LinearRegression(x.shape[1], l2_strength=0.1, optimizer=ADAM), 600, x, y, weight).to_sklearn()
    np.testing.assert_allclose(ours.coef_, ridge.coef_, atol=1e-10)
    np.testing.assert_allclose(ours.intercept_, ridge.intercept_, atol=1e-10)
    several = np.stack([y, -2.0 * y, x[:, 0]], axis=1)
    plain = linear_model.LinearRegression().fit(x[:, :4], several)
    ours = fit(LinearRegression(4, 3, optimizer=ADAM), 600, x[:, :4], several).to_sklearn()
    np.testing.assert_allclose(ours.coef_, plain.coef_, atol=1e-8)


def in_pairs(strong: float, weak: float) -> pytest.MarkDecorator:
    """Every two levels of intercept, sample weights and penalty meet, in four cells, one in a turn."""
    cells = [(True, False, strong), (True, True, weak), (False, False, weak), (False, True, strong)]
    return pytest.mark.parametrize(("bias", "with_weights", "fraction"), part_of(cells, 4, turn()))


def logistic_parity(
    name: str, fraction: float, bias: bool, with_weights: bool, penalty: str, steps: int, iterations: int
) -> None:
    x, y, weight = dataset(name)
    weight = weight if with_weights else None
    n, classes = len(y) if weight is None else weight.sum(), int(y.max()) + 1
    one_hot = np.eye(classes)[y]
    prior = np.average(one_hot, axis=0, weights=weight) if bias else np.full(classes, 1 / classes)
    strength = fraction * largest_strength(x, one_hot - prior, weight)
    options: Any = (
        {**l1_logistic(), "solver": "saga", "tol": 1e-10}
        if penalty == "l1"
        else {"solver": "lbfgs", "tol": 1e-10}
    )
    theirs = linear_model.LogisticRegression(
        C=1 / (n * strength), fit_intercept=bias, max_iter=iterations, random_state=0, **options
    ).fit(x, y, sample_weight=weight)
    assert theirs.n_iter_.max() < iterations  # a reference that has converged
    strengths: Any = {f"{penalty}_strength": strength}
    module = LogisticRegression(x.shape[1], classes, bias=bias, optimizer=FAST, **strengths)
    ours = fit(module, steps, x, y, weight).to_sklearn()

    def objective(model: Any) -> float:
        loss = -np.log(model.predict_proba(x)[np.arange(len(y)), y])
        norm = np.abs(model.coef_).sum() if penalty == "l1" else 0.5 * (model.coef_**2).sum()
        return weighted(loss, weight) + strength * norm

    assert objective(ours) - objective(theirs) <= 1e-8
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-4)
    with torch.no_grad():
        np.testing.assert_allclose(
            module.predict(torch.from_numpy(x)).numpy(), theirs.predict_proba(x), atol=1e-4
        )
    if penalty == "l1":
        np.testing.assert_array_equal(ours.coef_ != 0, theirs.coef_ != 0)
        assert (ours.coef_ == 0).any()


@pytest.mark.slow
@in_pairs(0.3, 0.1)
def test_logistic_regression_on_breast_cancer(bias: bool, with_weights: bool, fraction: float) -> None:
    logistic_parity("breast_cancer", fraction, bias, with_weights, "l1", 900 if bias else 3000, 20_000)


@pytest.mark.slow
def test_logistic_regression_with_l2() -> None:
    logistic_parity("breast_cancer", 0.1, True, True, "l2", 900, 5_000)


@pytest.mark.slow
@in_pairs(0.03, 0.01)
def test_logistic_regression_on_breast_cancer_with_weak_penalties(
    bias: bool, with_weights: bool, fraction: float
) -> None:
    logistic_parity("breast_cancer", fraction, bias, with_weights, "l1", 8000, 200_000)


@pytest.mark.slow
@in_pairs(0.3, 0.1)
def test_multinomial_regression_on_digits(bias: bool, with_weights: bool, fraction: float) -> None:
    logistic_parity("digits", fraction, bias, with_weights, "l1", 1500, 20_000)


@pytest.mark.slow
def test_multinomial_regression_on_digits_with_l2() -> None:
    logistic_parity("digits", 0.3, True, False, "l2", 400, 5_000)


@pytest.mark.slow
@CELLS
def test_poisson_regression(bias: bool, with_weights: bool) -> None:
    x, _, weight = dataset("diabetes")
    weight = weight if with_weights else None
    generator = np.random.default_rng(1)
    y = generator.poisson(np.exp(0.3 * x[:, 0] - 0.2 * x[:, 3] + 1.0)).astype(float)
    theirs = linear_model.PoissonRegressor(alpha=0.05, fit_intercept=bias, tol=1e-12, max_iter=10_000)
    theirs = theirs.fit(x, y, sample_weight=weight)
    module = fit(
        PoissonRegression(x.shape[1], l2_strength=0.05, bias=bias, optimizer=ADAM), 800, x, y, weight
    )
    ours = module.to_sklearn()

    def objective(coef: np.ndarray, intercept: Any) -> float:
        eta = x @ coef + intercept
        return weighted(np.exp(eta) - y * eta, weight) + 0.025 * (coef**2).sum()

    gap = objective(ours.coef_, ours.intercept_) - objective(theirs.coef_, theirs.intercept_)
    assert gap <= 1e-10
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(module.predict(torch.from_numpy(x)), ours.predict(x), rtol=1e-10)
    zeros = fit(PoissonRegression(x.shape[1], l1_strength=0.2, optimizer=ADAM), 800, x, y, weight)
    assert 0 < (zeros.linear.weight != 0).sum() < x.shape[1]


@pytest.mark.slow
def test_the_intercept_is_never_penalized() -> None:
    """A strength that kills every weight leaves the intercept at the mean."""
    x, y, _ = dataset("diabetes")
    ours = fit(LinearRegression(x.shape[1], l1_strength=100.0, l2_strength=10.0, optimizer=ADAM), 500, x, y)
    assert (ours.linear.weight == 0).all()
    assert ours.linear.bias.item() == pytest.approx(y.mean(), abs=1e-10)


@pytest.mark.parametrize(
    ("theirs", "cls"),
    [
        (linear_model.Lasso(0.01), LinearRegression),
        (linear_model.LinearRegression(fit_intercept=False), LinearRegression),
        (linear_model.PoissonRegressor(), PoissonRegression),
    ],
)
def test_regressors_to_and_from_sklearn(theirs: Any, cls: Any) -> None:
    x, y, _ = dataset("diabetes")
    theirs.fit(x, y - y.min())
    module = cls.from_sklearn(theirs)
    expected = theirs.predict(x)
    with torch.no_grad():
        np.testing.assert_allclose(module.predict(torch.from_numpy(x)).flatten(), expected, rtol=1e-10)
    np.testing.assert_allclose(module.to_sklearn().predict(x), expected, rtol=1e-10)


@pytest.mark.parametrize(("name", "classes"), [("breast_cancer", 2), ("digits", 10)])
def test_classifiers_to_and_from_sklearn(name: str, classes: int) -> None:
    x, y, _ = dataset(name)
    theirs = linear_model.LogisticRegression(max_iter=50, tol=1e-1).fit(x, y)
    module = LogisticRegression.from_sklearn(theirs)
    assert module.num_classes == classes
    expected = theirs.predict_proba(x)
    with torch.no_grad():
        np.testing.assert_allclose(module.predict(torch.from_numpy(x)), expected, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(module.to_sklearn().predict_proba(x), expected, rtol=1e-7, atol=1e-12)


def test_from_sklearn_wants_a_fitted_linear_estimator() -> None:
    with pytest.raises(ValueError, match="Lasso has no coef_"):
        LinearRegression.from_sklearn(linear_model.Lasso())


def test_a_checkpoint_holds_plain_values_and_loads(tmp_path: Any) -> None:
    module = LogisticRegression(4, 3, l1_strength=0.1, bias=False)
    trainer = pl.Trainer(**{**QUIET, "max_steps": 2})
    trainer.fit(module, repeated([torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])], 2))
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    torch.load(path, weights_only=True)
    again = LogisticRegression.load_from_checkpoint(path)
    assert again.num_classes == 3
    assert again.penalties == module.penalties
    assert torch.equal(again.linear.weight, module.linear.weight)


def test_a_second_penalty_on_the_same_weights_is_said() -> None:
    module = LinearRegression(4, l1_strength=0.1)
    trainer = pl.Trainer(**{**QUIET, "max_steps": 1, "callbacks": [L1PenaltyCallback(0.1)]})
    with pytest.warns(UserWarning, match="penalized twice"):
        trainer.fit(module, repeated([torch.randn(6, 4), torch.randn(6)], 1))


def test_no_hook_is_left_on_the_optimizer() -> None:
    made = []

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        made.append(torch.optim.Adam(parameters, lr=0.1))
        return made[-1]

    fit(LinearRegression(4, l1_strength=0.1, optimizer=optimizer), 2, np.ones((3, 4)), np.ones(3))
    assert not made[0]._optimizer_step_post_hooks


@pytest.mark.parametrize("apply", ["loss", "decoupled", "proximal"])
def test_three_ways_to_apply_and_only_one_gives_zeros(apply: Any) -> None:
    x, y, _ = dataset("diabetes")
    module = LinearRegression(x.shape[1], l1_strength=0.3, apply=apply, lr_schedule=Cosine(1.0, 0.01))
    fit(module, 200, x, y)
    assert bool((module.linear.weight == 0).any()) == (apply == "proximal")
    assert module.linear.weight.abs().sum() < 1.5


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: LinearRegression(0), "in_features is 0"),
    (lambda: LinearRegression(3, 0), "number of outputs is 0"),
    (lambda: LogisticRegression(3, 1), "num_classes=1"),
    (lambda: LogisticRegression(3, l1_strength=-1.0), "out of range"),
    (lambda: LogisticRegression(3, l1_strength=float("nan")), "out of range"),
    (lambda: LinearRegression(3, apply="prox"), "apply='prox' is unknown"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_arguments(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


NAN, ONES = float("nan"), torch.ones(4)
X = torch.ones(4, 3)
BATCHES: list[tuple[Any, tuple[Any, ...], str]] = [
    (LinearRegression(3), (torch.ones(4, 2), ONES), r"of shape \(batch, 3\), and are \(4, 2\)"),
    (LinearRegression(3), (X, torch.ones(4, 2)), r"targets are of shape \(4, 2\)"),
    (LinearRegression(3), (X, torch.ones(3)), r"targets are of shape \(3,\)"),
    (LinearRegression(3), (X * NAN, ONES), "inputs of train batch 0 have 12 of 12 values that are NaN"),
    (LinearRegression(3), (X, ONES * NAN), "targets of train batch 0 have 4 of 4"),
    (LinearRegression(3), (X, ONES, torch.ones(3)), "sample weights must be of shape"),
    (LinearRegression(3), (X, ONES, -ONES), "sample weights must be 0 or more"),
    (LinearRegression(3), (X, ONES, 0 * ONES), "some of each batch positive"),
    (LinearRegression(3), (X,), "this one is 1 entries"),
    (LogisticRegression(3, 3), (X, torch.tensor([0, 1, 2, 3])), r"in 0, …, 2, and the batch has 3"),
    (LogisticRegression(3, 3), (X, torch.tensor([0, 1, 2, -1])), "the batch has -1"),
    (LogisticRegression(3, 3), (X, ONES * 0.5), "must be integers"),
    (LogisticRegression(3, 3), (X, torch.ones(3)), "one a sample"),
    (PoissonRegression(3), (X, -ONES), "counts, 0 or more"),
]


@pytest.mark.parametrize(("module", "batch", "message"), BATCHES)
def test_a_bad_batch_raises_and_spoils_nothing(module: Any, batch: tuple[Tensor, ...], message: str) -> None:
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = pl.Trainer(**{**QUIET, "max_steps": 2})
    with pytest.raises((ValueError, TypeError), match=message):
        trainer.fit(module, repeated(batch, 2))
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def poisson_solution(x: np.ndarray, y: np.ndarray, l1: float, l2: float) -> np.ndarray:
    """Proximal gradient on all of the data, with a step that halves until the loss is below its bound."""

    def loss(w: np.ndarray) -> float:
        return float((np.exp(x @ w) - y * (x @ w)).mean() + l2 / 2 * (w**2).sum())

    weight, step = np.zeros(x.shape[1]), 1.0
    for _ in range(2000):
        slope = x.T @ (np.exp(x @ weight) - y) / len(y) + l2 * weight
        while True:
            ahead = weight - step * slope
            new = np.sign(ahead) * np.maximum(np.abs(ahead) - step * l1, 0.0)
            moved = new - weight
            if loss(new) <= loss(weight) + slope @ moved + (moved**2).sum() / (2 * step) + 1e-15:
                break
            step /= 2
        weight = new
    return weight


#: In a turn every kind is once, and every batch size twice.
KINDS = ["linear", "logistic", "poisson", "poisson with L2"]
IN_BATCHES = [(kind, (16, 64)[(i + n) % 2]) for i, kind in enumerate(KINDS) for n in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "batch"), part_of(IN_BATCHES, 2, turn()))
def test_in_batches_the_zeros_are_those_of_all_the_data(kind: str, batch: int) -> None:
    """With the optimizer and the rate that the module has by itself; one weight may sit on the edge."""
    torch.manual_seed(1)
    inputs = torch.randn(480, 24)
    scores = inputs[:, :5] @ torch.linspace(0.5, 1.3, 5) + 0.7 * torch.randn(480)
    x, y = inputs.double().numpy(), scores.double().numpy()
    if kind == "linear":
        module: Any = LinearRegression(24, bias=False, l1_strength=0.1)
        targets = scores[:, None]
        theirs = linear_model.Lasso(alpha=0.1, fit_intercept=False, tol=1e-10).fit(x, y).coef_
    elif kind == "logistic":
        module = LogisticRegression(24, 2, bias=False, l1_strength=0.03)
        targets = (scores > 0).long()
        model = linear_model.LogisticRegression(
            C=1 / (480 * 0.03), solver="liblinear", fit_intercept=False, tol=1e-8, **l1_logistic()
        )
        theirs = model.fit(x, y > 0).coef_[0]
    else:
        l2 = 0.1 if kind == "poisson with L2" else 0.0
        module = PoissonRegression(24, bias=False, l1_strength=0.1, l2_strength=l2)
        targets = torch.poisson((0.4 * scores).exp())
        theirs = poisson_solution(x, targets.double().numpy(), 0.1, l2)
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=batch, shuffle=True)
    pl.Trainer(**QUIET, max_epochs=12 * batch // 16).fit(module, loader)
    weight = next(p for p in module.parameters() if p.dim() == 2).detach()[-1]
    wanted = torch.tensor(theirs) != 0
    assert 4 <= int(wanted.sum()) <= 10
    assert int(((weight != 0) != wanted).sum()) <= 1


def heavy() -> tuple[TensorDataset, np.ndarray, np.ndarray, np.ndarray]:
    """A tenth of the rows says the opposite of the others, and weighs most."""
    rng = np.random.default_rng(0)
    x, rare = rng.normal(size=(200, 4)), np.arange(200) < 20
    y, weight = np.where(rare, -1.0, 1.0) * x[:, 0], np.where(rare, 50.0, 1.0)
    return TensorDataset(*(torch.tensor(a, dtype=torch.float32) for a in (x, y, weight))), x, y, weight


@pytest.mark.parametrize("batch_size", [1, 16, 200])
def test_in_batches_sample_weights_count_as_in_all_of_the_data(batch_size: int) -> None:
    data, x, y, weight = heavy()
    expected = linear_model.Lasso(alpha=0.05).fit(x, y, sample_weight=weight).coef_
    torch.manual_seed(0)
    module = LinearRegression(
        4, l1_strength=0.05, optimizer=lambda p: torch.optim.SGD(p, lr=0.5 if batch_size > 16 else 0.01)
    )
    trainer = pl.Trainer(max_epochs=60, **QUIET)
    trainer.fit(module, DataLoader(data, batch_size, shuffle=True), DataLoader(data, 16))
    found = module.linear.weight.detach().double().numpy()[0]
    assert abs(found[0] - expected[0]) < 0.05 and expected[0] < -0.5
    assert ((found == 0) == (expected == 0)).all()
    intercept = module.linear.bias.item()
    loss = weighted(0.5 * (x @ found + intercept - y) ** 2, weight)
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(loss, rel=1e-4)


def test_where_a_weighted_path_begins_and_what_it_finds() -> None:
    data, x, y, weight = heavy()
    centred = y - np.average(y, weights=weight)
    top = largest_strength(x, centred[:, None], weight)
    assert lambda_max(LinearRegression(4), L1(0.0), DataLoader(data, 16)) == pytest.approx(top, rel=1e-5)
    for batch_size in (None, 16):
        frame = regularization_path(
            LinearRegression(4), L1(0.0), data, [0.3, 0.03, 0.003], batch_size=batch_size, validation=data
        )
        for row in frame:
            expected = linear_model.Lasso(alpha=row["strength"], tol=1e-10).fit(x, y, sample_weight=weight)
            np.testing.assert_allclose(row["weights"], expected.coef_, atol=1e-4)
            assert row["validation_loss"] == pytest.approx(row["train_loss"], rel=1e-6)


def test_what_the_sample_weights_were_goes_with_a_checkpoint(tmp_path: Path) -> None:
    data, *_ = heavy()

    def trained(epochs: int, **how: Any) -> tuple[pl.Trainer, Tensor]:
        torch.manual_seed(0)
        module = LinearRegression(4, optimizer=lambda p: torch.optim.SGD(p, lr=0.01), lr_schedule=None)
        trainer = pl.Trainer(max_epochs=epochs, **QUIET)
        trainer.fit(module, DataLoader(data, 16), **how)
        return trainer, module.linear.weight.detach()

    first, _ = trained(1)
    first.save_checkpoint(tmp_path / "first.ckpt")
    assert torch.equal(trained(2)[1], trained(2, ckpt_path=tmp_path / "first.ckpt")[1])
