"""Optuna and Ray, where they are installed."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_reg import L1
from lightning_reg.callbacks import L2PenaltyCallback
from lightning_reg.tune import ray_map, regularization_path, strength_study
from tests.support import QUIET, Net, data
from tests.tune.problems import Linear, diabetes
from tests.turns import part_of, turn

CPU = {"accelerator": "cpu"}


class Validated(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", torch.nn.functional.mse_loss(self.net(batch[0]), batch[1]))


@pytest.mark.slow
def test_a_study_prefers_the_strength_that_does_no_harm_and_prunes() -> None:
    optuna = pytest.importorskip("optuna")
    pytest.importorskip("optuna_integration")

    def fit(values: dict[str, float], callbacks: list[Any]) -> float:
        trainer = pl.Trainer(
            callbacks=[L2PenaltyCallback(values["strength"], log=False), *callbacks], max_epochs=8, **QUIET
        )
        trainer.fit(Validated(), DataLoader(data(), 16), DataLoader(data(24), 24))
        return float(trainer.callback_metrics["val_loss"])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = strength_study(fit, {"strength": (1e-5, 1e3)}, trials=14)
    states = [trial.state for trial in study.trials]
    assert len(states) == 14
    assert study.best_params["strength"] < 1.0
    assert optuna.trial.TrialState.PRUNED in states


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    options: Any = {"include_dashboard": False, "log_to_driver": False, "object_store_memory": 10**8}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for tries_left in (2, 1, 0):  # on a busy machine Ray gives up after half a minute
            try:
                ray.init(num_cpus=2, **options)
                break
            except Exception as error:
                if not tries_left or "timed out during startup" not in str(error):
                    raise
                ray.shutdown()
        yield
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("how", part_of([{"folds": 3}, {"warm_start": None}], 2, turn()), ids=str)
def test_two_workers_and_one_process_give_the_same_frame(local_ray: None, how: dict[str, Any]) -> None:
    def path(**options: Any) -> Any:
        torch.set_num_threads(1)
        return regularization_path(
            Linear(10),
            L1(1.0),
            diabetes(),
            points=4,
            max_epochs=500,
            trainer={"accelerator": "cpu"},
            **options,
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert path(map=ray_map(workers=2), **how) == path(**how)


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_more_workers_than_cpus_give_results_in_order_and_errors_as_they_are(local_ray: None) -> None:
    assert list(ray_map(workers=3)(lambda number: 12 // number, [1, 2, 3])) == [12, 6, 4]
    with pytest.raises(ZeroDivisionError):
        list(ray_map(workers=2)(lambda number: 12 // number, [1, 0]))


@pytest.mark.skipif(importlib.util.find_spec("optuna") is not None, reason="Optuna is installed")
def test_without_optuna_the_sentence_names_the_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match="pip install optuna optuna-integration"):
        strength_study(lambda values, callbacks: 0.0, {"strength": (1e-5, 1.0)})


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_sentence_names_the_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match="pip install ray"):
        ray_map(workers=2)


def test_no_worker_does_nothing() -> None:
    with pytest.raises(ValueError, match="workers=0 is too few"):
        ray_map(workers=0)
