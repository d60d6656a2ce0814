"""The regularization path: one model at many strengths, each started from its neighbour."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset

from lightning_reg.apply import Term
from lightning_reg.penalties import Penalty
from lightning_reg.tune._loss import Data, batches_of, clone, loss_of, mean_loss
from lightning_reg.tune._quiet import quiet
from lightning_reg.tune.frame import PathFrame, Row
from lightning_reg.tune.lambda_max import is_linear, lambda_max

__all__ = ["regularization_path"]

#: How independent pieces of a path are run: ``map``, or :func:`~lightning_reg.tune.ray_map`.
Map: TypeAlias = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
#: Selected weights up to which a row keeps all of them.
MAX_WEIGHTS = 500


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
    extrapolate: bool | None = None,
    folds: int | None = None,
    batch_size: int | None = None,
    max_epochs: int = 1000,
    tolerance: float = 1e-4,
    metric: Callable[[Any, Any], float] | None = None,
    directory: str | Path | None = None,
    seed: int = 0,
    trainer: dict[str, Any] | None = None,
    map: Map = map,
    on_point: Callable[[Row], None] | None = None,
) -> PathFrame:
    r"""Train ``module`` at many strengths of ``penalty`` with ``apply="proximal"``: a row for each.

    A warm start takes over weights and optimizer state of the point before, the moments rescaled by the ratio
    of the strengths. Where the model is linear it also extrapolates, :math:`w_k + (\lambda_{k+1} - \lambda_k)
    (w_k - w_{k-1})/(\lambda_k - \lambda_{k-1})`, which is exact for a lasso whose support does not change.

    A point ends when the residual of the proximal gradient step is at most ``tolerance`` times the strength,
    or after ``max_epochs``. The residual is exact for full-batch training; with smaller batches it is taken
    from the mean of the epoch's gradients, whose noise is mostly larger than the tolerance.

    Args:
        module: a LightningModule, which is copied for each point, or a function that makes one.
        penalty: which function, on what; its strength is not looked at.
        data: to train on: a data set, or batches.
        strengths: in any order; ``points`` log-spaced from ``lambda_max`` to ``ratio`` times it where None.
        validation: to validate on.
        points: how many strengths.
        ratio: of the smallest strength to the largest.
        warm_start: ``"down"`` from the largest strength, as glmnet does; ``"up"`` from the smallest, which
            prunes a dense model; None trains each point from the start.
        extrapolate: whether a warm start does; where None, if the model is one ``nn.Linear``.
        folds: K of a cross-validation: K more paths, on K − 1 parts each. ``data`` must be a data set.
        batch_size: of training on a data set; all at once where None.
        max_epochs: of each point.
        tolerance: of the residual, as a share of the strength.
        metric: ``(module, batches) -> number``, measured on the validation data.
        directory: where finished points are kept; a path that was stopped goes on from them.
        seed: of every point, and of the folds.
        trainer: options of the Trainer; accelerator, precision and the like.
        map: runs independent pieces: the folds, or every point of a cold start. The builtin, an executor's,
            or ``ray_map(workers=2)``.
        on_point: called with the row of each point of the whole path when it is finished.

    Returns:
        A frame with ``best()``, ``plot()``, ``to_csv()`` and ``to_pandas()``. ``validation_loss`` of a
        cross-validation is the mean over the folds, and ``validation_error`` its standard error.

    Raises:
        ValueError: strengths that are not positive, or a directory that holds another path.

    References:
        Friedman, Hastie and Tibshirani, *Regularization Paths for Generalized Linear Models via Coordinate
        Descent*, Journal of Statistical Software 33(1), 2010; Rosset, *Following Curved Regularized
        Optimization Solution Paths*, NeurIPS 2004.
    """
    if warm_start not in ("down", "up", None):
        raise ValueError(f"warm_start={warm_start!r} is unknown; use 'down', 'up' or None")
    first = _make(module, seed)
    if strengths is None:
        top = lambda_max(first, penalty, batches_of(data, batch_size))
        if top == 0.0:
            raise ValueError("lambda_max is 0: the selected weights do nothing for the loss; give strengths=")
        strengths = _log_spaced(top, ratio, points)
    strengths = sorted(_positive(strengths), reverse=warm_start != "up")
    job = _Path(
        module=module,
        penalty=penalty,
        strengths=strengths,
        warm=warm_start is not None,
        extrapolate=is_linear(first) if extrapolate is None else extrapolate,
        max_epochs=max_epochs,
        batch_size=batch_size,
        tolerance=tolerance,
        metric=metric,
        seed=seed,
        trainer=trainer or {},
        directory=None if directory is None else Path(directory),
        on_point=on_point,
    )
    job.claim(warm_start, folds)
    chains = {"path": (data, validation)}
    if folds is not None:
        chains |= {f"fold{k}": split for k, split in enumerate(_folds(data, folds, seed))}
    pieces: list[tuple[str, Any, Any, list[int]]] = []
    for name, (train, held_out) in chains.items():
        whole = list(range(len(strengths)))
        pieces += [(name, train, held_out, part) for part in ([whole] if job.warm else [[i] for i in whole])]
    results: dict[str, list[Row]] = {name: [] for name in chains}
    for (name, *_), rows in zip(pieces, map(partial(_run_chain, job), pieces), strict=True):
        results[name] += rows
    rows = results.pop("path")
    return PathFrame(_with_folds(rows, list(results.values())) if results else rows)


@dataclass(frozen=True)
class _Path:
    """All that a point needs to know; it travels to workers."""

    module: Any
    penalty: Penalty
    strengths: list[float]
    warm: bool
    extrapolate: bool
    max_epochs: int
    batch_size: int | None
    tolerance: float
    metric: Callable[[Any, Any], float] | None
    seed: int
    trainer: dict[str, Any]
    directory: Path | None
    on_point: Callable[[Row], None] | None

    def claim(self, warm_start: str | None, folds: int | None) -> None:
        """Write down what the directory is for, or refuse one that is for something else."""
        if self.directory is None:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        penalty = replace(self.penalty, strength=0.0)  # type: ignore[type-var]
        about = {
            "penalty": repr(penalty) if " at 0x" not in repr(penalty) else type(penalty).__name__,
            "strengths": self.strengths,
            "warm_start": warm_start,
            "extrapolate": self.extrapolate,
            "folds": folds,
            "batch_size": self.batch_size,
            "max_epochs": self.max_epochs,
            "tolerance": self.tolerance,
            "seed": self.seed,
        }
        file = self.directory / "path.json"
        if not file.exists():
            _write(file, lambda part: part.write_text(json.dumps(about, indent=1)))
        elif (there := json.loads(file.read_text())) != about:
            odd = [name for name in about if there.get(name) != about[name]]
            raise ValueError(
                f"{self.directory} holds another path: {', '.join(odd)} differ; give another directory, or "
                "the same arguments"
            )


def _run_chain(path: _Path, piece: tuple[str, Any, Any, list[int]]) -> list[Row]:
    """Train some points of one chain in order, leaving out what is in the directory."""
    name, train, validation, indices = piece
    rows: list[Row] = []
    states: list[dict[str, Any]] = []  # of the last two points
    for index in indices:
        file = path.directory / f"{name}-{index:04d}.pt" if path.directory is not None else None
        if file is not None and file.exists():
            saved = torch.load(file, weights_only=True)
        else:
            saved = _train_point(path, path.strengths[index], states, train, validation)
            if file is not None:
                _write(file, partial(torch.save, saved))
        states = [*states[-1:], saved] if path.warm else []
        rows.append(saved["row"])
        if name == "path" and path.on_point is not None:
            path.on_point(saved["row"])
    return rows


def _train_point(
    path: _Path, strength: float, states: list[dict[str, Any]], train: Any, validation: Any
) -> dict[str, Any]:
    from lightning.pytorch import Trainer
    from lightning.pytorch.utilities.seed import isolate_rng

    from lightning_reg.callbacks import PenaltyCallback
    from lightning_reg.callbacks._path_point import PathPoint, rescaled

    penalty = replace(path.penalty, strength=strength)  # type: ignore[type-var]
    with isolate_rng():
        module = _make(path.module, path.seed)
        _seed(path.seed)
        optimizer_state = None
        if states:
            last = states[-1]
            module.load_state_dict(last["module"])
            optimizer_state = rescaled(last["optimizer"], strength / last["row"]["strength"])
            if path.extrapolate and len(states) == 2:
                _extrapolate_(module, states, strength)
        point = PathPoint(penalty, path.tolerance, optimizer_state)
        options = {
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "max_epochs": path.max_epochs,
            "check_val_every_n_epoch": None,
            "limit_val_batches": 0,
            "log_every_n_steps": 2**31,
            **path.trainer,
        }
        options["callbacks"] = [
            *options.get("callbacks", []),
            PenaltyCallback(penalty, apply="proximal", log=False),
            point,
        ]
        batches = batches_of(train, path.batch_size)
        with quiet():
            runner = Trainer(**options)
            runner.fit(module, batches)
        loss = loss_of(module, None)
        row: Row = {
            "strength": strength,
            "train_loss": mean_loss(module, batches, loss),
            "validation_loss": None,
            "validation_error": None,
            "metric": None,
            **_sizes(module, penalty),
            "epochs": runner.current_epoch,
            "steps": point.steps,
            "residual": point.residual,
            "converged": point.converged,
        }
        if validation is not None:
            held_out = batches_of(validation)
            row["validation_loss"] = mean_loss(module, held_out, loss)
            if path.metric is not None:
                row["metric"] = float(path.metric(module, held_out))
    state = {name: value.cpu().clone() for name, value in module.state_dict().items()}
    return {"row": row, "module": state, "optimizer": point.state}


@torch.no_grad()
def _sizes(module: nn.Module, penalty: Penalty) -> dict[str, Any]:
    term = Term(penalty, module)
    weights = {s.name: s.parameter for s in term.selected}
    flat = torch.cat([weight.flatten().abs() for weight in weights.values()]).cpu()
    groups = None
    bound = getattr(term, "bound", None)
    if bound is not None and hasattr(penalty, "groups"):
        groups = int((bound.sizes(list(weights.values())) != 0).sum())
    signed = torch.cat([weight.flatten() for weight in weights.values()]).cpu()
    return {
        "nonzeros": int((flat != 0).sum()),
        "groups": groups,
        "norm": float(flat.double().norm()),
        "layers": {name: float(weight.norm()) for name, weight in weights.items()},
        "weights": signed.tolist() if len(signed) <= MAX_WEIGHTS and not signed.is_complex() else None,
    }


@torch.no_grad()
def _extrapolate_(module: nn.Module, states: Sequence[dict[str, Any]], strength: float) -> None:
    """Follow the line through the last two solutions, but through no zero."""
    before, last = states
    there, here = before["row"]["strength"], last["row"]["strength"]
    share = (strength - here) / (here - there)
    for name, parameter in module.named_parameters():
        value: Tensor = last["module"][name]
        ahead = value + share * (value - before["module"][name])
        same = (ahead.sgn() == value.sgn()) & (value != 0)
        parameter.copy_(torch.where(same, ahead, value if parameter.dim() < 2 else torch.zeros_like(value)))


def _with_folds(rows: list[Row], folds: list[list[Row]]) -> list[Row]:
    """The whole path's rows, with the mean over the folds of what was held out."""
    for index, row in enumerate(rows):
        losses = [fold[index]["validation_loss"] for fold in folds]
        mean = math.fsum(losses) / len(losses)
        variance = math.fsum((loss - mean) ** 2 for loss in losses) / (len(losses) - 1)
        metrics = [fold[index]["metric"] for fold in folds]
        row |= {
            "validation_loss": mean,
            "validation_error": math.sqrt(variance / len(losses)),
            "metric": None if None in metrics else math.fsum(metrics) / len(metrics),
        }
    return rows


def _folds(data: Any, count: int, seed: int) -> list[tuple[Any, Any]]:
    if not isinstance(data, Dataset) or not hasattr(data, "__len__"):
        raise ValueError(
            f"folds={count} needs a data set to divide, not {type(data).__name__}; give a Dataset"
        )
    size = len(data)
    if not 2 <= count <= size:
        raise ValueError(f"folds={count} is out of range for {size} samples; give 2 or more, 5 as a rule")
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    parts = order.tensor_split(count)
    return [
        (_subset(data, torch.cat([*parts[:k], *parts[k + 1 :]])), _subset(data, parts[k]))
        for k in range(count)
    ]


def _subset(data: Dataset[Any], chosen: Tensor) -> Any:
    if isinstance(data, TensorDataset):
        return TensorDataset(*(tensor[chosen] for tensor in data.tensors))
    return Subset(data, chosen.tolist())


def _make(module: Any, seed: int) -> Any:
    """A module of its own, the same each time."""
    if isinstance(module, nn.Module):
        return clone(module)
    with torch.random.fork_rng():
        _seed(seed)
        made = module()
    if not isinstance(made, nn.Module):
        raise TypeError(f"module= is to be a module or a function that makes one, and it made {made!r}")
    return made


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)


def _log_spaced(top: float, ratio: float, points: int) -> list[float]:
    if points < 2 or not 0.0 < ratio < 1.0:
        raise ValueError(
            f"points={points} and ratio={ratio} are no path; give 2 or more and one within (0, 1)"
        )
    return [top * ratio ** (i / (points - 1)) for i in range(points)]


def _positive(strengths: Sequence[float]) -> list[float]:
    """Return positive, distinct strengths as floats."""
    found = sorted({float(strength) for strength in strengths})
    if not found or found[0] <= 0.0 or found[-1] == float("inf"):
        raise ValueError(f"strengths={list(strengths)!r} are not all finite and above 0; give some that are")
    return found


def _write(file: Path, write: Callable[[Path], object]) -> None:
    """Write to a neighbour and rename, so that a file is either whole or not there."""
    part = file.with_suffix(".part")
    write(part)
    part.replace(file)
