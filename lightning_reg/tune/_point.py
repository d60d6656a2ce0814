"""One point of a path: a module trained at one strength, from its neighbour or from the start."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from torch.utils.data import TensorDataset

from lightning_reg.apply import DualAveraging, Term
from lightning_reg.penalties import Penalty
from lightning_reg.tune._flat import Flat
from lightning_reg.tune._loss import Loss, batches_of, clone, mean_loss
from lightning_reg.tune._precision import TrainingPrecision
from lightning_reg.tune._quiet import STILL, quiet
from lightning_reg.tune._whole_data import WholeData
from lightning_reg.tune.frame import Row
from lightning_reg.tune.lambda_max import is_linear
from lightning_reg.tune.newton import Newton
from lightning_reg.tune.predictor import predict_

__all__ = ["Chain", "Recipe", "make", "seed_all"]

#: Selected weights up to which a row keeps all of them.
MAX_WEIGHTS = 500


#: Options of a Trainer that make no other solution.
_WITHOUT_EFFECT = {"accelerator", "benchmark", "deterministic", "devices", "enable_progress_bar", "precision"}


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
    warm_start: bool = True

    @property
    def solves(self) -> bool:
        """Whether a point may be solved without a Trainer, whose options are none that could matter."""
        is_path = self.predict and self.warm_start and self.patience is None
        return is_path and set(self.trainer) <= _WITHOUT_EFFECT


class Chain:
    """Points of a path that are trained one after another, on the same data.

    Args:
        recipe: how.
        train: data to train on.
        validation: data to validate on, or None.
    """

    def __init__(self, recipe: Recipe, train: Any, validation: Any) -> None:
        self._recipe, self._train = recipe, train
        self._held_out = None if validation is None else batches_of(validation)
        self._precision = TrainingPrecision(recipe.trainer)
        self._newton: Newton | None = None
        self._last: dict[str, Any] | None = None  # what its module holds
        if recipe.solves:
            with isolate_rng():
                module, loss = self._made()
                term = Term(recipe.penalty, module, in_place=True)
                weights = Flat(module, term, batches_of(train), loss)
                self._newton = Newton.of(weights, recipe.penalty)

    def point(self, strength: float, before: dict[str, Any] | None) -> dict[str, Any]:
        """Train at ``strength``, and return the row, the module's state and the optimizer's.

        Args:
            strength: λ.
            before: what this returned for the neighbour; a cold start where None.
        """
        # of tensors that are read in order, nothing is drawn, and looking after the generators takes a while
        with nullcontext() if isinstance(self._train, TensorDataset) else isolate_rng():
            found = self._solved(self._newton, strength, before) if self._newton is not None else None
        if found is None:
            self._newton = None  # which would not solve the next one either
            with isolate_rng():
                found = self._trained(strength, before)
        self._last = found
        return found

    def _made(self) -> tuple[Any, Loss]:
        module = make(self._recipe.module, self._recipe.seed)
        self._precision.convert_(module)
        return module, self._precision.loss(module)

    def _solved(
        self, newton: Newton, strength: float, before: dict[str, Any] | None
    ) -> dict[str, Any] | None:
        """The solution, without a Trainer; None where it is not found."""
        weights = newton.weights
        if before is not None and before is not self._last:
            weights.module.load_state_dict(before["module"])
        taken, goal = weights.gradients, self._recipe.tolerance * strength
        solution = newton.solve_(strength, goal)
        if solution.residual > goal:
            return None
        row = self._row(weights.module, weights.term, weights.loss, strength, solution.loss)
        row |= {"gradients": weights.gradients - taken, "residual": solution.residual, "converged": True}
        return {"row": row, "module": _state(weights.module), "optimizer": {}}

    def _trained(self, strength: float, before: dict[str, Any] | None) -> dict[str, Any]:
        from lightning.pytorch import Trainer

        from lightning_reg.callbacks import PenaltyCallback
        from lightning_reg.tune._path_point import PathPoint, rescaled

        recipe = self._recipe
        penalty = replace(recipe.penalty, strength=strength)  # type: ignore[type-var]
        batches, held_out = batches_of(self._train, recipe.batch_size), self._held_out
        module, loss = self._made()
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
        row = self._row(module, Term(penalty, module), loss, strength, mean_loss(module, batches, loss))
        row |= {
            "epochs": runner.current_epoch,
            "best_epoch": point.best_epoch,
            "steps": point.steps,
            "gradients": gradients + (0 if whole is None else whole.gradients),
            "residual": point.residual,
            "converged": point.converged,
        }
        return {"row": row, "module": _state(module), "optimizer": point.state}

    def _row(self, module: Any, term: Term, loss: Loss, strength: float, train_loss: float) -> Row:
        """What is known of a point, as if there had been no training."""
        row: Row = {
            "strength": strength,
            "train_loss": train_loss,
            "validation_loss": None if self._held_out is None else mean_loss(module, self._held_out, loss),
            "validation_error": None,
            "metric": None,
            **_sizes(term),
            "epochs": 0,
            "best_epoch": None,
            "steps": 0,
        }
        if self._held_out is not None and self._recipe.metric is not None:
            row["metric"] = float(self._recipe.metric(module, self._precision.inputs(self._held_out)))
        return row


def _state(module: nn.Module) -> dict[str, Any]:
    return {name: value.cpu().clone() for name, value in module.state_dict().items()}


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
def _sizes(term: Term) -> dict[str, Any]:
    used, bound = term.in_use.tensors([s.parameter for s in term.selected])
    weights = dict(zip((s.name for s in term.selected), used, strict=True))
    flat = torch.cat([weight.flatten() for weight in weights.values()]).cpu()
    groups = None
    if hasattr(term.penalty, "groups"):
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
