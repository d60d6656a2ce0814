"""A short search for a strength or a dropout rate: a short run at each of several values."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from lightning_reg.apply import Apply, Metric
from lightning_reg.penalties import Penalty
from lightning_reg.tune._loss import Data, batches_of, clone, mean_loss, same_order
from lightning_reg.tune._precision import TrainingPrecision
from lightning_reg.tune._quiet import quiet
from lightning_reg.tune.sweep import Sweep

__all__ = ["check_rates", "check_strengths", "find_dropout", "find_strength"]


def find_strength(
    module: nn.Module,
    penalty: Penalty,
    data: Data,
    validation: Data,
    *,
    lowest: float = 1e-5,
    highest: float = 1.0,
    points: int = 12,
    epochs: int = 60,
    apply: Apply = "gradient",
    metric: Metric = "optimizer",
    batch_size: int | None = None,
    seed: int = 0,
    trainer: dict[str, Any] | None = None,
    on_point: Callable[[float, float], None] | None = None,
) -> Sweep:
    """Train copies of ``module`` for a short while, each at one strength of ``penalty``.

    Every copy starts from the module as it is, with a Trainer and an optimizer of its own, and sees the
    batches in the same order; the random generators are put back. Nothing of the module, or of a run that it
    is in, changes. It tells the order of magnitude; a regularization path, or a study, tells more for more.

    Args:
        module: a LightningModule, which is copied.
        penalty: which function, on what; its strength is not looked at.
        data: to train on.
        validation: to tell the strengths apart.
        lowest: of the strengths, where it does next to nothing.
        highest: of the strengths, where it ruins the model.
        points: how many strengths, log-spaced; two or three a decade.
        epochs: of each run. It must be long enough for overfitting to begin: half of a whole run will do.
        apply: how the penalty acts.
        metric: of ``apply="proximal"``.
        batch_size: of training on a data set; all at once where None.
        seed: of each run.
        trainer: options of the Trainer.
        on_point: called with each strength and its validation loss.

    Returns:
        What was seen, with ``suggestion()``, ``plot()`` and ``to_csv()``. A loss is the mean over the last
        twelfth of a run's epochs.

    Raises:
        ValueError: no range of strengths, or no epoch.
    """
    check_strengths(lowest, highest, points, epochs)
    values = [lowest * (highest / lowest) ** (i / (points - 1)) for i in range(points)]
    from lightning_reg.callbacks import PenaltyCallback

    def prepare(copied: nn.Module, strength: float) -> list[Any]:
        swept = replace(penalty, strength=strength)  # type: ignore[type-var]
        return [PenaltyCallback(swept, apply=apply, metric=metric, log=False)]

    how = (data, validation, batch_size, epochs, seed, trainer, on_point)
    return _sweep("strength", module, prepare, values, how)


def find_dropout(
    module: nn.Module,
    data: Data,
    validation: Data,
    *,
    highest: float = 0.8,
    points: int = 9,
    epochs: int = 60,
    batch_size: int | None = None,
    seed: int = 0,
    trainer: dict[str, Any] | None = None,
    on_point: Callable[[float, float], None] | None = None,
) -> Sweep:
    """Train copies of ``module`` for a short while, each with one rate for every dropout.

    Args:
        module: a LightningModule with dropout sites, which is copied.
        data: to train on.
        validation: to tell the rates apart.
        highest: of the rates; the lowest is 0.
        points: how many rates, evenly spaced.
        epochs: of each run; half of a whole run will do.
        batch_size: of training on a data set; all at once where None.
        seed: of each run.
        trainer: options of the Trainer.
        on_point: called with each rate and its validation loss.

    Raises:
        ValueError: no range of rates, or the module has no dropout site.
    """
    check_rates(highest, points, epochs)
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
    how = (data, validation, batch_size, epochs, seed, trainer, on_point)
    return _sweep("rate", module, prepare, values, how)


def check_strengths(lowest: float, highest: float, points: int, epochs: int) -> None:
    """Refuse options of :func:`find_strength` that make no sweep, whatever the data.

    Raises:
        ValueError: one of them does not.
    """
    if not 0.0 < lowest < highest < math.inf or points < 3 or epochs < 1:
        raise ValueError(
            f"lowest={lowest}, highest={highest}, points={points}, epochs={epochs} make no sweep; give "
            "0 < lowest < highest, 3 or more points, and 1 epoch or more"
        )


def check_rates(highest: float, points: int, epochs: int) -> None:
    """Refuse options of :func:`find_dropout` that make no sweep, whatever the data.

    Raises:
        ValueError: one of them does not.
    """
    if not 0.0 < highest < 1.0 or points < 3 or epochs < 1:
        raise ValueError(
            f"highest={highest}, points={points}, epochs={epochs} make no sweep; give 0 < highest < 1, 3 or "
            "more points, and 1 epoch or more"
        )


def _sweep(
    kind: Literal["strength", "rate"],
    module: nn.Module,
    prepare: Callable[[nn.Module, float], list[Any]],
    values: Sequence[float],
    how: tuple[Any, ...],
) -> Sweep:
    from lightning.pytorch import Trainer
    from lightning.pytorch.utilities.seed import isolate_rng

    from lightning_reg.tune._last_epochs import LastEpochs

    data, validation, batch_size, epochs, seed, options, on_point = how
    options = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
        "log_every_n_steps": 2**31,
        **(options or {}),
        "max_epochs": epochs,
    }
    batches, held_out = batches_of(data, batch_size), batches_of(validation)
    sweep, precision = Sweep(kind), TrainingPrecision(options)
    for value in values:
        with isolate_rng(), quiet(), same_order(data, validation):
            torch.manual_seed(seed)
            copied = clone(module)
            precision.convert_(copied)
            callbacks, loss = prepare(copied, value), precision.loss(copied)
            last = LastEpochs(partial(mean_loss, copied, held_out, loss), -(-epochs // 12))
            runner = Trainer(**options | {"callbacks": [*options.get("callbacks", []), *callbacks, last]})
            runner.fit(copied, batches)
        if runner.interrupted:  # by Ctrl-C, which releases before 2.4 keep to themselves
            raise KeyboardInterrupt
        sweep.values.append(value)
        sweep.losses.append(math.fsum(last.losses) / len(last.losses) if last.losses else math.nan)
        if on_point is not None:
            on_point(value, sweep.losses[-1])
    remark = sweep.remark()
    if remark is not None:
        warnings.warn(remark, stacklevel=3)
    return sweep
