"""Stability selection against a loop of scikit-learn's lasso, and what it keeps."""

from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import L1, GroupLasso
from lightning_reg.tune import Stability, stability_selection
from lightning_reg.tune._folds import halves
from tests.tune.problems import Linear

CPU: dict[str, Any] = {"accelerator": "cpu"}


def noisy(samples: int, features: int) -> tuple[Tensor, Tensor]:
    """Features of which the first two count."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, features, generator=generator, dtype=torch.float64)
    noise = torch.randn(samples, generator=generator, dtype=torch.float64)
    return inputs, 2.0 * inputs[:, 0] - inputs[:, 1] + noise + 3.0


def problem(samples: int = 40, features: int = 6) -> TensorDataset:
    inputs, targets = noisy(samples, features)
    return TensorDataset(inputs, targets.view(-1, 1))


def by_hand(samples: int, features: int, strengths: list[float], count: int) -> tuple[Tensor, list[float]]:
    """Frequencies and the mean sizes of the unions, of scikit-learn's lasso on the same halves."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    inputs, targets = (tensor.numpy() for tensor in noisy(samples, features))
    generator = torch.Generator().manual_seed(0)
    times = torch.zeros(len(strengths), features)
    sizes = [0.0] * len(strengths)
    for _ in range(count):
        half = torch.randperm(samples, generator=generator)[: samples // 2].numpy()
        seen: set[int] = set()
        for row, strength in enumerate(strengths):
            model = linear_model.Lasso(strength, tol=1e-10, max_iter=10**5).fit(inputs[half], targets[half])
            support = model.coef_.nonzero()[0].tolist()
            times[row, support] += 1
            seen |= set(support)
            sizes[row] += len(seen) / count
    return times / count, sizes


def selection(samples: int = 40, features: int = 6, **options: Any) -> Stability:
    how: Any = {"strengths": [1.0, 0.3], "subsamples": 3, "tolerance": 1e-3, "trainer": CPU} | options
    return stability_selection(
        Linear(features, lr=0.3 if features < 10 else 0.05, momentum=0.3),
        how.pop("penalty", L1(1.0)),
        problem(samples, features),
        **how,
    )


def check(samples: int, features: int, strengths: list[float], count: int) -> Stability:
    found = selection(samples, features, strengths=strengths[::-1], subsamples=count)
    frequencies, sizes = by_hand(samples, features, strengths, count)
    assert found.strengths == strengths and found.subsamples == count
    torch.testing.assert_close(found.frequencies, frequencies)
    assert found.selected == pytest.approx(sizes)
    # the bound of the paper, written out
    assert found.bound(0.9) == pytest.approx(sizes[-1] ** 2 / (2 * 0.9 - 1) / features)
    assert found.bound(0.6, strength=strengths[0]) == pytest.approx(sizes[0] ** 2 / 0.2 / features)
    return found


def test_frequencies_are_those_of_a_loop_of_the_lasso() -> None:
    found = check(40, 6, [1.0, 0.3], 4)
    assert 0 < found.frequencies[1, 2:].max() < 1  # noise is selected, and not always


@pytest.mark.slow
def test_it_sorts_out_a_hundred_features_of_noise() -> None:
    found = check(100, 100, [2.0 * 0.7**i for i in range(5)], 10)
    assert list(found.stable(0.75, false_discoveries=1.0)) == ["linear.weight[0, 0]", "linear.weight[0, 1]"]


def made() -> Stability:
    table = torch.tensor([[0.8, 0.0, 0.2, 0.0], [1.0, 0.7, 0.1, 0.1], [1.0, 1.0, 0.8, 0.7]])
    return Stability([1.0, 0.5, 0.1], ["a", "b", "c", "d"], table, [1.0, 1.9, 3.5], 10)


def test_the_path_ends_where_the_bound_is_reached() -> None:
    found = made()
    assert found.bound(0.75, strength=0.5) == pytest.approx(1.9**2 / (0.5 * 4))
    assert found.stable(0.75, false_discoveries=1.0) == pytest.approx({"a": 0.8})
    assert found.stable(0.7, false_discoveries=10.0) == pytest.approx(
        {"a": 1.0, "b": 1.0, "c": 0.8, "d": 0.7}
    )
    assert found.stable(0.7, false_discoveries=2.3) == pytest.approx({"a": 1.0, "b": 0.7})
    text = str(found)
    assert "1 of 4 are stable" in text and "Expect at most 0.5 of them to be false" in text
    with pytest.raises(ValueError, match="a subsample selects 1 of 4 at the largest strength, too many"):
        found.stable(false_discoveries=0.1)
    too_much = Stability([1.0], ["a", "b"], torch.ones(1, 2), [2.0], 10)
    assert str(too_much).startswith("a subsample selects 2 of 2 at the largest strength, too many")
    with pytest.raises(ValueError, match=r"threshold=0\.5 is out of range"):
        found.bound(0.5)
    with pytest.raises(ValueError, match="is above the path, which begins at 1"):
        found.bound(strength=2.0)


def test_csv_and_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    made().to_csv(tmp_path / "stability.csv")
    with open(tmp_path / "stability.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["unit"] for line in lines] == ["a", "b", "c", "d"] and lines[1]["0.5"] == "0.7"
    (axes,) = made().plot().axes
    assert axes.get_legend().get_texts()[0].get_text() == "a"
    assert len([line for line in axes.lines if len(line.get_xdata()) == 3]) == 4
    (axes,) = made().plot(false_discoveries=0.1).axes  # the first strength selects more
    assert axes.get_legend().get_texts()[0].get_text() == "threshold 0.75"


def test_it_goes_on_from_what_is_kept_and_takes_more(tmp_path: Path, monkeypatch: Any) -> None:
    class Stop(pl.Callback):
        fits = 0

        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            Stop.fits += 1
            if Stop.fits == 4:  # in the second subsample
                raise KeyboardInterrupt

    done: list[int] = []
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        selection(directory=tmp_path, trainer=CPU | {"callbacks": [Stop()]}, on_subsample=done.append)
    assert done == [0]
    fits = Stop.fits = 100
    resumed = selection(directory=tmp_path, trainer=CPU | {"callbacks": [Stop()]})
    assert Stop.fits - fits == 4  # two subsamples of two points
    whole = selection(map=ThreadPoolExecutor(1).map)
    assert torch.equal(resumed.frequencies, whole.frequencies) and resumed.selected == whole.selected
    selection(directory=tmp_path, subsamples=4, trainer=CPU | {"callbacks": [Stop()]})
    assert Stop.fits - fits == 6
    with pytest.raises(ValueError, match="holds another selection: strengths differ"):
        selection(directory=tmp_path, strengths=[0.5])


def test_groups_and_names() -> None:
    pairs = GroupLasso(1.0, groups=lambda *_: torch.arange(6).div(2, rounding_mode="floor").view(1, 6))
    found = selection(penalty=pairs, strengths=[0.5], names=["signal", "noise", "more noise"])
    assert found.frequencies.shape == (1, 3) and found.stable(false_discoveries=9.0)["signal"] == 1.0
    with pytest.raises(ValueError, match="names= has 2 names for 3 weights or groups"):
        selection(penalty=pairs, strengths=[0.5], names=["signal", "noise"])


def test_halves_of_a_loader_have_its_batches() -> None:
    parts = halves(DataLoader(problem(), batch_size=10, shuffle=True), 2, seed=0)
    assert [[len(batch[0]) for batch in part] for part in parts] == [[10, 10]] * 2
    first, second = (set(part.dataset.tensors[0][:, 0].tolist()) for part in parts)
    assert first != second and len(first) == 20


def test_strengths_of_its_own_begin_above_lambda_max() -> None:
    found = selection(strengths=None, points=3, ratio=0.5, subsamples=2)
    inputs, targets = noisy(40, 6)
    top = (inputs.T @ (targets - targets.mean()) / 40).abs().max()
    above = 2**0.5 * float(top) * (1.0 + 1e-6)  # so that rounding leaves no weight in at the first
    assert found.strengths == pytest.approx([above * 0.5 ** (i / 2) for i in range(3)], rel=1e-7)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"subsamples": 1}, "subsamples=1 is too few"),
        ({"samples": 3}, "cannot halve 3 samples"),
        ({"strengths": [0.0]}, "not all finite and above 0"),
        ({"warm_start": "sideways"}, "warm_start='sideways' is unknown"),
    ],
)
def test_what_selects_nothing_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        selection(**options)
    with pytest.raises(ValueError, match="stability_selection needs a data set to divide, not list"):
        stability_selection(Linear(6), L1(1.0), [[torch.zeros(2, 6), torch.zeros(2, 1)]])
