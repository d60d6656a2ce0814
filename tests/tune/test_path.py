"""The path against scikit-learn's, what warm starts save, and paths that were stopped."""

from __future__ import annotations

import csv
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_reg import L1
from lightning_reg.tune import PathFrame, lambda_max, regularization_path
from tests.support import Net, data
from tests.tune.problems import Linear, breast_cancer, diabetes

CPU = {"accelerator": "cpu"}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def path(warm_start: Any = "down") -> PathFrame:
    return regularization_path(
        Linear(10),
        L1(1.0),
        diabetes(),
        warm_start=warm_start,
        tolerance=1e-5,
        max_epochs=5000,
        trainer=CPU,
    )


def compare(frame: PathFrame, reference: Any) -> None:
    assert len(frame) == 30 and all(frame["converged"])
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
    compare(path(), lasso())


@pytest.mark.slow
def test_a_warm_start_takes_a_third_of_the_steps_at_most() -> None:
    warm, cold = path(), path(None)
    compare(cold, lasso())
    assert sum(warm["steps"]) <= sum(cold["steps"]) / 3, (sum(warm["steps"]), sum(cold["steps"]))


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
def test_breast_cancer_against_l1_logistic() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    warm = breast_cancer_path(1e-8)  # its slowest direction: residual times 1e3 and more
    inputs, targets = (tensor.numpy() for tensor in breast_cancer().tensors)
    reference = []
    top, *below = warm["strength"]
    for strength in [top * (1 + 1e-9), *below]:  # at lambda_max both round, to either side
        model = linear_model.LogisticRegression(
            l1_ratio=1.0,
            C=1 / (strength * len(targets)),
            solver="saga",  # the one that leaves the intercept alone
            tol=1e-11,
            max_iter=100_000,
        ).fit(inputs, targets.ravel())
        reference.append(model.coef_[0])
    compare(warm, reference)


@pytest.mark.slow
def test_breast_cancer_warm_starts_take_half_the_steps() -> None:
    # not the third that diabetes takes: the path curves between points, and the slowest direction needs
    # hundreds of steps for what the line through two points is off
    warm, cold = breast_cancer_path(), breast_cancer_path(warm_start=None)
    assert all(warm["converged"]) and all(cold["converged"])
    assert sum(warm["steps"]) <= sum(cold["steps"]) / 2, (sum(warm["steps"]), sum(cold["steps"]))


class Stopped(Exception):
    """Raised in the place of a killed process."""


def short(directory: Path | None = None, **options: Any) -> PathFrame:
    return regularization_path(
        Net(), L1(1.0), data(), batch_size=16, max_epochs=2, directory=directory, trainer=CPU, **options
    )


def test_stopped_at_point_12_of_30_only_the_missing_points_run(tmp_path: Path) -> None:
    done: list[Any] = []

    def stop(row: Any) -> None:
        done.append(row)
        if len(done) == 12:
            raise Stopped

    with pytest.raises(Stopped):
        short(tmp_path, on_point=stop)
    assert len(list(tmp_path.glob("path-*.pt"))) == 12
    times = {file: file.stat().st_mtime_ns for file in tmp_path.glob("path-*.pt")}
    resumed = short(tmp_path)
    assert all(file.stat().st_mtime_ns == time for file, time in times.items())
    assert len(list(tmp_path.glob("path-*.pt"))) == 30
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


def test_folds_against_a_cross_validation_by_hand() -> None:
    dataset, strengths = diabetes(), [0.3, 0.1, 0.03]
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
