from __future__ import annotations

import copy
import itertools
from functools import partial
from pathlib import Path
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

from lightning_reg import Cosine, SparseMLP
from lightning_reg.prox.hierarchical import hierarchical_prox, hold_features_
from lightning_reg.select.parameters import named_parameters
from tests.support import QUIET, STRICT, batches

PAIR = ("skip.weight", "first.weight")


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_averages_of_features_step_by_step(dtype: torch.dtype) -> None:
    """The rule feature by feature: it stays at zero while ‖s‖₂ + M‖S‖₁ ≤ 1, and the first step is plain."""
    generator = torch.Generator().manual_seed(4)
    skip, hidden = (torch.zeros(rows, 12, dtype=dtype) for rows in (2, 3))
    s, big = torch.zeros_like(skip), torch.zeros_like(hidden)
    by_hand = torch.zeros(5, 12, dtype=dtype)
    seen: set[tuple[bool, bool]] = set()
    for t in range(1, 30):
        share, moves = 4.0 / (t + 3), 0.4 * torch.randn(5, 12, generator=generator, dtype=dtype)
        skip, hidden = skip + moves[:2] * 0.02, hidden + moves[2:] * 0.02
        by_hand = (1 - share) * by_hand + share * torch.cat([skip, hidden]) / 0.02
        plain = hierarchical_prox(skip, hidden, 0.02, 0.5)
        hold_features_((skip, hidden), (s, big), 0.02, 0.5, share)
        skip, hidden = hierarchical_prox(skip, hidden, 0.02, 0.5)
        inside = by_hand[:2].norm(dim=0) + 0.5 * by_hand[2:].abs().sum(0) <= 1
        assert torch.equal((skip == 0).all(0), inside | (plain[0] == 0).all(0))
        torch.testing.assert_close(skip, torch.where(inside, 0.0, plain[0]))
        torch.testing.assert_close(hidden, torch.where(inside, 0.0, plain[1]))
        by_hand -= torch.cat(hierarchical_prox(by_hand[:2], by_hand[2:], 1.0, 0.5))
        torch.testing.assert_close(torch.cat([s, big]), by_hand)
        seen.update(zip(inside.tolist(), (plain[0] == 0).all(0).tolist(), strict=True))
    assert {(True, False), (False, False)} <= seen


def test_a_killed_run_goes_on_with_its_averages(tmp_path: Path) -> None:
    ends = []
    for first in (None, 1):
        checkpoint = None
        for epochs in [2] if first is None else [first, 2]:
            torch.manual_seed(0)
            module = SparseMLP(10, 1, (4,), strength=0.5, hierarchy=1.0, task="regression", lr_schedule=None)
            trainer = pl.Trainer(**QUIET, max_epochs=epochs)
            trainer.fit(module, batches(), ckpt_path=checkpoint, **STRICT)
            checkpoint = tmp_path / f"{epochs}.ckpt"
            trainer.save_checkpoint(checkpoint)
        state = trainer.optimizers[0].state[module.first.weight]
        assert state["lightning_reg/0 feature_hierarchy/step"] == 16
        ends.append([module.skip.weight, module.first.weight, state["lightning_reg/0 feature_hierarchy"]])
    assert 0 < len(module.selected_features()) < 10
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def in_batches(batch: int, dual_averaging: bool) -> tuple[int, float, int]:
    """Four of 20 features count; return how many are used, of the zeros those justified, and the changes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 20, generator=generator)
    y = x[:, :1] + x[:, 1:2].abs() + x[:, 2:3] * x[:, 3:4] + 0.5 * torch.randn(600, 1, generator=generator)
    y, strength, hierarchy = y - y.mean(), 3.0, 3.0
    torch.manual_seed(0)
    module = SparseMLP(
        20, 1, (16,), strength=strength, hierarchy=hierarchy, task="regression", metrics={},
        dual_averaging=dual_averaging, lr_schedule=Cosine(1.0, 0.0),
    )  # fmt: skip
    used: list[Tensor] = []

    class Look(pl.Callback):
        def on_train_batch_end(self, *given: Any) -> None:
            used.append((module.skip.weight != 0).any(0))

    trainer = pl.Trainer(**QUIET, max_epochs=12 * batch // 16, callbacks=[Look()])
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=batch, shuffle=True))
    module.zero_grad()
    (module(x) - y).square().mean().backward()
    slopes = module.skip.weight.grad.norm(dim=0) + hierarchy * module.first.weight.grad.abs().sum(0)
    late = used[-3 * -(-600 // batch) :]
    changes = sum(int((a != b).sum()) for a, b in itertools.pairwise(late))
    justified = float((slopes[~used[-1]] <= 1.05 * strength).float().mean())
    return int(used[-1].sum()), justified, changes


@pytest.mark.slow
@pytest.mark.parametrize("batch", [16, 64])
def test_features_at_zero_in_batches_are_steady_and_justified(batch: int) -> None:
    features, justified, changes = in_batches(batch, True)
    print(f"{features} features, {justified:.0%} justified, {changes} changes")
    assert 3 <= features <= 8
    assert justified == 1.0
    assert changes <= 25  # with a plain step in batches of 16: 18 features, and 168 changes


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


def test_a_clipped_step_is_as_long_as_the_gradient_makes_it() -> None:
    """λ means λ beside clipping by norm: the operator goes as far as the clipped step does."""
    module = SparseMLP(
        10, 1, (4,), strength=0.5, hierarchy=1.0, task="regression", metrics={}, lr_schedule=None,
        dual_averaging=False, optimizer=partial(torch.optim.SGD, lr=0.1),
    )  # fmt: skip
    by_hand, data = copy.deepcopy(module), batches()
    pl.Trainer(**QUIET, max_epochs=1, gradient_clip_val=0.5).fit(module, data)
    factors = []
    for x, y in data:
        by_hand.zero_grad()
        (by_hand(x) - y).square().sum(1).mean().backward()
        norm = float(torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 0.5))
        factors.append(min(1.0, 0.5 / norm))
        with torch.no_grad():
            for p in by_hand.parameters():
                p -= 0.1 * p.grad
            pair = by_hand.skip.weight, by_hand.first.weight
            for p, new in zip(pair, hierarchical_prox(*pair, 0.1 * factors[-1] * 0.5, 1.0), strict=True):
                p.copy_(new)
    assert min(factors) < 0.5
    for (name, mine), theirs in zip(module.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6, msg=name)


def test_its_value_and_gradient_are_those_of_the_norms_of_the_features() -> None:
    """The rest is a constraint, which adds nothing to a value; a feature that is out has a slope of 0."""
    module = SparseMLP(6, 2, (4,), strength=0.3)
    with torch.no_grad():
        module.skip.weight[:, 1] = 0.0
    expected = 0.3 * module.skip.weight.square().sum(0).clamp(min=1e-30).sqrt().sum()
    torch.testing.assert_close(module.penalty(), expected)
    (slope,) = torch.autograd.grad(expected, module.skip.weight)
    bound = module.penalties[0].bind([s for s in named_parameters(module) if s.name in PAIR])
    torch.testing.assert_close(bound.gradient(module.skip.weight, 0.3), slope)
    assert not bound.gradient(module.first.weight, 0.3).any()


def test_an_average_of_it_leaves_out_the_features_that_it_does() -> None:
    averaging = getattr(pl.callbacks, "EMAWeightAveraging", None)
    if averaging is None:
        pytest.skip("Lightning 2.6 brought EMAWeightAveraging")
    found = []
    for callbacks in ([], [averaging(decay=0.9)]):
        torch.manual_seed(0)
        module = SparseMLP(10, 1, (4,), strength=0.5, hierarchy=1.0, task="regression", metrics={})
        pl.Trainer(**QUIET, max_epochs=10, callbacks=callbacks).fit(module, batches())
        found.append(module.selected_features())
        assert (module.first.weight != 0).any(0).nonzero()[:, 0].tolist() == found[-1]
    assert found[0] == found[1] and 0 < len(found[0]) < 10


def test_another_strength_acts_from_the_next_step_on() -> None:
    torch.manual_seed(0)
    module = SparseMLP(10, 1, (4,), strength=0.0, task="regression", metrics={}, dual_averaging=False)

    class Raises(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *given: Any) -> None:
            if trainer.global_step == 4:
                assert len(module.selected_features()) == 10
                module.strength, module.hierarchy = 1e6, 2.0

    pl.Trainer(**QUIET, max_steps=6, callbacks=[Raises()]).fit(module, batches())
    assert (module.strength, module.hierarchy) == (1e6, 2.0)
    assert module.selected_features() == []
    with pytest.raises(ValueError, match="hierarchy=-1"):
        module.hierarchy = -1.0


def test_a_frozen_layer_is_refused_before_the_first_step() -> None:
    module = SparseMLP(10, 1, (4,), strength=0.1, task="regression")
    module.first.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter group trains both; freeze neither"):
        pl.Trainer(**QUIET, max_steps=1).fit(module, batches())


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
