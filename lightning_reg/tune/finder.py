"""A short search for a strength or a dropout rate: one run, swept up and down again."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lightning_reg.apply import Apply, Metric
from lightning_reg.penalties import Penalty
from lightning_reg.tune._loss import Data, batches_of, clone, loss_of, mean_loss
from lightning_reg.tune._quiet import quiet

__all__ = ["Sweep", "find_dropout", "find_strength"]


@dataclass
class Sweep:
    """The validation loss along a sweep up and down again.

    Attributes:
        kind: what was swept.
        up: (value, validation loss) on the way up.
        down: the same on the way down, again from the smallest value.

    >>> Sweep("strength", [(0.01, 2.0), (0.1, 1.5), (1.0, 1.0)], [(0.01, 1.0), (0.1, 1.5), (1.0, 2.0)]).suggestion()
    0.1
    """  # noqa: E501

    kind: Literal["strength", "rate"]
    up: list[tuple[float, float]] = field(default_factory=list)
    down: list[tuple[float, float]] = field(default_factory=list)

    def suggestion(self) -> float:
        """Return the middle between the best values on the way up and on the way down.

        Weights follow a strength with a delay, so the way up finds its best too late and the way down too
        early, by about as much. The middle is the geometric mean of strengths and the mean of rates.

        Raises:
            ValueError: no finite loss was seen.
        """
        best = []
        for way in (self.up, self.down):
            finite = [(loss, value) for value, loss in way if math.isfinite(loss)]
            if not finite:
                raise ValueError("the sweep saw no finite loss; lower highest= or the learning rate")
            best.append(min(finite)[1])
        return math.sqrt(best[0] * best[1]) if self.kind == "strength" else 0.5 * (best[0] + best[1])

    def to_csv(self, path: str | Path) -> None:
        """Write value, and validation loss on both ways."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([self.kind, "validation_loss_up", "validation_loss_down"])
            writer.writerows([v, u, d] for (v, u), (_, d) in zip(self.up, self.down, strict=True))

    def plot(self) -> Any:
        """Return a ``matplotlib`` figure of both ways with the suggestion.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        from lightning_reg.tune._plot import new_figure

        figure, axes = new_figure(1)
        for way, label in ((self.up, "up"), (self.down, "down")):
            axes.plot(*zip(*way, strict=True), marker="o", markersize=3, linewidth=1.2, label=label)
        suggestion = self.suggestion()
        axes.axvline(suggestion, color="C3", linestyle="--", label=f"suggestion: {suggestion:.3g}")
        if self.kind == "strength":
            axes.set_xscale("log")
        axes.set_xlabel("strength λ" if self.kind == "strength" else "dropout rate")
        axes.set_ylabel("validation loss")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        return figure


def find_strength(
    module: nn.Module,
    penalty: Penalty,
    data: Data,
    validation: Data,
    *,
    lowest: float = 1e-5,
    highest: float = 1.0,
    points: int = 20,
    warmup: int = 40,
    epochs: int = 2,
    apply: Apply = "gradient",
    metric: Metric = "optimizer",
    batch_size: int | None = None,
    seed: int = 0,
    trainer: dict[str, Any] | None = None,
) -> Sweep:
    """Sweep the strength of ``penalty`` up and down in one short run of a copy of ``module``.

    The copy has its own Trainer, optimizer and loops, and the random generators are put back: nothing of the
    module, or of a run that it is in, changes. It tells the order of magnitude; a regularization path, or a
    study, tells more for more.

    Args:
        module: a LightningModule, which is copied.
        penalty: which function, on what; its strength is not looked at.
        data: to train on.
        validation: to tell the strengths apart.
        lowest: of the strengths, where it does next to nothing.
        highest: of the strengths, where it ruins the model.
        points: how many strengths, log-spaced.
        warmup: epochs at the lowest strength before the sweep: long enough for overfitting to begin.
        epochs: at each strength, on each way.
        apply: how the penalty acts.
        metric: of ``apply="proximal"``.
        batch_size: of training on a data set; all at once where None.
        seed: of the run.
        trainer: options of the Trainer.

    Raises:
        ValueError: no range of strengths.
    """
    if not 0.0 < lowest < highest < math.inf or points < 3:
        raise ValueError(
            f"lowest={lowest}, highest={highest}, points={points} make no sweep; give 0 < lowest < highest, "
            "and 3 or more points"
        )
    values = [lowest * (highest / lowest) ** (i / (points - 1)) for i in range(points)]
    level = _Level(lowest)
    from lightning_reg.callbacks import PenaltyCallback

    swept = replace(penalty, strength=level)  # type: ignore[type-var]
    penalise = PenaltyCallback(swept, apply=apply, metric=metric, log=False)
    return _sweep(
        "strength",
        module,
        lambda copied: level.set,
        values,
        [penalise],
        (data, validation, batch_size, warmup, epochs, seed, trainer),
    )


def find_dropout(
    module: nn.Module,
    data: Data,
    validation: Data,
    *,
    highest: float = 0.8,
    points: int = 17,
    warmup: int = 40,
    epochs: int = 2,
    batch_size: int | None = None,
    seed: int = 0,
    trainer: dict[str, Any] | None = None,
) -> Sweep:
    """Sweep the rate of every dropout of a copy of ``module``, from 0 to ``highest`` and back.

    Args:
        module: a LightningModule with dropout sites, which is copied.
        data: to train on.
        validation: to tell the rates apart.
        highest: of the rates.
        points: how many rates, evenly spaced.
        warmup: epochs without dropout before the sweep.
        epochs: at each rate, on each way.
        batch_size: of training on a data set; all at once where None.
        seed: of the run.
        trainer: options of the Trainer.

    Raises:
        ValueError: no range of rates, or the module has no dropout site.
    """
    if not 0.0 < highest < 1.0 or points < 3:
        raise ValueError(f"highest={highest}, points={points} make no sweep; give 0 < highest < 1, 3 points")

    def setter(copied: nn.Module) -> Callable[[float], None]:
        from lightning_reg.dropout import find_sites

        sites = find_sites(copied)
        if not sites:
            raise ValueError(
                f"{type(copied).__name__} has no dropout site; add nn.Dropout where it is to drop"
            )

        def set_all(rate: float) -> None:
            for site in sites:
                site.set(rate)

        return set_all

    values = [highest * i / (points - 1) for i in range(points)]
    how = (data, validation, batch_size, warmup, epochs, seed, trainer)
    return _sweep("rate", module, setter, values, [], how)


class _Level:
    """A strength that the sweep sets."""

    def __init__(self, value: float) -> None:
        self.value = value

    def set(self, value: float) -> None:
        self.value = value

    def __call__(self, step: int, total_steps: int | None) -> float:
        return self.value


def _sweep(
    kind: Literal["strength", "rate"],
    module: nn.Module,
    setter: Callable[[nn.Module], Callable[[float], None]],
    values: Sequence[float],
    callbacks: list[Any],
    how: tuple[Any, ...],
) -> Sweep:
    from lightning.pytorch import Trainer
    from lightning.pytorch.utilities.seed import isolate_rng

    from lightning_reg.callbacks._level_by_level import LevelByLevel

    data, validation, batch_size, warmup, epochs, seed, options = how
    with isolate_rng(), quiet():
        torch.manual_seed(seed)
        copied = clone(module)
        held_out, loss = batches_of(validation), loss_of(copied, None)
        levels = LevelByLevel(
            [*values, *reversed(values)],
            setter(copied),
            lambda: mean_loss(copied, held_out, loss),
            warmup=warmup,
            epochs=epochs,
        )
        runner = Trainer(
            **{
                "logger": False,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "limit_val_batches": 0,
                "log_every_n_steps": 2**31,
                **(options or {}),
                "max_epochs": warmup + 2 * len(values) * epochs,
                "callbacks": [*(options or {}).get("callbacks", []), *callbacks, levels],
            }
        )
        runner.fit(copied, batches_of(data, batch_size))
    half = len(values)
    seen = list(zip(levels.values, levels.losses, strict=False))
    return Sweep(kind, seen[:half], seen[half:][::-1])
