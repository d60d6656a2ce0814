"""Many strengths at once: an Optuna study on one machine, Ray on one or more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lightning_reg.tune._checks import check_counts, check_ranges

__all__ = ["ray_map", "strength_study"]


def strength_study(
    fit: Callable[[dict[str, float], list[Any]], float],
    strengths: dict[str, tuple[float, float]],
    rates: dict[str, tuple[float, float]] | None = None,
    *,
    trials: int = 20,
    monitor: str = "val_loss",
    seed: int = 0,
    study: Any = None,
) -> Any:
    """Search strengths (on a log scale) and dropout rates (on a linear one) with Optuna, and prune what lags.

    Args:
        fit: trains a model with the given values and callbacks, and returns its validation loss. Give the
            callbacks to the Trainer: one of them, Optuna's own for Lightning, ends trials that lag.
        strengths: name to (lowest, highest), both above 0.
        rates: name to (lowest, highest).
        trials: how many.
        monitor: what the module logs in validation, for pruning.
        seed: of the sampler.
        study: one of your own, to go on with; a new one with a median pruner where None.

    Returns:
        The ``optuna.Study``: ``best_params``, ``best_value``, ``trials_dataframe()``.

    Raises:
        ModuleNotFoundError: Optuna, or its Lightning integration, is not installed.
        ValueError: a range is none.
        TypeError: ``strengths`` or ``rates`` is no dict of ranges.
    """
    check_ranges("strengths", strengths, positive=True)
    check_ranges("rates", rates or {}, positive=False)
    check_counts(trials=trials)
    try:
        import optuna
        from optuna_integration import PyTorchLightningPruningCallback
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"strength_study needs Optuna and its integration, and {error.name} is missing; run: pip install "
            "optuna optuna-integration",
            name=error.name,
        ) from error

    def objective(trial: Any) -> float:
        values = {name: trial.suggest_float(name, *ends, log=True) for name, ends in strengths.items()}
        values |= {name: trial.suggest_float(name, *ends) for name, ends in (rates or {}).items()}
        return fit(values, [PyTorchLightningPruningCallback(trial, monitor=monitor)])

    if study is None:
        sampler = optuna.samplers.TPESampler(seed=seed)
        study = optuna.create_study(sampler=sampler, pruner=optuna.pruners.MedianPruner(n_startup_trials=4))
    study.optimize(objective, n_trials=trials)
    return study


def ray_map(workers: int) -> Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]:
    """Return a ``map`` that runs on Ray, for ``regularization_path(..., map=ray_map(workers=2))``.

    A Ray that runs already is used, a cluster's too; the local one is started otherwise. The pieces are the
    folds of a cross-validation and the whole path, or every point of a cold start. Each has one CPU.
    What a path with a ``directory`` keeps must lie where every machine sees it.

    Args:
        workers: pieces that run at a time; fewer where Ray has fewer CPUs.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ValueError: less than one worker.
    """
    check_counts(workers=workers)
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("ray_map needs Ray; run: pip install ray", name=error.name) from error

    def run(function: Callable[[Any], Any], pieces: Sequence[Any]) -> Iterator[Any]:
        if not ray.is_initialized():
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
        task = ray.remote(num_cpus=1)(lambda job, piece: job(piece))
        job = ray.put(function)  # once, with the data that it holds
        results: list[Any] = []
        running: list[Any] = []
        for piece in pieces:
            if len(running) == workers:
                _, running = ray.wait(running)
            results.append(task.remote(job, piece))
            running.append(results[-1])
        return map(ray.get, results)

    return run
