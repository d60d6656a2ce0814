"""A short search for a strength or a dropout rate: a short run at each of several values."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from tqdm.auto import tqdm

from lightning_reg.apply import Apply, DualAveraging, Metric
from lightning_reg.penalties import Penalty
from lightning_reg.tune._checks import (
    check_counts,
    check_module,
    check_penalty,
    check_score,
    check_trainer,
    scored,
)
from lightning_reg.tune._last_epochs import LastEpochs
from lightning_reg.tune._loss import Data, Score, batches_of, clone, mean_loss, same_order
from lightning_reg.tune._precision import TrainingPrecision
from lightning_reg.tune._quiet import STILL, quiet
from lightning_reg.tune.kinds import strength_range
from lightning_reg.tune.sweep import Sweep

__all__ = ["check_rates", "check_strengths", "find_dropout", "find_strength"]


def find_strength(
    module: nn.Module,
    penalty: Penalty,
    data: Data,
    validation: Data,
    *,
    lowest: float | None = None,
    highest: float | None = None,
    points: int = 12,
    epochs: int = 60,
    apply: Apply = "gradient",
    metric: Metric = "optimizer",
    dual_averaging: DualAveraging = True,
    score: Score | None = None,
    seeds: int = 1,
    batch_size: int | None = None,
    seed: int = 0,
    trainer: dict[str, Any] | None = None,
    progress: bool = False,
    on_point: Callable[[float, float], None] | None = None,
) -> Sweep:
    """Train copies of ``module`` for a short while, each at one strength of ``penalty``, and one without.

    Every copy starts from the module as it is, with a Trainer and an optimizer of its own, and sees the
    batches in the same order; the random generators are put back. Nothing of the module, or of a run that it
    is in, changes. It tells the order of magnitude; a regularization path, or a study, tells more for more.

    Args:
        module: a LightningModule, which is copied.
        penalty: which function, on what; its strength is not looked at.
        data: to train on.
        validation: to tell the strengths apart.
        lowest: of the strengths above 0, where it does next to nothing. Where None it fits the penalty: four
            decades below ``lambda_max`` if it makes zeros, 1e-3 for decoupled decay, and else 1e-5.
        highest: of the strengths, where it ruins the model: ``lambda_max``, 10 or 1 where None; up to four
            more points then follow above it, as long as the best is the last.
        points: how many strengths above 0, log-spaced; two or three a decade.
        epochs: of each run; those of the run that the strength is for. Shorter runs overfit less, and so
            suggest a smaller strength, or none.
        apply: how the penalty acts.
        metric: of ``apply="proximal"``.
        dual_averaging: of ``apply="proximal"``.
        score: ``(module, batches) -> number``, higher is better, such as
            :func:`~lightning_reg.tune.accuracy`; less the validation loss where None.
        seeds: runs at each point, whose mean counts.
        batch_size: of training on a data set; all at once where None.
        seed: of each run, the first of several.
        trainer: options of the Trainer.
        progress: show a bar.
        on_point: called with each strength and its validation loss, or the negative of its score.

    Returns:
        What was seen, with ``suggestion()``, ``plot()`` and ``to_csv()``. A loss is the mean over the last
        twelfth of a run's epochs.

    Raises:
        ValueError: no range of strengths, or no epoch.
        TypeError: the module cannot be trained, or ``penalty`` is no penalty.
    """
    check_strengths(lowest, highest, points, epochs, seeds)
    check_module(module, "find_strength", functions=False)
    check_penalty(penalty, "find_strength")
    check_score(score)
    check_trainer(trainer)
    extend = highest is None
    if lowest is None or highest is None:
        with isolate_rng(), same_order(data):
            low, high = strength_range(module, penalty, apply, batches_of(data, batch_size))
        lowest = min(low, high if highest is None else 1e-4 * highest) if lowest is None else lowest
        highest = max(high, 10.0 * lowest) if highest is None else highest
    values = [lowest * (highest / lowest) ** (i / (points - 1)) for i in range(points)]
    from lightning_reg.callbacks import PenaltyCallback

    def prepare(copied: nn.Module, strength: float) -> list[Any]:
        if strength == 0.0:
            return []
        swept = replace(penalty, strength=strength)  # type: ignore[type-var]
        return [PenaltyCallback(swept, apply, False, metric=metric, dual_averaging=dual_averaging)]

    how = (data, validation, batch_size, epochs, seed, trainer, on_point, score, seeds, progress)
    return _sweep("strength", module, prepare, [0.0, *values], how, extend)


def find_dropout(
    module: nn.Module,
    data: Data,
    validation: Data,
    *,
    highest: float = 0.8,
    points: int = 9,
    epochs: int = 60,
    score: Score | None = None,
    seeds: int = 1,
    batch_size: int | None = None,
    seed: int = 0,
    trainer: dict[str, Any] | None = None,
    progress: bool = False,
    on_point: Callable[[float, float], None] | None = None,
) -> Sweep:
    """Train copies of ``module`` for a short while, each with one rate for every dropout.

    Args:
        module: a LightningModule with dropout sites, which is copied.
        data: to train on.
        validation: to tell the rates apart.
        highest: of the rates; the lowest is 0.
        points: how many rates, evenly spaced.
        epochs: of each run; those of the run that the rate is for.
        score: as in :func:`find_strength`.
        seeds: runs at each point, whose mean counts.
        batch_size: of training on a data set; all at once where None.
        seed: of each run, the first of several.
        trainer: options of the Trainer.
        progress: show a bar.
        on_point: called with each rate and its validation loss, or the negative of its score.

    Raises:
        ValueError: no range of rates, or the module has no dropout site.
        TypeError: the module cannot be trained.
    """
    check_rates(highest, points, epochs, seeds)
    check_module(module, "find_dropout", functions=False)
    check_score(score)
    check_trainer(trainer)
    from lightning_reg.dropout import find_sites

    def prepare(copied: nn.Module, rate: float) -> list[Any]:
        sites = find_sites(copied)
        if not sites:
            raise ValueError(
                f"{type(copied).__name__} has no dropout site; add nn.Dropout where it is to drop"
            )
        for site in sites:
            site.set(rate)
        return []

    values = [highest * i / (points - 1) for i in range(points)]
    how = (data, validation, batch_size, epochs, seed, trainer, on_point, score, seeds, progress)
    return _sweep("rate", module, prepare, values, how)


def check_strengths(
    lowest: float | None, highest: float | None, points: int, epochs: int, seeds: int
) -> None:
    """Refuse options of :func:`find_strength` that make no sweep, whatever the data.

    Raises:
        ValueError: one of them does not.
        TypeError: a count is no whole number.
    """
    check_counts(3, points=points)
    check_counts(epochs=epochs, seeds=seeds)
    low = 0.5 * (highest or 1.0) if lowest is None else lowest
    if not 0.0 < low < (2.0 * low if highest is None else highest) < math.inf:
        raise ValueError(f"lowest={lowest}, highest={highest} make no sweep; give 0 < lowest < highest")


def check_rates(highest: float, points: int, epochs: int, seeds: int) -> None:
    """Refuse options of :func:`find_dropout` that make no sweep, whatever the data.

    Raises:
        ValueError: one of them does not.
        TypeError: a count is no whole number.
    """
    check_counts(3, points=points)
    check_counts(epochs=epochs, seeds=seeds)
    if not 0.0 < highest < 1.0:
        raise ValueError(f"highest={highest} makes no sweep; give 0 < highest < 1")


def _sweep(
    kind: Literal["strength", "rate"],
    module: nn.Module,
    prepare: Callable[[nn.Module, float], list[Any]],
    values: Sequence[float],
    how: tuple[Any, ...],
    extend: bool = False,
) -> Sweep:
    data, validation, batch_size, epochs, seed, options, on_point, score, seeds, progress = how
    options = {
        **STILL,
        **(options or {}),
        "max_epochs": epochs,
    }
    sweep, waiting = Sweep(kind, scored=score is not None), list(values)
    bar = tqdm(total=len(values) * seeds, desc=f"find {kind}", disable=not progress)
    with bar:
        while waiting:
            value, seen = waiting.pop(0), []
            for number in range(seed, seed + seeds):
                with isolate_rng(), quiet(), same_order(data, validation):
                    seen.append(
                        _measure(
                            module, prepare, value, (data, validation, batch_size), number, options, score
                        )
                    )
                bar.update()
            sweep.values.append(value)
            sweep.losses.append(math.fsum(seen) / len(seen))
            if on_point is not None:
                on_point(value, sweep.losses[-1])
            if extend and not waiting and len(sweep.values) < len(values) + 4 and _best_is_last(sweep):
                waiting.append(value * (value / sweep.values[-2]))
                bar.total += seeds
    remark = sweep.remark()
    if remark is not None:
        warnings.warn(remark, stacklevel=3)
    return sweep


def _measure(
    module: nn.Module,
    prepare: Callable[[nn.Module, float], list[Any]],
    value: float,
    data: tuple[Any, Any, int | None],
    seed: int,
    options: dict[str, Any],
    score: Score | None,
) -> float:
    """Train a copy, and return the mean loss, or less the score, of its last epochs."""
    train, validation, batch_size = data
    batches, held_out = batches_of(train, batch_size), batches_of(validation)
    precision = TrainingPrecision(options)
    torch.manual_seed(seed)
    copied = clone(module)
    precision.convert_(copied)
    callbacks, loss = prepare(copied, value), precision.loss(copied)

    def measure() -> float:
        if score is None:
            return mean_loss(copied, held_out, loss)
        with torch.no_grad():
            return -scored(score, copied, precision.inputs(held_out))

    last = LastEpochs(measure, -(-options["max_epochs"] // 12))
    runner = Trainer(**options | {"callbacks": [*options.get("callbacks", []), *callbacks, last]})
    runner.fit(copied, batches)
    if runner.interrupted:  # by Ctrl-C, which releases before 2.4 keep to themselves
        raise KeyboardInterrupt
    return math.fsum(last.losses) / len(last.losses) if last.losses else math.nan


def _best_is_last(sweep: Sweep) -> bool:
    known = [loss if math.isfinite(loss) else math.inf for loss in sweep.losses]
    return known[-1] < min(known[:-1])
