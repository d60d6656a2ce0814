"""Which kind of regularization: none and several, each at its best strength, over several seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_reg.tune._checks import check_counts, check_module, check_score, check_trainer
from lightning_reg.tune._directory import PathDirectory
from lightning_reg.tune._kind_run import OnRun, Recipe, leave_out, rank, restored, trained
from lightning_reg.tune._loss import Data, Score, batches_of, same_order
from lightning_reg.tune._point import make, seed_all
from lightning_reg.tune._precision import TrainingPrecision
from lightning_reg.tune._search import search
from lightning_reg.tune.comparison import Comparison, Contender
from lightning_reg.tune.kinds import Kind, kinds_of

__all__ = ["accuracy", "check_compare", "compare"]


def compare(
    module: nn.Module | Callable[[], nn.Module],
    kinds: Sequence[Any] | None,
    train: Data,
    validation: Data,
    test: Data | None = None,
    *,
    score: Score | None = None,
    seeds: int = 3,
    budget: int = 480,
    epochs: int = 60,
    batch_size: int | None = None,
    directory: str | Path | None = None,
    seed: int = 0,
    trainer: dict[str, Any] | None = None,
    map: Callable[..., Any] = map,
    on_run: OnRun | None = None,
    on_kind: Callable[[Contender], None] | None = None,
) -> Comparison:
    """Find each kind's best strength, train it with every seed, and recommend one of them, or none.

    Every kind has the same budget to find its strength: ``budget // epochs`` runs with the first seed. Half
    of them are a grid over a range that fits the penalty. The others lie next to the best value so far, or
    beyond it if it is at an end. Of two equal scores, as accuracies on few data often are, the one with the
    lower validation loss is the better. The best value is then trained with the other seeds. "none" is always
    among the kinds, and is recommended if the best kind is not better by more than a standard error of the
    difference, which comes from the seeds and from the validation samples. Early stopping chooses its epoch
    on one half of the validation data and is scored on the other, and the other way round. The test data are
    used once, for the recommended kind.

    Args:
        module: a LightningModule, whose weights every run starts from, or a function that makes one, which
            gives each seed weights of its own.
        kinds: a list of names (``"early stopping"``, ``"l2"``, ``"l2 decoupled"``, ``"l1"``,
            ``"elastic net"``, ``"group lasso"``, ``"dropout"``), penalties (with ``apply="gradient"``),
            penalty callbacks (with theirs), a ``DropoutInjector``, or other callbacks, which have nothing to
            find. The strengths and rates that you give are ignored. All names where None.
        train: data to train on.
        validation: data to tell strengths and kinds apart.
        test: data that the recommended kind is scored on, once.
        score: ``(module, batches) -> number``, higher is better, such as
            :func:`~lightning_reg.tune.accuracy`; minus the validation loss where None. It is also called on
            nine tenths of the validation data, for the standard error.
        seeds: how many.
        budget: epochs that each kind may use to find its strength.
        epochs: of each run, which are whole ones.
        batch_size: of training on a data set; all at once where None.
        directory: where finished runs are kept; a comparison that was stopped goes on from them.
        seed: the first of the seeds.
        trainer: options of the Trainer.
        map: runs the kinds: the builtin, an executor's, or ``ray_map(workers=2)``.
        on_run: called with kind, value, seed and score after each run, in the process that trained it.
        on_kind: called with each kind when it is finished.

    Returns:
        Print it for the table and the advice; it has ``recommendation()``, ``plot()`` and ``to_csv()``.

    Raises:
        ValueError: a budget of less than three runs, or a directory that holds another comparison.
        TypeError: the module cannot be trained, or a kind is none.
    """
    from lightning.pytorch.utilities.seed import isolate_rng

    check_compare(seeds, budget, epochs)
    check_module(module, "compare")
    check_score(score)
    check_trainer(trainer)
    options = trainer or {}
    first = make(module, seed)
    check_module(first, "compare")
    precision = TrainingPrecision(options)
    precision.convert_(first)
    with isolate_rng(), same_order(train):  # the ranges are those of the same batches each time
        seed_all(seed)
        found = kinds_of(kinds, first, batches_of(train, batch_size), precision.loss(first))
    kept = PathDirectory(None if directory is None else Path(directory), "comparison")
    about = {"seeds": seeds, "budget": budget, "epochs": epochs, "batch_size": batch_size, "seed": seed}
    kept.claim(about | {"kinds": [[kind.name, kind.low, kind.high] for kind in found]})
    points = budget // epochs
    recipe = Recipe(
        module, train, validation, score, seeds, points, epochs, batch_size, seed, options, kept, on_run
    )
    contenders, states = [], {}
    for contender, state in map(partial(_contend, recipe), found):
        contenders.append(contender)
        states[contender.kind] = state
        if on_kind is not None:
            on_kind(contender)
    name = "-loss" if score is None else getattr(score, "__name__", "score")
    comparison = Comparison(contenders, name)
    if test is not None:
        picked = states[comparison.recommendation().kind]
        scores = [restored(recipe, state)[1](batches_of(test)) for state in picked]
        comparison.test_score = sum(scores) / len(scores)
    return comparison


def check_compare(seeds: int, budget: int, epochs: int) -> None:
    """Refuse options of :func:`compare` that compare nothing, whatever the data.

    Raises:
        ValueError: one of them does not.
        TypeError: one of them is no whole number.
    """
    check_counts(seeds=seeds, budget=budget, epochs=epochs)
    if budget < 3 * epochs:
        raise ValueError(
            f"budget={budget} and epochs={epochs} make no comparison; give a budget of three times the "
            "epochs or more"
        )


@torch.no_grad()
def accuracy(module: Any, batches: Any) -> float:
    """Return the share of samples whose largest score is at their label, for ``score=``.

    Args:
        module: called with the first part of a batch, ``(samples, classes)``.
        batches: of ``(inputs, labels)``.
    """
    right = count = 0
    training = module.training
    module.eval()
    for inputs, labels in batches:
        right += int((module(inputs).argmax(1) == labels).sum())
        count += len(labels)
    module.train(training)
    return right / count


def _contend(recipe: Recipe, kind: Kind) -> tuple[Contender, list[dict[str, Any]]]:
    """Find a kind's value and train it with every seed; also return the weights of these runs."""
    runs: list[dict[str, Any]] = []

    def measure(value: float) -> tuple[float, float]:
        runs.append(trained(recipe, kind, value, recipe.seed, len(runs)))
        return rank(runs[-1])

    if kind.low is None or kind.high is None:
        measure(0.0)
    else:
        search(measure, kind.low, kind.high, recipe.points, kind.log)
    place = min(range(len(runs)), key=lambda index: rank(runs[index]))
    best = runs[place]
    final = {place: best}
    for number in range(recipe.seed + 1, recipe.seed + recipe.seeds):
        final[1000 + number] = trained(recipe, kind, best["value"], number, 1000 + number)
    for index, run in final.items():
        leave_out(recipe, kind, index, run)

    def of(name: str) -> list[Any]:
        return [run[name] for run in final.values()]

    contender = Contender(
        kind=kind.name,
        value=None if kind.low is None else best["value"],
        code=kind.code(best["value"]),
        scores=of("score"),
        losses=of("loss"),
        training_losses=of("training_loss"),
        zeros=of("zeros"),
        seconds=of("seconds"),
        searched=[(run["value"], run["score"]) for run in runs],
        left_out=[statistics.fmean(scores) for scores in zip(*of("left_out"), strict=True)],
    )
    return contender, of("module")
