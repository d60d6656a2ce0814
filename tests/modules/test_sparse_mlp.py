from __future__ import annotations

from functools import partial
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import SparseMLP
from lightning_reg.prox.hierarchical import hierarchical_prox
from tests.support import QUIET


def objective(theta: Tensor, w: Tensor, v: Tensor, u: Tensor, threshold: float) -> Tensor:
    return (
        0.5 * (theta - v).square().sum() + 0.5 * (w - u).square().sum() + threshold * theta.norm(dim=0).sum()
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.1, 1.0, 5.0]), st.sampled_from([0.3, 1.0, 10.0]))
def test_prox_beats_feasible_points(seed: int, threshold: float, hierarchy: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    u = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    theta, w = hierarchical_prox(v, u, threshold, hierarchy)
    assert (w.abs().amax(0) <= hierarchy * theta.norm(dim=0) + 1e-12).all()
    best = objective(theta, w, v, u, threshold)
    for scale in (1e-3, 1e-2, 0.1, 1.0):
        for _ in range(25):
            other = theta + scale * torch.randn(2, 3, generator=generator, dtype=torch.float64)
            limit = hierarchy * other.norm(dim=0)
            for near in (u, w + scale * torch.randn(4, 3, generator=generator, dtype=torch.float64)):
                point = torch.maximum(torch.minimum(near, limit), -limit)
                assert best <= objective(other, point, v, u, threshold) + 1e-12
        shrunk = theta * (1 - min(scale, 0.5))
        limit = hierarchy * shrunk.norm(dim=0)
        point = torch.maximum(torch.minimum(u, limit), -limit)
        assert best <= objective(shrunk, point, v, u, threshold) + 1e-12


def split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    x, y = load_breast_cancer(return_X_y=True)
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    return train_test_split(x, y, test_size=0.3, random_state=0, stratify=y)


def fitted(epochs: int, strength: Any, **options: Any) -> SparseMLP:
    pl.seed_everything(0, verbose=False)
    x, _, y, _ = split()
    module = SparseMLP(30, 2, (32,), strength=strength, metrics={}, **options)
    dataset = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    trainer = pl.Trainer(**{**QUIET, "max_epochs": epochs})
    trainer.fit(module, DataLoader(dataset, batch_size=64, shuffle=True))
    return module


@pytest.mark.slow
def test_it_selects_features_and_keeps_the_hierarchy() -> None:
    module = fitted(20, 10.0)
    features = module.selected_features()
    assert 0 < len(features) < 30
    dropped = [j for j in range(30) if j not in features]
    assert (module.first.weight[:, dropped] == 0).all()
    limit = module.hierarchy * module.skip.weight.norm(dim=0)
    assert (module.first.weight.abs().amax(0) <= limit * (1 + 1e-5)).all()
    _, x_test, _, y_test = split()
    accuracy = (module.predict(torch.from_numpy(x_test)).argmax(1).numpy() == y_test).mean()
    assert accuracy > 0.9


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="task='ranking'"):
        SparseMLP(3, 2, strength=0.1, task="ranking")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no layer"):
        SparseMLP(3, 2, (), strength=0.1)
    with pytest.raises(ValueError, match="hierarchy=0"):
        SparseMLP(3, 2, strength=0.1, hierarchy=0.0)
    with pytest.raises(ValueError, match="use SGD"):
        fitted(1, 0.1, optimizer=partial(torch.optim.Adam, lr=0.1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_against_the_lassonet_package_at_equal_numbers_of_features() -> None:
    lassonet = pytest.importorskip("lassonet")
    x, x_test, y, y_test = split()
    torch.manual_seed(0)
    theirs = lassonet.LassoNetClassifier(
        hidden_dims=(32,), M=10, verbose=0, random_state=0, path_multiplier=1.02
    )
    errors: dict[int, float] = {}
    for item in theirs.path(x, y, return_state_dicts=True):
        theirs.load(item.state_dict)
        errors.setdefault(int(item.selected.sum()), float((theirs.predict(x_test) != y_test).mean()))
    compared = 0
    print("\nstrength  features  ours    lassonet")
    for strength in (4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 14.0, 16.0):
        module = fitted(60, strength)
        features = len(module.selected_features())
        error = float((module.predict(torch.from_numpy(x_test)).argmax(1).numpy() != y_test).mean())
        print(f"{strength:8.1f}  {features:8d}  {error:.4f}  {errors.get(features, float('nan')):.4f}")
        if features in errors and 2 <= features < 30:
            mean = (error + errors[features]) / 2
            noise = 2 * np.sqrt(2 * mean * (1 - mean) / len(y_test))  # two standard errors of a difference
            assert error - errors[features] <= noise, features
            compared += 1
    assert compared >= 4


def test_an_epoch_shorter_than_the_logging_interval_has_a_number_of_features() -> None:
    module = SparseMLP(3, 1, (4,), strength=0.0, task="regression")
    trainer = pl.Trainer(**QUIET, max_epochs=1, log_every_n_steps=50)
    trainer.fit(module, DataLoader(TensorDataset(torch.randn(8, 3), torch.randn(8, 1)), batch_size=4))
    assert trainer.callback_metrics["features"] == 3
