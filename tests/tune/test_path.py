"""The path against scikit-learn's, what warm starts save, and paths that were stopped."""

from __future__ import annotations

import csv
import importlib.util
import os
import signal
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import L1, ElasticNet, GroupLasso
from lightning_reg.apply import Term
from lightning_reg.penalties import Penalty
from lightning_reg.tune import PathFrame, lambda_max, newton, regularization_path
from lightning_reg.tune import _path_point as path_point
from lightning_reg.tune._folds import split
from lightning_reg.tune._plateau import HALVINGS
from lightning_reg.tune._whole_data import PROGRESS, WAIT, WholeData
from tests.distributed.launch import Launch
from tests.support import Net, data, l1_logistic
from tests.tune.problems import Linear, breast_cancer, diabetes
from tests.turns import part_of, turn

CPU: dict[str, Any] = {"accelerator": "cpu"}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def by_a_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave linear problems to a Trainer, too, as those with too many weights are."""
    monkeypatch.setattr(newton, "LARGEST", 0)


@cache
def path(start: str = "down") -> PathFrame:
    return regularization_path(
        Linear(10),
        L1(1.0),
        diabetes(),
        path()["strength"][::3] if start == "cold" else None,
        warm_start=None if start == "cold" else "down",
        tolerance=1e-5,
        max_epochs=5000,
        trainer=CPU,
    )


@pytest.mark.slow
def test_up_from_points_that_have_not_converged_still_prunes() -> None:
    examples = data()
    strengths = [1e-3, 1e-2, 1e-1, 1.0]
    options: Any = {"batch_size": 8, "max_epochs": 40, "trainer": CPU}
    frame = regularization_path(
        lambda: Net(lambda p: torch.optim.Adam(p, lr=1e-2)),
        L1(1.0),
        examples,
        strengths,
        warm_start="up",
        **options,
    )
    assert not any(frame["converged"][1:])
    assert frame["nonzeros"][0] == 0 and frame["nonzeros"][-1] > 30


def compare(frame: PathFrame, reference: Any) -> None:
    assert len(frame) == len(reference) and all(frame["converged"])
    for row, expected in zip(frame, reference, strict=True):
        found, expected = torch.tensor(row["weights"], dtype=torch.float64), torch.tensor(expected)
        assert torch.equal(found != 0, expected != 0), (row["strength"], found, expected)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@cache
def lasso() -> Any:
    linear_model = pytest.importorskip("sklearn.linear_model")
    inputs, targets = (tensor.numpy() for tensor in diabetes().tensors)
    targets = targets.ravel() - targets.mean()
    strengths = path()["strength"]
    strengths = [strengths[0] * (1 + 1e-12), *strengths[1:]]  # at lambda_max both round, to either side
    return linear_model.lasso_path(inputs, targets, alphas=strengths, tol=1e-14, max_iter=10**6)[1].T


def test_diabetes_against_lasso_path() -> None:
    assert len(path()) == 30
    compare(path(), lasso())


#: Of a ten-point path in batches.
STRENGTHS = [0.5 * 0.67**i for i in range(10)]


@pytest.mark.parametrize(
    ("deviation", "strengths"),
    [
        (0, STRENGTHS[-2:]),
        pytest.param(0, STRENGTHS, marks=pytest.mark.slow),
        pytest.param(1, STRENGTHS, marks=pytest.mark.slow),  # as torch.std has it
    ],
    ids=["two", "ten", "ten, other scaling"],
)
@pytest.mark.usefixtures("by_a_trainer")
def test_in_batches_its_zeros_are_the_lassos(deviation: int, strengths: list[float]) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    inputs, targets = (tensor.numpy() for tensor in diabetes().tensors)
    inputs = inputs / inputs.std(0, ddof=deviation)
    targets = (targets - targets.mean()) / targets.std(ddof=deviation)
    path = linear_model.lasso_path(inputs, targets.ravel(), alphas=strengths, tol=1e-14, max_iter=10**6)[1].T
    for strength, weights in zip(strengths, path, strict=True):
        slopes = abs(inputs.T @ (inputs @ weights - targets.ravel())) / len(inputs)
        assert all(slopes[weights == 0] < 0.98 * strength)  # none is a matter of rounding
    examples = TensorDataset(torch.tensor(inputs), torch.tensor(targets))
    frame = regularization_path(
        Linear(10), L1(1.0), examples, strengths, batch_size=32, max_epochs=60, trainer=CPU
    )
    compare(frame, path)
    assert max(frame["epochs"]) < 60


@pytest.mark.parametrize("largest", [0, newton.LARGEST], ids=["by a trainer", "by Newton steps"])
def test_a_loader_that_drops_a_part_of_the_data_each_time_is_measured_on_all_of_it(
    largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of 32 of 442 samples leave out 26, others in each epoch."""
    monkeypatch.setattr(newton, "LARGEST", largest)
    linear_model = pytest.importorskip("sklearn.linear_model")
    inputs, targets = diabetes().tensors
    strengths = STRENGTHS[2:8:3]
    path = linear_model.lasso_path(
        inputs.numpy(),
        (targets - targets.mean()).ravel().numpy(),
        alphas=strengths,
        tol=1e-14,
        max_iter=10**6,
    )[1].T
    examples = TensorDataset(inputs, targets - targets.mean())
    loader = DataLoader(examples, batch_size=32, shuffle=True, drop_last=True)
    frame = regularization_path(Linear(10), L1(1.0), loader, strengths, max_epochs=30, trainer=CPU)
    compare(frame, path)
    assert all(frame["converged"])


def test_in_batches_the_residual_is_that_of_all_the_data() -> None:
    inputs, targets = diabetes().tensors
    targets = targets - targets.mean()
    module = Linear(10)
    module.linear.bias.requires_grad_(False)
    (row,) = regularization_path(
        module,
        L1(1.0),
        TensorDataset(inputs, targets),
        [0.1],
        predict=False,
        batch_size=128,
        max_epochs=6,
        trainer=CPU,
    )
    weights = torch.tensor(row["weights"], dtype=torch.float64)
    moved = weights - inputs.T @ (inputs @ weights - targets.ravel()) / len(inputs)
    expected = weights - moved.sign() * (moved.abs() - 0.1).clamp(min=0.0)
    assert row["residual"] == pytest.approx(float(expected.abs().max()), rel=1e-5)
    assert not row["converged"] and row["gradients"] == 7  # at the start and after each epoch


def test_the_rate_is_halved_where_noise_keeps_the_residual() -> None:
    module = Linear(1)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    whole = WholeData(module, Term(L1(1.0), module), [], lambda *_: torch.zeros(()), 1.0, 1e-4, None)
    for residual, rate in [
        (1.0, 1.0),
        *[(1.01 - PROGRESS, 1.0)] * (WAIT - 1),
        (1.01 - PROGRESS, 0.5),
        (0.99 - PROGRESS, 0.5),  # the wait begins anew
        *[(0.6, 0.5)] * (WAIT - 1),
        (0.6, 0.25),
    ]:
        whole.lowest = residual
        whole.slow_down_(optimizer)
        assert optimizer.param_groups[0]["lr"] == rate


def test_in_batches_a_network_stops_where_smaller_rates_bring_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(path_point, "HALVINGS", 2)
    still = Net(lambda p: torch.optim.SGD(p, lr=1e-9))  # a rate that moves nothing
    for batch_size, epochs in ((32, 1 + 2 * path_point.WAIT), (None, 20)):  # no noise in all of the data
        (row,) = regularization_path(
            still, L1(1.0), data(), [0.1], batch_size=batch_size, max_epochs=20, trainer=CPU
        )
        assert row["epochs"] == epochs and not row["converged"]


@pytest.mark.slow
def test_in_batches_a_network_that_has_stopped_is_as_good_as_one_that_went_on() -> None:
    class Scheduled(Net):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)]

    rows = []
    for kind in (Net, Scheduled):
        (row,) = regularization_path(
            lambda kind=kind: kind(lambda p: torch.optim.SGD(p, lr=0.1)),
            L1(1.0),
            data(),
            [0.1],
            batch_size=8,
            max_epochs=130,
            trainer=CPU,
        )
        rows.append(row)
    stopped, whole = rows
    assert 1 + HALVINGS * path_point.WAIT < stopped["epochs"] < whole["epochs"] == 130
    ours, theirs = (row["train_loss"] + 0.1 * row["norm"] for row in rows)
    assert ours <= 1.01 * theirs


@pytest.mark.slow
def test_upwards_it_ends_at_the_same_solutions() -> None:
    strengths = path()["strength"][::6]
    up = regularization_path(
        Linear(10), L1(1.0), diabetes(), strengths, warm_start="up", max_epochs=5000, trainer=CPU
    )
    for row, expected in zip(up, lasso()[::6], strict=True):
        expected = torch.tensor(expected)
        torch.testing.assert_close(
            torch.tensor(row["weights"], dtype=torch.float64), expected, rtol=0, atol=1e-4
        )


def breast_cancer_path(tolerance: float = 1e-6, **options: Any) -> PathFrame:
    return regularization_path(
        Linear(30, logistic=True, lr=0.5, momentum=0.9),
        L1(1.0),
        breast_cancer(),
        ratio=0.1,
        tolerance=tolerance,
        max_epochs=20_000,
        trainer=CPU,
        **options,
    )


@pytest.mark.slow
@pytest.mark.turns(2, 0)
def test_breast_cancer_against_l1_logistic() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    warm = breast_cancer_path(1e-8)  # its slowest direction: residual times 1e3 and more
    inputs, targets = (tensor.numpy() for tensor in breast_cancer().tensors)
    reference = []
    top, *below = warm["strength"]
    for strength in [top * (1 + 1e-9), *below]:  # at lambda_max both round, to either side
        model = linear_model.LogisticRegression(
            **l1_logistic(),
            C=1 / (strength * len(targets)),
            solver="saga",  # the one that leaves the intercept alone
            tol=1e-11,
            max_iter=100_000,
        ).fit(inputs, targets.ravel())
        reference.append(model.coef_[0])
    assert len(warm) == 30
    compare(warm, reference)


@pytest.mark.slow
@pytest.mark.usefixtures("by_a_trainer")
@pytest.mark.parametrize("problem", part_of(["diabetes", "breast cancer"], 2, turn()))
def test_a_warm_start_takes_a_third_of_the_steps_at_most(problem: str) -> None:
    # cold starts at some of the strengths are slow enough: more of them could only add to their sum
    if problem == "diabetes":
        warm = path("down, by a trainer")
        cold = path("cold")
        compare(cold, lasso()[::3])
    else:
        warm = breast_cancer_path(1e-4)
        cold = breast_cancer_path(1e-4, warm_start=None, strengths=warm["strength"][::2])
    assert len(warm) == 30 and all(warm["converged"]) and all(cold["converged"])
    assert not any(cold["gradients"])
    taken = sum(warm["steps"]) + sum(warm["gradients"])  # the predictor's count as well
    print(
        f"{problem}: {sum(warm['steps'])} steps and {sum(warm['gradients'])} gradients of 30 warm starts, "
        f"{sum(cold['steps'])} steps of {len(cold)} cold starts"
    )
    assert taken <= sum(cold["steps"]) / 3


PENALTIES: list[Penalty] = [
    L1(1.0),
    ElasticNet(1.0, l1_ratio=0.5),
    GroupLasso(1.0, groups=lambda *_: torch.arange(10).div(2, rounding_mode="floor").view(1, 10)),
]


#: Every other one has each penalty and both directions.
GRID = [(p, way) for i, p in enumerate(PENALTIES) for way in (["down", "up"], ["up", "down"])[i % 2]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("penalty", "warm_start"),
    part_of(GRID, 2, turn()),
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
@pytest.mark.usefixtures("by_a_trainer")
def test_the_predictor_leaves_the_optimizer_little_to_do(penalty: Penalty, warm_start: Any) -> None:
    strengths = [0.4 * 0.7**i for i in range(5)]
    options: Any = {"max_epochs": 5000, "tolerance": 1e-5, "trainer": CPU, "warm_start": warm_start}
    found = regularization_path(Linear(10), penalty, diabetes(), strengths, **options)
    plain = regularization_path(Linear(10), penalty, diabetes(), strengths, predict=False, **options)
    assert found["nonzeros"] == plain["nonzeros"] and found["groups"] == plain["groups"]
    for ours, theirs in zip(found["weights"], plain["weights"], strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=0, atol=1e-4)
    after = slice(1, None) if warm_start == "down" else slice(None, -1)
    taken = sum(found["steps"][after]) + sum(found["gradients"][after])
    assert all(found["converged"])
    # groups on the way up leave it a little more: 0.52 of the steps, measured
    share = 0.55 if (warm_start, type(penalty)) == ("up", GroupLasso) else 0.5
    assert taken < share * sum(plain["steps"][after])


@pytest.mark.usefixtures("by_a_trainer")
def test_a_newton_step_of_the_predictor_takes_no_more_gradients_than_the_point_may_take_epochs() -> None:
    frame = regularization_path(Linear(10), L1(1.0), diabetes(), points=4, max_epochs=2, trainer=CPU)
    assert 8 <= max(frame["gradients"]) <= 4 + 3 * (2 + 2)  # of residuals; of three steps, with what enters


def test_patience_ends_a_point_and_goes_back_to_its_best_epoch() -> None:
    seen: list[Any] = []

    class Watch(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            seen[-1].append({name: value.clone() for name, value in pl_module.state_dict().items()})

        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            seen.append([])

    train, held_out = data(20), data(64)
    train = TensorDataset(
        train.tensors[0], train.tensors[1] + torch.randn(20, 1, generator=torch.manual_seed(0))
    )
    frame = regularization_path(
        Net(lambda p: torch.optim.Adam(p, lr=0.02)),
        L1(1.0),
        train,
        [1e-3, 1e-4],
        validation=held_out,
        patience=5,
        max_epochs=400,
        trainer=CPU | {"callbacks": [Watch()]},
    )
    module = Net()
    for row, epochs in zip(frame, seen, strict=True):
        losses = []
        for weights in epochs:
            module.load_state_dict(weights)
            with torch.no_grad():
                losses.append(float(module.training_step(list(held_out.tensors), 0)))
        best = losses.index(min(losses))
        assert row["best_epoch"] == best + 1 and row["validation_loss"] == pytest.approx(
            losses[best], rel=1e-6
        )
        # it went on for five epochs more and no further
        assert row["epochs"] == len(losses) == best + 1 + 5
    assert frame["epochs"][0] < 400
    with pytest.raises(ValueError, match="patience=3 stops a point by its validation loss"):
        short(patience=3)


def test_folds_of_a_loader_have_its_batches() -> None:
    loader = DataLoader(data(), batch_size=16, shuffle=True)
    pairs = split(loader, 4, seed=0)
    assert [(len(rest), len(part)) for rest, part in pairs] == [(3, 1)] * 4
    held_out = torch.cat([batch[0] for _, part in pairs for batch in part])
    assert sorted(held_out.flatten().tolist()) == sorted(data().tensors[0].flatten().tolist())
    for rest, part in pairs:
        inputs = torch.cat([batch[0] for batch in rest])
        ((first, *_),) = part
        assert len(inputs) == 48 and not (inputs[:, None] == first).all(-1).any()


def short(directory: Path | str | None = None, **options: Any) -> PathFrame:
    return regularization_path(
        Net(),
        L1(1.0),
        data(),
        batch_size=16,
        max_epochs=2,
        directory=directory,
        **{"trainer": CPU, **options},
    )


class KillInPoint13(pl.Callback):
    fits = 0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        type(self).fits += trainer.current_epoch == 0
        if self.fits == 13:
            os.kill(os.getpid(), signal.SIGKILL)


def main(directory: str) -> None:
    torch.set_num_threads(1)
    short(directory, trainer=CPU | {"callbacks": [KillInPoint13()]})


@pytest.mark.slow
def test_killed_in_point_13_of_30_only_the_missing_points_run(tmp_path: Path) -> None:
    launch = Launch("tests.tune.test_path", [str(tmp_path)], 1, tmp_path, "killed")
    assert launch.wait(300) == [-signal.SIGKILL], launch.logs[0].read_text()
    assert len(list(tmp_path.glob("path-*.pt"))) == 12
    times = {file: file.stat().st_mtime_ns for file in tmp_path.glob("path-*.pt")}
    fits: list[Any] = []

    class Count(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            fits.append(trainer)

    resumed = short(tmp_path, trainer=CPU | {"callbacks": [Count()]})
    assert len(fits) == 18
    assert all(file.stat().st_mtime_ns == time for file, time in times.items())
    assert resumed == short()


def test_a_directory_of_another_path_is_refused(tmp_path: Path) -> None:
    short(tmp_path, strengths=[0.1, 0.2])
    with pytest.raises(ValueError, match="holds another path: strengths differ"):
        short(tmp_path, strengths=[0.1, 0.3])


def test_it_leaves_module_and_generator_as_they_were() -> None:
    module = Net()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    generator = torch.get_rng_state()
    regularization_path(module, L1(1.0), data(), [0.1, 0.01], max_epochs=2, batch_size=16, trainer=CPU)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_factory_serves_as_well_as_a_module() -> None:
    torch.manual_seed(0)
    options: Any = {"strengths": [0.1, 0.01], "max_epochs": 2, "trainer": CPU}
    # Net seeds its own weights, so that both begin alike
    assert regularization_path(Net, L1(1.0), data(), **options) == regularization_path(
        Net(), L1(1.0), data(), **options
    )


@pytest.mark.slow
def test_folds_against_a_cross_validation_by_hand() -> None:
    dataset, strengths = diabetes(), [0.3, 0.1]
    frame = regularization_path(
        Linear(10), L1(1.0), dataset, strengths, folds=3, max_epochs=5000, trainer=CPU
    )
    linear_model = pytest.importorskip("sklearn.linear_model")
    inputs, targets = (tensor.numpy() for tensor in dataset.tensors)
    parts = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tensor_split(3)
    for row in frame:
        losses = []
        for k, part in enumerate(parts):
            rest = torch.cat([*parts[:k], *parts[k + 1 :]]).numpy()
            model = linear_model.Lasso(alpha=row["strength"], tol=1e-12, max_iter=10**6)
            model.fit(inputs[rest], targets[rest].ravel())
            error = torch.tensor(model.predict(inputs[part.numpy()]) - targets[part.numpy()].ravel())
            losses.append(0.5 * float(error.square().mean()))
        found = torch.tensor(losses)
        assert row["validation_loss"] == pytest.approx(float(found.mean()), rel=1e-4)
        assert row["validation_error"] == pytest.approx(float(found.std() / 3**0.5), rel=1e-3)


def rows() -> PathFrame:
    values = [(1.0, 9.0), (0.3, 1.3), (0.1, 1.1), (0.03, 1.0), (0.01, 1.4)]
    return PathFrame(
        [
            {
                "strength": s,
                "validation_loss": v,
                "validation_error": 0.2,
                "nonzeros": i,
                "layers": {"w": 1.0},
            }
            for i, (s, v) in enumerate(values)
        ]
    )


def test_the_one_standard_error_rule() -> None:
    assert rows().best()["strength"] == 0.03
    assert rows().best("one_se")["strength"] == 0.1
    with pytest.raises(ValueError, match="folds=5"):
        PathFrame([{"strength": 1.0, "validation_loss": 1.0}]).best("one_se")
    with pytest.raises(ValueError, match="validation="):
        PathFrame([{"strength": 1.0}]).best()


def test_csv(tmp_path: Path) -> None:
    rows().to_csv(tmp_path / "path.csv")
    with open(tmp_path / "path.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["strength"]) for line in lines] == rows()["strength"]
    assert "layers" not in lines[0] and lines[0]["metric"] == ""


@pytest.mark.skipif(importlib.util.find_spec("pandas") is not None, reason="pandas is installed")
def test_without_pandas_the_sentence_says_so() -> None:
    with pytest.raises(ModuleNotFoundError, match="pip install pandas"):
        rows().to_pandas()


def test_the_plot_shows_weights_where_there_are_few_and_layers_elsewhere() -> None:
    pytest.importorskip("matplotlib")
    left, right = path().plot().axes
    lines = [line for line in left.lines if len(line.get_xdata()) == 30]
    assert len(lines) == 10 and left.get_xscale() == "log"
    assert right.get_ylabel() == "train loss"
    left, right = rows().plot().axes
    assert left.get_legend() is not None and right.get_ylabel() == "validation loss"


def test_the_metric_sees_the_validation_data() -> None:
    def count(module: Any, batches: Any) -> float:
        return float(sum(len(batch[0]) for batch in batches))

    frame = regularization_path(
        Net(), L1(1.0), data(), [0.1, 0.01], validation=data(24), max_epochs=1, metric=count, trainer=CPU
    )
    assert frame["metric"] == [24.0, 24.0]


def test_what_makes_no_path_is_refused() -> None:
    with pytest.raises(ValueError, match="warm_start='sideways' is unknown"):
        short(warm_start="sideways")
    with pytest.raises(ValueError, match="not all finite and above 0"):
        short(strengths=[0.1, 0.0])
    with pytest.raises(ValueError, match="folds=1 is out of range"):
        short(folds=1)


def test_at_lambda_max_nothing_is_left_and_below_it_something_is() -> None:
    top = lambda_max(Linear(10), L1(1.0), diabetes())
    frame = regularization_path(
        Linear(10), L1(1.0), diabetes(), [top, top * 0.999], max_epochs=5000, trainer=CPU
    )
    assert frame["nonzeros"][0] == 0 < frame["nonzeros"][1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_is_measured_in_the_precision_of_training(dtype: torch.dtype) -> None:
    inputs, targets = (tensor.to(dtype) for tensor in diabetes().tensors)

    def error(module: Any, batches: Any) -> float:
        return sum(float((module.linear(x) - y).detach().abs().mean()) for x, y in batches)

    def frame(module: Linear, tensors: TensorDataset, **trainer: Any) -> list[Any]:
        options: Any = {"points": 3, "ratio": 0.3, "max_epochs": 20, "metric": error}
        return list(
            regularization_path(
                module, L1(1.0), tensors, validation=tensors, trainer=CPU | trainer, **options
            )
        )

    single = frame(Linear(10).float(), TensorDataset(inputs, targets), precision="64-true")
    assert single == frame(Linear(10), TensorDataset(inputs.double(), targets.double()))


def test_a_solution_that_is_put_back_is_not_taken_for_an_average(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights before the last step solve it, and those after it have other zeros."""
    monkeypatch.setattr(path_point, "residual", lambda *_: 0.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*averag")
        (row,) = regularization_path(Net(), L1(1.0), data(), [100.0], dual_averaging=False, trainer=CPU)
    assert row["converged"] and row["steps"] == 1 and row["nonzeros"] == 55
