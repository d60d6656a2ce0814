"""One point of a path: a module trained at one strength, from its neighbour or from the start."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from lightning_reg.apply import DualAveraging, Term
from lightning_reg.penalties import Penalty
from lightning_reg.tune._loss import batches_of, clone, mean_loss
from lightning_reg.tune._precision import TrainingPrecision
from lightning_reg.tune._quiet import STILL, quiet
from lightning_reg.tune._whole_data import WholeData
from lightning_reg.tune.frame import Row
from lightning_reg.tune.lambda_max import is_linear
from lightning_reg.tune.predictor import predict_

__all__ = ["Recipe", "make", "seed_all", "train_point"]

#: Selected weights up to which a row keeps all of them.
MAX_WEIGHTS = 500


@dataclass(frozen=True)
class Recipe:
    """How every point is trained, in the words of ``regularization_path``; it travels to workers."""

    module: Any
    penalty: Penalty
    predict: bool
    batch_size: int | None
    max_epochs: int
    tolerance: float
    seed: int
    trainer: dict[str, Any]
    patience: int | None = None
    metric: Callable[[Any, Any], float] | None = None
    dual_averaging: DualAveraging = True


def train_point(
    recipe: Recipe, strength: float, before: dict[str, Any] | None, train: Any, validation: Any
) -> dict[str, Any]:
    """Train at ``strength``, and return the row, the module's state and the optimizer's.

    Args:
        recipe: how.
        strength: λ.
        before: what this returned for the neighbour; a cold start where None.
        train: data to train on.
        validation: data to validate on, or None.
    """
    from lightning.pytorch import Trainer
    from lightning.pytorch.utilities.seed import isolate_rng

    from lightning_reg.callbacks import PenaltyCallback
    from lightning_reg.tune._path_point import PathPoint, rescaled

    penalty = replace(recipe.penalty, strength=strength)  # type: ignore[type-var]
    batches = batches_of(train, recipe.batch_size)
    held_out = None if validation is None else batches_of(validation)
    with isolate_rng():
        module = make(recipe.module, recipe.seed)
        precision = TrainingPrecision(recipe.trainer)
        precision.convert_(module)
        loss = precision.loss(module)
        optimizer_state, gradients, goal = None, 0, recipe.tolerance * strength
        if before is not None:
            module.load_state_dict(before["module"])
            # away from a solution gradients do not go with the strength, and rescaled moments would stop Adam
            ratio = strength / before["row"]["strength"] if before["row"]["converged"] else 1.0
            optimizer_state = rescaled(before["optimizer"], ratio)
            if recipe.predict:
                term = Term(penalty, module, in_place=True)
                gradients = predict_(module, term, batches, loss, strength, goal, recipe.max_epochs)
        whole = None
        if is_linear(module):
            limit = recipe.max_epochs if recipe.predict else None
            term = Term(penalty, module, in_place=True)
            whole = WholeData(module, term, batches, loss, strength, goal, limit)
        seed_all(recipe.seed)
        point = PathPoint(
            penalty,
            recipe.tolerance,
            optimizer_state,
            patience=recipe.patience,
            measure=None if held_out is None else lambda: mean_loss(module, held_out, loss),
            whole=whole,
        )
        options = {
            **STILL,
            "max_epochs": recipe.max_epochs,
            "check_val_every_n_epoch": None,
            **recipe.trainer,
        }
        options["callbacks"] = [
            *options.get("callbacks", []),
            PenaltyCallback(penalty, "proximal", log=False, dual_averaging=recipe.dual_averaging),
            point,
        ]
        with quiet():
            runner = Trainer(**options)
            runner.fit(module, batches)
        if runner.interrupted:  # by Ctrl-C, which releases before 2.4 keep to themselves
            raise KeyboardInterrupt
        row: Row = {
            "strength": strength,
            "train_loss": mean_loss(module, batches, loss),
            "validation_loss": None if held_out is None else mean_loss(module, held_out, loss),
            "validation_error": None,
            "metric": None,
            **_sizes(module, penalty),
            "epochs": runner.current_epoch,
            "best_epoch": point.best_epoch,
            "steps": point.steps,
            "gradients": gradients + (0 if whole is None else whole.gradients),
            "residual": point.residual,
            "converged": point.converged,
        }
        if held_out is not None and recipe.metric is not None:
            row["metric"] = float(recipe.metric(module, precision.inputs(held_out)))
    state = {name: value.cpu().clone() for name, value in module.state_dict().items()}
    return {"row": row, "module": state, "optimizer": point.state}


def make(module: Any, seed: int) -> Any:
    """Return a module of its own, the same each time.

    Raises:
        TypeError: a function made something else.
    """
    if isinstance(module, nn.Module):
        return clone(module)
    with torch.random.fork_rng():
        seed_all(seed)
        made = module()
    if not isinstance(made, nn.Module):
        raise TypeError(f"module= must be a module or a function that makes one, but it made {made!r}")
    return made


@torch.no_grad()
def _sizes(module: nn.Module, penalty: Penalty) -> dict[str, Any]:
    term = Term(penalty, module)
    used, bound = term.in_use.tensors([s.parameter for s in term.selected])
    weights = dict(zip((s.name for s in term.selected), used, strict=True))
    flat = torch.cat([weight.flatten() for weight in weights.values()]).cpu()
    groups = None
    if hasattr(penalty, "groups"):
        groups = int((bound.sizes(list(weights.values())) != 0).sum())
    return {
        "nonzeros": int((flat != 0).sum()),
        "groups": groups,
        "norm": float(flat.abs().double().norm()),
        "layers": {name: float(weight.norm()) for name, weight in weights.items()},
        "weights": flat.tolist() if len(flat) <= MAX_WEIGHTS and not flat.is_complex() else None,
    }


def seed_all(seed: int) -> None:
    """Seed torch and ``random``."""
    torch.manual_seed(seed)
    random.seed(seed)
