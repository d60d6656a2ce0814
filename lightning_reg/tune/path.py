"""The regularization path: one model at many strengths, each started from its neighbour."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import nn

from lightning_reg.apply import DualAveraging, check_dual_averaging
from lightning_reg.penalties import Penalty
from lightning_reg.tune._checks import check_counts, check_module, check_penalty, check_trainer
from lightning_reg.tune._directory import PathDirectory
from lightning_reg.tune._folds import split, with_folds
from lightning_reg.tune._loss import Data, batches_of
from lightning_reg.tune._point import Chain, Recipe, make
from lightning_reg.tune._precision import TrainingPrecision
from lightning_reg.tune.frame import PathFrame, Row
from lightning_reg.tune.lambda_max import is_linear, lambda_max

__all__ = ["about", "below_lambda_max", "check_path", "regularization_path"]

#: How independent pieces of a path are run: ``map``, or :func:`~lightning_reg.tune.ray_map`.
Map: TypeAlias = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


def regularization_path(
    module: nn.Module | Callable[[], nn.Module],
    penalty: Penalty,
    data: Data,
    strengths: Sequence[float] | None = None,
    *,
    validation: Data | None = None,
    points: int = 30,
    ratio: float = 1e-2,
    warm_start: Literal["down", "up"] | None = "down",
    predict: bool | None = None,
    folds: int | None = None,
    batch_size: int | None = None,
    dual_averaging: DualAveraging = True,
    max_epochs: int = 1000,
    patience: int | None = None,
    tolerance: float = 1e-4,
    metric: Callable[[Any, Any], float] | None = None,
    directory: str | Path | None = None,
    seed: int = 0,
    trainer: dict[str, Any] | None = None,
    map: Map = map,
    on_point: Callable[[str, Row], None] | None = None,
) -> PathFrame:
    r"""Train ``module`` at many strengths of ``penalty`` with ``apply="proximal"``; return a row for each.

    One ``nn.Linear`` of at most 1,024 weights in L1 or ElasticNet, whose loss is convex and the same in
    training and evaluation, is solved by proximal Newton steps on all of the data, without a Trainer:
    ``steps`` and ``epochs`` are 0 then. That is not so with ``predict=False``, a cold start, ``patience``, or
    options of the Trainer that would make a difference. What follows is about all others.

    A warm start takes the weights and the optimizer state of the point before. If that point had converged,
    it rescales the moments by the ratio of the strengths. If the model is linear, it also predicts: a Newton
    step on the weights that are not zero goes along the path to the next strength, and the optimizer corrects
    the rest. The column ``gradients`` counts its gradients, and ``steps`` the optimizer's steps.

    A point ends when the residual of the proximal gradient step is at most ``tolerance`` times the
    strength, or after ``max_epochs``. The residual is exact for full-batch training. With smaller batches,
    that of a linear model is measured on all of the data after every epoch, and ``gradients`` counts this
    as well. After 4, 8, 16, ... epochs, and after the last, Newton steps go on from there unless
    ``predict=False``. Where the residual stops falling, the learning rate is halved, unless the model has a
    scheduler. For any other model the residual comes from the mean of the epoch's gradients, between which
    the weights move, so it is usually larger than the tolerance, and ``converged`` is False. There the rate
    is halved when the mean of an epoch's losses with the penalty has not fallen by a thousandth for 8 epochs,
    and the point ends when it has been halved 7 times; not if the model has a scheduler.

    With ``patience``, a point also ends when the validation loss has not fallen for that many epochs. It then
    restores the weights and the optimizer of its best epoch, and the next point starts from there.

    Args:
        module: a LightningModule, which is copied for each point, or a function that makes one.
        penalty: which function, on what; its strength is ignored.
        data: to train on: a data set, or batches.
        strengths: in any order; ``points`` log-spaced from ``lambda_max`` to ``ratio`` times it where None.
        validation: to validate on.
        points: how many strengths.
        ratio: of the smallest strength to the largest.
        warm_start: ``"down"`` from the largest strength, as glmnet does; ``"up"`` from the smallest, which
            prunes a dense model; None trains each point from the start.
        predict: whether a warm start does, and training in batches takes Newton steps; where None, if the
            model is one ``nn.Linear``.
        folds: K of a cross-validation: K more paths, on K − 1 parts each. ``data`` must be a data set, or a
            ``DataLoader`` of one.
        batch_size: of training on a data set; all at once where None.
        dual_averaging: True for zeros that the noise of mini-batches does not undo, as in
            :class:`~lightning_reg.callbacks.PenaltyCallback`.
        max_epochs: of each point.
        patience: epochs without a smaller validation loss. The same data then stop a point and score it, so
            that its loss is a little too good: keep test data apart. In a cross-validation each fold's
            held-out part stops it, and ``validation`` the whole path.
        tolerance: of the residual, as a share of the strength.
        metric: ``(module, batches) -> number``, measured on the validation data.
        directory: where finished points are kept; a path that was stopped goes on from them.
        seed: of every point, and of the folds.
        trainer: options of the Trainer; accelerator, precision and the like.
        map: runs independent pieces: the folds, or every point of a cold start. The builtin, an executor's,
            or ``ray_map(workers=2)``.
        on_point: called with the chain, ``"path"`` or ``"fold1"`` to ``"foldK"``, and the row of each point
            when it is finished, in the process that trained it.

    Returns:
        A frame with ``best()``, ``plot()``, ``to_csv()`` and ``to_pandas()``. ``validation_loss`` of a
        cross-validation is the mean over the folds, and ``validation_error`` its standard error.

    Raises:
        ValueError: strengths that are not positive, a patience without validation data, or a directory that
            holds another path.

    References:
        Friedman, Hastie and Tibshirani, *Regularization Paths for Generalized Linear Models via Coordinate
        Descent*, Journal of Statistical Software 33(1), 2010; Park and Hastie, *L1-regularization path
        algorithm for generalized linear models*, Journal of the Royal Statistical Society B 69(4), 2007.
    """
    check_path(strengths, points, ratio, warm_start, patience, validation is not None, folds)
    check_dual_averaging(dual_averaging, "proximal")
    check_counts(max_epochs=max_epochs)
    check_module(module, "regularization_path")
    check_penalty(penalty, "regularization_path")
    check_trainer(trainer)
    first = make(module, seed)
    check_module(first, "regularization_path")
    if strengths is None:
        strengths = below_lambda_max(
            first, penalty, batches_of(data, batch_size), points, ratio, trainer or {}
        )
    strengths = sorted(_positive(strengths), reverse=warm_start != "up")
    recipe = Recipe(
        module=module,
        penalty=penalty,
        predict=is_linear(first) if predict is None else predict,
        batch_size=batch_size,
        dual_averaging=dual_averaging,
        max_epochs=max_epochs,
        patience=patience,
        tolerance=tolerance,
        metric=metric,
        seed=seed,
        trainer=trainer or {},
        warm_start=warm_start is not None,
    )
    kept = PathDirectory(None if directory is None else Path(directory))
    kept.claim(about(recipe, strengths, warm_start) | {"folds": folds})
    chains = {"path": (data, validation)}
    if folds is not None:
        chains |= {f"fold{k}": part for k, part in enumerate(split(data, folds, seed), 1)}
    whole = list(range(len(strengths)))
    parts = [whole] if warm_start is not None else [[index] for index in whole]
    pieces = [_Piece(name, *chain, part) for name, chain in chains.items() for part in parts]
    results: dict[str, list[Row]] = {name: [] for name in chains}
    run = partial(_run, recipe, strengths, kept, on_point)
    for piece, rows in zip(pieces, map(run, pieces), strict=True):
        results[piece.chain] += rows
    rows = results.pop("path")
    return PathFrame(with_folds(rows, list(results.values())) if results else rows)


def check_path(
    strengths: Sequence[float] | None,
    points: int,
    ratio: float,
    warm_start: str | None,
    patience: int | None,
    has_validation: bool,
    folds: int | None,
) -> None:
    """Refuse options of :func:`regularization_path` that make no path, whatever the data.

    Raises:
        ValueError: one of them does not.
    """
    if warm_start not in ("down", "up", None):
        raise ValueError(f"warm_start={warm_start!r} is unknown; use 'down', 'up' or None")
    if patience is not None and (patience < 1 or not has_validation):
        raise ValueError(
            f"patience={patience} stops a point by its validation loss; give validation= and 1 epoch or more"
        )
    if folds is not None and folds < 2:
        raise ValueError(f"folds={folds} is out of range; give 2 or more, 5 as a rule")
    if strengths is not None:
        _positive(strengths)
    elif points < 2 or not 0.0 < ratio < 1.0:
        raise ValueError(
            f"points={points} and ratio={ratio} are no path; give 2 or more and one within (0, 1)"
        )


@dataclass(frozen=True)
class _Piece:
    """Points of one chain that are trained one after another."""

    chain: str
    train: Any
    validation: Any
    indices: list[int]


def _run(
    recipe: Recipe,
    strengths: Sequence[float],
    kept: PathDirectory,
    on_point: Callable[[str, Row], None] | None,
    piece: _Piece,
) -> list[Row]:
    """Train the points of a piece, leaving out what is there already."""
    rows: list[Row] = []
    before, chain = None, None
    for index in piece.indices:
        point = kept.load(piece.chain, index)
        if point is None:
            chain = chain or Chain(recipe, piece.train, piece.validation)
            point = chain.point(strengths[index], before)
            kept.save(piece.chain, index, point)
        rows.append(point["row"])
        before = point
        if on_point is not None:
            on_point(piece.chain, point["row"])
    return rows


def below_lambda_max(
    module: nn.Module, penalty: Penalty, batches: Any, points: int, ratio: float, trainer: dict[str, Any]
) -> list[float]:
    """Return ``points`` strengths from ``lambda_max`` to ``ratio`` times it, in equal ratios.

    The first is a millionth above it, where rounding leaves no weight.

    Raises:
        ValueError: no weight that is selected does anything for the loss.
    """
    precision = TrainingPrecision(trainer)
    precision.convert_(module)
    top = lambda_max(module, penalty, batches, loss=precision.loss(module))
    if top == 0.0:
        raise ValueError("lambda_max is 0: the selected weights do nothing for the loss; give strengths=")
    return [(1.0 + 1e-6) * top * ratio ** (i / (points - 1)) for i in range(points)]


def about(recipe: Recipe, strengths: list[float], warm_start: str | None) -> dict[str, Any]:
    """What tells one path from another, as far as it can be written down."""
    penalty = replace(recipe.penalty, strength=0.0)  # type: ignore[type-var]
    return {
        "penalty": repr(penalty) if " at 0x" not in repr(penalty) else type(penalty).__name__,
        "strengths": strengths,
        "warm_start": warm_start,
        "predict": recipe.predict,
        "batch_size": recipe.batch_size,
        "dual_averaging": recipe.dual_averaging,
        "max_epochs": recipe.max_epochs,
        "patience": recipe.patience,
        "tolerance": recipe.tolerance,
        "seed": recipe.seed,
    }


def _positive(strengths: Sequence[float]) -> list[float]:
    """Return positive, distinct strengths as floats."""
    found = sorted({float(strength) for strength in strengths})
    if not found or found[0] <= 0.0 or found[-1] == float("inf"):
        raise ValueError(f"strengths={list(strengths)!r} are not all finite and above 0; give some that are")
    return found
