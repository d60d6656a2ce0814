"""Linear problems that are solved without a Trainer, and what is left to one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import L1, ElasticNet, GroupLasso
from lightning_reg.apply import Term
from lightning_reg.penalties import Penalty
from lightning_reg.tune import lambda_max, newton, regularization_path, stability_selection
from lightning_reg.tune._flat import Flat
from lightning_reg.tune._loss import mean_hessian
from lightning_reg.tune.newton import Newton, minimum_of_parabola
from tests.support import l1_logistic
from tests.tune.problems import Linear, breast_cancer, diabetes

CPU: dict[str, Any] = {"accelerator": "cpu"}


def distance(hessian: Tensor, slope: Tensor, kink: Tensor, weights: Tensor) -> float:
    """How far the slopes are from what a minimum wants, as a share of the largest kink."""
    gradient = hessian @ weights - slope
    alive = (gradient + kink * weights.sgn()).abs()
    return float(torch.where(weights != 0, alive, (gradient.abs() - kink).clamp(min=0)).max() / kink.max())


@pytest.mark.parametrize("start", ["the last one", "zero", "anywhere"])
@pytest.mark.parametrize(
    ("samples", "weights", "correlation"),
    [(50, 10, 0.0), (100, 40, 0.9), (40, 100, 0.0), (60, 120, 0.95), (30, 1, 0.0)],
)
def test_the_minimum_of_a_parabola(samples: int, weights: int, correlation: float, start: str) -> None:
    generator = torch.Generator().manual_seed(samples + weights)
    x = torch.randn(samples, weights, generator=generator, dtype=torch.float64)
    shared = torch.randn(samples, 1, generator=generator, dtype=torch.float64)
    x = (1 - correlation) ** 0.5 * x + correlation**0.5 * shared
    if weights > 1:
        x[:, 1] = x[:, 0]  # of which nobody can tell one from the other
    y = x[:, :5].sum(1) + torch.randn(samples, generator=generator, dtype=torch.float64)
    hessian, slope = x.T @ x / samples, x.T @ y / samples
    hessian.diagonal().add_(1e-12)
    kink = torch.rand(weights, generator=generator, dtype=torch.float64) + 0.1
    kink[3:4] = 0.0  # as of an intercept
    found = torch.zeros(weights, dtype=torch.float64)
    for share in (1.0, 0.5, 0.1, 0.01, 1e-3):
        if start != "the last one":
            found = torch.randn(weights, generator=generator, dtype=torch.float64) * (start == "anywhere")
        strength = share * kink * float(slope.abs().max())
        found = minimum_of_parabola(hessian, slope, strength, found)
        assert distance(hessian, slope, strength, found) < 1e-7
    assert 0 < int((found != 0).sum()) <= max(1, min(samples, weights))


class _Square(torch.autograd.Function):
    """w ↦ w², which vmap cannot take."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        context.save_for_backward(value)
        return value.square()

    @staticmethod
    def backward(context: Any, grad: Tensor) -> Tensor:
        (value,) = context.saved_tensors
        return 2.0 * value * grad


@pytest.mark.parametrize("numbers", [1, 2**15])
@pytest.mark.parametrize("square", [torch.square, _Square.apply], ids=["batched", "one by one"])
def test_the_hessian_of_the_mean_loss(
    square: Callable[[Tensor], Tensor], numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_reg.tune._loss.NUMBERS", numbers)
    torch.manual_seed(0)
    linear = nn.Linear(4, 3, dtype=torch.float64)
    x = torch.randn(11, 4, dtype=torch.float64)
    batches = [[x[:5]], [x[5:]]]  # of two sizes

    def loss(module: Any, batch: Any) -> Tensor:
        return square(module(batch[0]).logsumexp(1)).mean()

    def whole(vector: Tensor) -> Tensor:
        weight, bias = vector[:12].view(3, 4), vector[12:]
        return square(F.linear(x, weight, bias).logsumexp(1)).mean()

    parameters = list(linear.parameters())
    start = torch.cat([p.detach().flatten() for p in parameters])
    found = mean_hessian(linear, batches, loss, parameters)
    expected = torch.zeros(15, 15, dtype=torch.float64)
    for i in range(15):  # central differences of a gradient
        ahead, behind = start.clone(), start.clone()
        ahead[i] += 1e-5
        behind[i] -= 1e-5
        slopes = [
            torch.autograd.grad(whole(v), v)[0] for v in (ahead.requires_grad_(), behind.requires_grad_())
        ]
        expected[i] = (slopes[0] - slopes[1]) / 2e-5
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


def path(module: Any, penalty: Penalty, data: Any, **options: Any) -> Any:
    options = {"points": 4, "ratio": 0.05, "max_epochs": 3, "trainer": CPU, **options}
    return regularization_path(module, penalty, data, **options)


class Other(Linear):
    """A linear model with something in it."""

    def __init__(self, before: nn.Module, loss: Callable[[Tensor, Tensor], Tensor] = F.mse_loss) -> None:
        super().__init__(10)
        self.before, self.loss = before, loss

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(self.linear(self.before(batch[0])), batch[1])


class Shifted(nn.BatchNorm1d):
    """Sees other means and variances than it remembers."""

    def forward(self, value: Tensor) -> Tensor:
        return super().forward(3.0 * value + 1.0)


class Idle(pl.Callback):
    """Does nothing, but might."""


def test_no_trainer_is_asked_where_newton_steps_solve_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pl.Trainer, "fit", lambda *_: pytest.fail("a Trainer was asked"))
    for penalty in (L1(1.0), ElasticNet(1.0, l1_ratio=0.3), L1(1.0, factors={"linear.weight": 2.0})):
        frame = path(Linear(10), penalty, diabetes())
        assert all(frame["converged"]) and not any(frame["steps"]) and not any(frame["epochs"])
        assert frame["nonzeros"][0] == 0 < frame["nonzeros"][-1]
        assert frame["gradients"][1:] == [1, 1, 1]  # a parabola: each step is the last one
    frame = path(Linear(10, logistic=True), L1(1.0), tensors_of(2), folds=2)
    assert all(frame["converged"]) and all(error > 0 for error in frame["validation_error"])
    stability_selection(Linear(10), L1(1.0), diabetes(), subsamples=2, points=3, trainer=CPU)


def tensors_of(classes: int) -> TensorDataset:
    inputs, targets = diabetes().tensors
    return TensorDataset(inputs, (targets > targets.median()).double() if classes == 2 else targets)


LEFT: dict[str, Callable[[], tuple[Any, Penalty, dict[str, Any]]]] = {
    "dropout": lambda: (Other(nn.Dropout(0.2)), L1(1.0), {}),
    "batch norm": lambda: (Other(Shifted(10, affine=False, dtype=torch.float64)), L1(1.0), {}),
    "no parabola": lambda: (Other(nn.Identity(), F.l1_loss), L1(1.0), {}),
    "groups": lambda: (Linear(10), GroupLasso(1.0, groups="columns"), {}),
    "no prediction": lambda: (Linear(10), L1(1.0), {"predict": False}),
    "cold": lambda: (Linear(10), L1(1.0), {"warm_start": None}),
    "patience": lambda: (Linear(10), L1(1.0), {"validation": diabetes(), "patience": 1}),
    "callback": lambda: (Linear(10), L1(1.0), {"trainer": {**CPU, "callbacks": [Idle()]}}),
    "clipping": lambda: (Linear(10), L1(1.0), {"trainer": {**CPU, "gradient_clip_val": 0.1}}),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_is_left_to_a_trainer(case: str) -> None:
    module, penalty, options = LEFT[case]()
    assert all(path(module, penalty, diabetes(), **options)["steps"])


def test_many_weights_are_left_to_a_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newton, "LARGEST", 10)  # of eleven
    assert all(path(Linear(10), L1(1.0), diabetes())["steps"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["lasso", "elastic net", "factors"])
def test_against_scikit_learn(kind: str, dtype: torch.dtype) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    inputs, targets = diabetes().tensors
    factors = torch.linspace(0.5, 2.0, 10, dtype=torch.float64)
    ratio = 0.4 if kind == "elastic net" else 1.0
    penalty: Penalty = ElasticNet(1.0, l1_ratio=ratio)
    if kind == "factors":
        penalty = L1(1.0, factors={"linear.weight": factors})
    data = TensorDataset(inputs.to(dtype), targets.to(dtype))
    tolerance = 1e-5 if dtype == torch.float64 else 1e-4
    frame = path(Linear(10).to(dtype), penalty, data, points=12, tolerance=tolerance)
    scale = 1.0 / factors if kind == "factors" else torch.ones(10, dtype=torch.float64)
    for row in frame:
        model = linear_model.ElasticNet(alpha=row["strength"], l1_ratio=ratio, tol=1e-12, max_iter=10**6)
        expected = scale * torch.tensor(model.fit((inputs * scale).numpy(), targets.numpy().ravel()).coef_)
        found = torch.tensor(row["weights"], dtype=torch.float64)
        if row is not frame.rows[0]:  # at lambda_max both round, to either side
            assert torch.equal(found == 0, expected == 0)
        torch.testing.assert_close(found, expected, rtol=0.0, atol=10 * tolerance)


def test_two_classes_and_ten_against_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, digits = datasets.load_digits(return_X_y=True)
    pixels, digits = pixels[:300, 2:62:3] / 16, digits[:300]

    class Softmax(Linear):
        def __init__(self) -> None:
            super().__init__(1)
            self.linear = nn.Linear(20, 10, dtype=torch.float64)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return F.cross_entropy(self.linear(batch[0]), batch[1])

    ten = TensorDataset(torch.tensor(pixels), torch.tensor(digits))
    two = breast_cancer()
    for module, data in ((Linear(30, logistic=True), two), (Softmax(), ten)):
        frame = path(module, L1(1.0), data, points=3, ratio=0.2, tolerance=1e-6)
        assert all(frame["converged"]) and not any(frame["steps"]) and frame["nonzeros"][0] == 0
        inputs, targets = (tensor.numpy() for tensor in data.tensors)
        model = linear_model.LogisticRegression(
            **l1_logistic(),
            C=1 / (frame["strength"][-1] * len(targets)),
            solver="saga",
            tol=1e-9,
            max_iter=100_000,
        ).fit(inputs, targets.ravel())
        found, expected = torch.tensor(frame["weights"][-1]).double(), torch.tensor(model.coef_).flatten()
        assert torch.equal(found == 0, expected == 0)
        torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-4)


def test_a_residual_within_the_tolerance_is_not_enough_where_a_zero_is_close() -> None:
    """Under a curvature of 0.01, a weight of 0.01 changes slopes by 1e-4 only, and the tolerance is 1e-3."""
    module = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    bends, top = (
        torch.tensor([1.0, 0.01], dtype=torch.float64),
        torch.tensor([2.0, 0.0709], dtype=torch.float64),
    )

    def loss(module: Any, batch: Any) -> Tensor:
        return (0.5 * bends * module.weight.square() - top * module.weight).sum()

    flat = Flat(module, Term(L1(1.0), module), [[torch.zeros(1)]], loss)
    solver = Newton.of(flat, L1(1.0))
    assert solver is not None
    for strength, weight in [(0.0708, 0.01), (0.07091, 0.0), (0.0708, 0.01), (0.0709 * (1 + 1e-7), 0.0)]:
        found = solver.solve_(strength, 1e-3)
        assert found.residual < 1e-9
        assert module.weight[0, 1].item() == pytest.approx(weight, rel=1e-4, abs=0.0)


def test_a_loader_is_read_as_it_is_and_nothing_random_is_left_behind() -> None:
    loader, module = DataLoader(diabetes(), batch_size=100, shuffle=True), Linear(10)
    before = torch.get_rng_state()
    found, whole = (path(module, L1(1.0), data, strengths=[0.3, 0.1]) for data in (loader, diabetes()))
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(found["steps"]) and found["nonzeros"] == whole["nonzeros"]
    for ours, theirs in zip(found["weights"], whole["weights"], strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=0.0, atol=1e-4)


def test_lambda_max_is_that_of_the_fitted_intercept_to_rounding() -> None:
    """A line search sees a loss to half the digits, slopes to all: float32 was 1e-5 off."""
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, digits = datasets.load_digits(return_X_y=True)

    def top(dtype: torch.dtype) -> float:
        linear = nn.Linear(64, 10, dtype=dtype)
        data = TensorDataset(torch.tensor(pixels / 16, dtype=dtype), torch.tensor(digits))
        return lambda_max(linear, L1(1.0), data, loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]))

    x, y = torch.tensor(pixels / 16), F.one_hot(torch.tensor(digits)).double()
    expected = float(
        (x.T @ (y.mean(0) - y) / len(x)).abs().max()
    )  # an intercept alone has the classes' shares
    assert top(torch.float64) == pytest.approx(expected, rel=1e-12)
    assert top(torch.float32) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logistic", [False, True])
def test_targets_that_are_all_the_same_have_no_path(logistic: bool, dtype: torch.dtype) -> None:
    """An intercept fits them, to rounding."""
    inputs = diabetes().tensors[0].to(dtype)
    data = TensorDataset(inputs, torch.ones(len(inputs), 1, dtype=dtype))
    with pytest.raises(ValueError, match="lambda_max is 0: the selected weights do nothing for the loss"):
        path(Linear(10, logistic=logistic).to(dtype), L1(1.0), data)
