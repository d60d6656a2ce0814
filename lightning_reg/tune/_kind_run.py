"""One run of a comparison: it is trained, scored and kept, or taken from the directory."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from lightning_reg.metrics.functional import sparsity
from lightning_reg.tune._checks import scored
from lightning_reg.tune._directory import PathDirectory
from lightning_reg.tune._jackknife import ALL, HALVES, part_of
from lightning_reg.tune._loss import Score, batches_of, mean_loss, same_order
from lightning_reg.tune._point import make, seed_all
from lightning_reg.tune._precision import TrainingPrecision
from lightning_reg.tune._quiet import STILL, quiet
from lightning_reg.tune.kinds import Kind

__all__ = ["OnRun", "Recipe", "leave_out", "rank", "restored", "trained"]

#: Called with the kind, the value, the seed and the score of each finished run.
OnRun = Callable[[str, float, int, float], None]


@dataclass(frozen=True)
class Recipe:
    """How every run is trained; it travels to workers."""

    module: Any
    train: Any
    validation: Any
    score: Score | None
    seeds: int
    points: int
    epochs: int
    batch_size: int | None
    seed: int
    trainer: dict[str, Any]
    kept: PathDirectory
    on_run: OnRun | None


def rank(run: dict[str, Any]) -> tuple[float, float]:
    """Low for a high score; where scores are equal, as accuracies on few data are, for a low loss."""
    less, loss = -float(run["score"]), float(run["loss"])
    return (less, loss if math.isfinite(loss) else math.inf) if math.isfinite(less) else (math.inf, math.inf)


def trained(recipe: Recipe, kind: Kind, value: float, seed: int, index: int) -> dict[str, Any]:
    """Train once, or take the run that is kept."""
    run = recipe.kept.load(kind.chain, index)
    if run is None or (kind.stops_early and "halves" not in run):  # kept by an earlier release
        run = _train(recipe, kind, value, seed)
        recipe.kept.save(kind.chain, index, run)
    if recipe.on_run is not None:
        recipe.on_run(kind.name, value, seed, run["score"])
    return run


def _train(recipe: Recipe, kind: Kind, value: float, seed: int) -> dict[str, Any]:
    from lightning.pytorch import Trainer
    from lightning.pytorch.utilities.seed import isolate_rng

    batches, halves = batches_of(recipe.train, recipe.batch_size), []
    with isolate_rng(), quiet(), same_order(recipe.train, recipe.validation):
        module = make(recipe.module, seed)
        precision = TrainingPrecision(recipe.trainer)
        precision.convert_(module)
        loss = precision.loss(module)
        held = partial(_on_held_out, recipe, module, lambda part: mean_loss(module, part, loss))
        callbacks = kind.callbacks(module, value)
        if kind.stops_early:
            from lightning_reg.tune._best_epoch import BestEpoch

            parts = (ALL, *HALVES) if _has_halves(recipe.validation) else (ALL,)
            callbacks = [BestEpoch([partial(held, blocks=blocks) for blocks in parts])]
        options = {**STILL, **recipe.trainer, "max_epochs": recipe.epochs}
        options["callbacks"] = [*options.get("callbacks", []), *callbacks]
        seed_all(seed)
        began = time.perf_counter()
        runner = Trainer(**options)
        runner.fit(module, batches)
        seconds = time.perf_counter() - began
    if runner.interrupted:  # by Ctrl-C, which releases before 2.4 keep to themselves
        raise KeyboardInterrupt
    run: dict[str, Any] = {
        "value": value,
        "training_loss": mean_loss(module, batches, loss),
        "zeros": float(sparsity(module)),
        "seconds": seconds,
        "module": _copied(module.state_dict()),
    }
    if kind.stops_early:
        halves = run["halves"] = [_copied(state) for state in callbacks[0].states[1:]]
    run["loss"] = held(halves=halves)
    score = partial(_score, recipe.score, module, precision)
    run["score"] = _on_held_out(recipe, module, score, halves=halves)
    return run


def leave_out(recipe: Recipe, kind: Kind, index: int, run: dict[str, Any]) -> None:
    """Score a finished run without each tenth of the validation data."""
    if "left_out" in run:  # from the directory
        return
    module, score = restored(recipe, run["module"])
    without = partial(_on_held_out, recipe, module, score, halves=run.get("halves", ()))
    run["left_out"] = [without(blocks=ALL - {block}) for block in sorted(ALL)]
    recipe.kept.save(kind.chain, index, run)


def _on_held_out(
    recipe: Recipe,
    module: Any,
    measure: Callable[[Any], float],
    blocks: frozenset[int] = ALL,
    halves: Sequence[dict[str, Any]] = (),
) -> float:
    """Measure on blocks of the validation data, in the same order each time.

    A run that stopped early would be judged by the very samples that chose its epoch. So on each half of them
    the weights of the epoch that the other half chose, in ``halves``, are measured too, and what they differ
    by is added. Where halves are too few samples to measure on, nothing is.
    """
    from lightning.pytorch.utilities.seed import isolate_rng

    def on(part: frozenset[int]) -> float:
        with isolate_rng(), same_order(recipe.validation):
            seed_all(recipe.seed)
            try:
                return measure(part_of(batches_of(recipe.validation), part))
            except Exception as error:
                if part == ALL:
                    raise
                warnings.warn(f"score failed on a part of the validation data: {error}", stacklevel=2)
                return math.nan

    found, chosen = on(blocks), _copied(module.state_dict()) if halves else {}
    differences = []
    for state, other in zip(halves, reversed(HALVES), strict=False):
        before = on(blocks & other)
        module.load_state_dict(state)
        differences.append(on(blocks & other) - before)
        module.load_state_dict(chosen)
    known = [difference for difference in differences if math.isfinite(difference)]
    return found + (statistics.fmean(known) if known else 0.0)


def restored(recipe: Recipe, state: dict[str, Any]) -> tuple[Any, Callable[[Any], float]]:
    """Return a module with the weights of a run, and what scores it on batches."""
    module = make(recipe.module, recipe.seed)
    precision = TrainingPrecision(recipe.trainer)
    precision.convert_(module)
    module.load_state_dict(state)
    return module, partial(_score, recipe.score, module, precision)


@torch.no_grad()
def _score(score: Score | None, module: Any, precision: TrainingPrecision, batches: Any) -> float:
    if score is None:
        return -mean_loss(module, batches, precision.loss(module))
    return scored(score, module, precision.inputs(batches))


def _has_halves(validation: Any) -> bool:
    """Whether it is more than one batch that cannot be cut."""
    return all(any(True for _ in part_of(batches_of(validation), half)) for half in HALVES)


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: part.cpu().clone() for name, part in state.items()}
