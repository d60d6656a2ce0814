"""Stability selection: which weights a path chooses again and again on halves of the data."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_reg.apply import Term
from lightning_reg.penalties import Penalty
from lightning_reg.tune._checks import check_counts, check_module, check_penalty, check_trainer
from lightning_reg.tune._directory import PathDirectory
from lightning_reg.tune._folds import halves, samples
from lightning_reg.tune._loss import Data, batches_of
from lightning_reg.tune._point import Chain, Recipe, make
from lightning_reg.tune.lambda_max import is_linear
from lightning_reg.tune.path import Map, about, below_lambda_max, check_path

__all__ = ["Stability", "check_stability", "stability_selection"]


@dataclass(frozen=True)
class Stability:
    r"""How often each weight or group was selected, at every strength of a path.

    Args:
        strengths: the largest first.
        names: of the weights or groups.
        frequencies: ``(strengths, units)``: the share of subsamples that select the unit at that strength.
        selected: for each strength, how many units a subsample has selected there or before, on average.
        subsamples: how many there were.

    >>> table = torch.tensor([[0.875, 0.125, 0.0], [1.0, 0.5, 0.5]])
    >>> found = Stability([0.2, 0.1], ["a", "b", "c"], table, [1.0, 2.0], 8)
    >>> round(found.bound(0.75, strength=0.2), 2)  # 1² / (0.5 · 3)
    0.67
    >>> found.stable(0.75, false_discoveries=1.0)  # strength 0.1 would give 2.67
    {'a': 0.875}
    """

    strengths: list[float]
    names: list[str]
    frequencies: Tensor
    selected: list[float]
    subsamples: int

    def bound(self, threshold: float = 0.75, *, strength: float | None = None) -> float:
        r"""Return the bound on the expected number of false discoveries, :math:`q^2 / ((2\pi - 1)\,p)`.

        π is the threshold, p the number of units, and q how many of them a subsample selects on average,
        anywhere on the path down to ``strength``. The bound holds if what is irrelevant is exchangeable, and
        if the penalty selects relevant units at least as often as a random guess would.

        Args:
            threshold: the frequency from which a unit is stable, above 0.5 and at most 1.
            strength: where the path ends; its smallest strength where None.

        Raises:
            ValueError: a threshold that is out of range, or a path that does not reach up to the strength.
        """
        if not 0.5 < threshold <= 1.0:
            raise ValueError(
                f"threshold={threshold} is out of range; give a frequency above 0.5 and up to 1, 0.6 to 0.9 "
                "as a rule"
            )
        last = self.strengths[-1] if strength is None else strength
        chosen = [count for at, count in zip(self.strengths, self.selected, strict=True) if at >= last]
        if not chosen:
            raise ValueError(
                f"strength={strength} is above the path, which begins at {self.strengths[0]:.4g}"
            )
        return max(chosen) ** 2 / ((2.0 * threshold - 1.0) * len(self.names))

    def end(self, threshold: float = 0.75, false_discoveries: float = 1.0) -> int:
        """Return how many strengths, the largest first, keep the bound at or below ``false_discoveries``."""
        allowed = [self.bound(threshold, strength=at) <= false_discoveries for at in self.strengths]
        return allowed.index(False) if False in allowed else len(allowed)

    def stable(self, threshold: float = 0.75, false_discoveries: float = 1.0) -> dict[str, float]:
        """Return the stable units with their frequencies, the highest first.

        A unit is stable if its frequency reaches ``threshold`` at some strength of the path. The path ends
        where :meth:`bound` would exceed ``false_discoveries``.

        Args:
            threshold: of the frequency, above 0.5 and at most 1.
            false_discoveries: the number of false ones that you accept in expectation.

        Raises:
            ValueError: a threshold that is out of range, or a path whose first strength selects too much.
        """
        end = self.end(threshold, false_discoveries)
        if end == 0:
            raise ValueError(self._too_much(false_discoveries))
        highest = self.frequencies[:end].amax(0)
        order = torch.argsort(highest, descending=True, stable=True)
        return {self.names[i]: float(highest[i]) for i in order.tolist() if highest[i] >= threshold}

    def _too_much(self, false_discoveries: float) -> str:
        return (
            f"a subsample selects {self.selected[0]:.3g} of {len(self.names)} at the largest strength, too "
            f"many for false_discoveries={false_discoveries}; give larger strengths, or accept more"
        )

    def __str__(self) -> str:
        if self.end() == 0:
            return self._too_much(1.0)
        stable = self.stable()
        last = self.strengths[self.end() - 1]
        width = max([4, *map(len, stable)])
        lines = [f"{'unit':<{width}}  frequency"]
        lines += [f"{name:<{width}}  {frequency:9.2f}" for name, frequency in stable.items()]
        lines.append(
            f"{len(stable)} of {len(self.names)} are stable: 75 % or more of {self.subsamples} subsamples "
            f"select them at a strength of {last:.3g} or above. Expect at most "
            f"{self.bound(strength=last):.2g} of them to be false."
        )
        return "\n".join(lines)

    def to_csv(self, path: str | Path) -> None:
        """Write a line for each unit: its name, and its frequency at every strength."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["unit", *(f"{strength:.6g}" for strength in self.strengths)])
            for name, column in zip(self.names, self.frequencies.T.tolist(), strict=True):
                writer.writerow([name, *(f"{frequency:.6g}" for frequency in column)])

    def plot(self, threshold: float = 0.75, false_discoveries: float = 1.0) -> Any:
        """Return a ``matplotlib`` figure: each unit's frequency against the strength, stable ones in colour.

        Args:
            threshold: of :meth:`stable`.
            false_discoveries: of :meth:`stable`.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        from lightning_reg.tune._plot import plot_stability

        return plot_stability(self, threshold, false_discoveries)


def stability_selection(
    module: nn.Module | Callable[[], nn.Module],
    penalty: Penalty,
    data: Data,
    strengths: Sequence[float] | None = None,
    *,
    subsamples: int = 100,
    points: int = 20,
    ratio: float = 0.1,
    names: Sequence[str] | None = None,
    warm_start: Literal["down", "up"] | None = "down",
    batch_size: int | None = None,
    max_epochs: int = 1000,
    tolerance: float = 1e-4,
    directory: str | Path | None = None,
    seed: int = 0,
    trainer: dict[str, Any] | None = None,
    map: Map = map,
    on_subsample: Callable[[int], None] | None = None,
) -> Stability:
    r"""Train the path of ``penalty`` on many random halves of the data, and count what they select.

    One fit of the lasso selects noise beside signal, and a fit on other data selects other noise. What most
    halves of the data select is stable. :meth:`Stability.stable` returns it, and bounds how many false
    discoveries to expect: :math:`E[V] \le q^2 / ((2\pi - 1)\,p)`.

    Args:
        module: a LightningModule, which is copied for each point, or a function that makes one.
        penalty: which function, on what, with ``apply="proximal"``; its strength is ignored.
        data: a data set, or a ``DataLoader`` of one.
        strengths: in any order; where None, ``points`` log-spaced from √2 ``lambda_max``, since the gradients
            of half the data are noisier, to ``ratio`` times that.
        subsamples: how many halves, drawn without replacement.
        points: how many strengths.
        ratio: of the smallest strength to the largest.
        names: of the weights or groups, in the order in which the module holds them; by default the
            parameter's name with the index.
        warm_start: as in :func:`regularization_path`.
        batch_size: of training on a data set; all at once where None.
        max_epochs: of each point.
        tolerance: of the residual, as a share of the strength; a point that reaches it ends.
        directory: where finished subsamples are kept; a selection that was stopped goes on from them, and one
            with more subsamples trains only those that are new.
        seed: of the draws, and of every point.
        trainer: options of the Trainer.
        map: runs the subsamples: the builtin, an executor's, or ``ray_map(workers=2)``.
        on_subsample: called with the number of each finished subsample, in the process that trained it.

    Raises:
        ValueError: options that make no path, or a directory that holds another selection.
        TypeError: the module cannot be trained.

    References:
        Meinshausen and Bühlmann, *Stability Selection*, Journal of the Royal Statistical Society B 72(4),
        2010, Theorem 1.
    """
    check_stability(strengths, points, ratio, warm_start, subsamples)
    check_counts(max_epochs=max_epochs)
    check_module(module, "stability_selection")
    check_penalty(penalty, "stability_selection")
    check_trainer(trainer)
    samples(data, "stability_selection")
    first = make(module, seed)
    check_module(first, "stability_selection")
    if strengths is None:
        batches = batches_of(data, batch_size)
        below = below_lambda_max(first, penalty, batches, points, ratio, trainer or {})
        strengths = [math.sqrt(2.0) * strength for strength in below]
    strengths = sorted({float(strength) for strength in strengths}, reverse=True)
    known = _names(first, penalty)
    if names is not None and len(names) != len(known):
        raise ValueError(
            f"names= has {len(names)} names for {len(known)} weights or groups; give one for each"
        )
    recipe = Recipe(module, penalty, is_linear(first), batch_size, max_epochs, tolerance, seed, trainer or {})
    recipe = replace(recipe, warm_start=warm_start is not None)
    kept = PathDirectory(None if directory is None else Path(directory), "selection")
    kept.claim(about(recipe, strengths, warm_start))
    run = partial(_run, recipe, strengths, warm_start, kept, on_subsample)
    supports = list(map(run, list(enumerate(halves(data, subsamples, seed)))))
    met = [support.cummax(0).values.sum(1) for support in (part.to(torch.uint8) for part in supports)]
    return Stability(
        strengths,
        list(known if names is None else names),
        torch.stack([support.float() for support in supports]).mean(0),
        torch.stack(met).double().mean(0).tolist(),
        subsamples,
    )


def check_stability(
    strengths: Sequence[float] | None, points: int, ratio: float, warm_start: str | None, subsamples: int
) -> None:
    """Refuse options of :func:`stability_selection` that make no path, whatever the data.

    Raises:
        ValueError: one of them does not.
    """
    check_path(strengths, points, ratio, warm_start, None, False, None)
    if subsamples < 2:
        raise ValueError(f"subsamples={subsamples} is too few to count by; give 2 or more, 100 as a rule")


def _run(
    recipe: Recipe,
    strengths: Sequence[float],
    warm_start: str | None,
    kept: PathDirectory,
    on_subsample: Callable[[int], None] | None,
    piece: tuple[int, Any],
) -> Tensor:
    """Return what one subsample selects, ``(strengths, units)``, or take what is kept."""
    index, train = piece
    found = kept.load("subsample", index)
    if found is None:
        order = range(len(strengths)) if warm_start != "up" else reversed(range(len(strengths)))
        supports: dict[int, Tensor] = {}
        before, chain = None, Chain(recipe, train, None)
        for place in order:
            point = chain.point(strengths[place], before)
            before = point if warm_start is not None else None
            module = make(recipe.module, recipe.seed)
            module.load_state_dict(point["module"])
            supports[place] = torch.cat(
                [(sizes != 0).flatten() for _, sizes in _units(module, recipe.penalty)]
            )
        found = {"selected": torch.stack([supports[place] for place in range(len(strengths))])}
        kept.save("subsample", index, found)
    if on_subsample is not None:
        on_subsample(index)
    selected: Tensor = found["selected"]
    return selected


def _units(module: nn.Module, penalty: Penalty) -> list[tuple[str, Tensor]]:
    """Return each tensor's name with the sizes of its weights, or of its groups."""
    term = Term(penalty, module)
    if hasattr(penalty, "groups"):
        return term.sizes_by_layer()
    return [(s.name, s.parameter.detach().cpu()) for s in term.selected if s.parameter.requires_grad]


def _names(module: nn.Module, penalty: Penalty) -> list[str]:
    found = []
    for name, sizes in _units(module, penalty):
        places = torch.cartesian_prod(*(torch.arange(length) for length in sizes.shape)).tolist()
        found += [f"{name}{[place] if isinstance(place, int) else place}" for place in places]
    return found
