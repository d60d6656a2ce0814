"""A penalty as the documentation writes it: told which tensor it acts on, the same in every way."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_reg import attach

PAGE = Path(__file__).parents[2] / "docs" / "four_questions.md"


@pytest.fixture
def deeper() -> Any:
    (block,) = re.findall(r"```python\n(from dataclasses.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {"__name__": __name__}
    exec(block, names)
    return names["Deeper"]


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()


@pytest.mark.parametrize("apply", ["gradient", "decoupled"])
def test_the_documented_penalty_in_a_loop(deeper: Any, apply: Any) -> None:
    x = torch.randn(5, 4, dtype=torch.float64)
    ours, theirs = model(), model()
    first = torch.optim.SGD(ours.parameters(), lr=0.1)
    second = torch.optim.SGD(theirs.parameters(), lr=0.1)
    attach(ours, first, deeper(0.3), apply=apply)
    for _ in range(3):
        first.zero_grad()
        ours(x).square().mean().backward()
        first.step()
        second.zero_grad()
        loss = theirs(x).square().mean()
        for i, layer in enumerate((theirs[0], theirs[2]), 1):
            loss = loss + 0.3 * i * layer.weight.square().sum() / 2
        loss.backward()
        second.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_the_documented_penalty_in_the_loss(deeper: Any) -> None:
    net = model()
    expected = sum(0.3 * i * layer.weight.square().sum() / 2 for i, layer in enumerate((net[0], net[2]), 1))
    torch.testing.assert_close(deeper(0.3)(net), expected)
