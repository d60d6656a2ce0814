"""Which norm reads a layer alone: by the graph where it can be drawn, else by order; no forward is run."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_reg.groups.behind import norms_behind


class Apart(nn.Module):
    """Norms that are defined after all convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        self.last = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return self.last


class Before(nn.Module):
    """A residual block with its norms in front: the second convolution is read by a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.bn2(self.conv1(self.bn1(x))))


class Branches(nn.Module):
    """What depends on its input, so that only the parts have a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.conv, self.drop, self.bn = (
            Apart(),
            nn.Conv2d(4, 4, 1),
            nn.Dropout(),
            nn.BatchNorm2d(4),
        )
        self.other, self.far = nn.Linear(3, 3), nn.BatchNorm1d(4)  # of another width

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = self.part(x)
        return self.bn(self.drop(self.conv(x)))


class Function(nn.Module):
    """A norm that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(self.conv(x), None, None, training=True)


class TwoReaders(nn.Module):
    """A layer that something else reads as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return self.bn(h) + h


class Lit(LightningModule):
    """A module without a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Apart()


APART = {"conv1": "bn1", "conv2": "bn2"}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Apart(), APART),
        (nn.Sequential(nn.Conv2d(1, 4, 1), Before(), Before()), {f"{i}.conv1": f"{i}.bn2" for i in (1, 2)}),
        (Branches(), {"part.conv1": "part.bn1", "part.conv2": "part.bn2", "conv": "bn"}),
        (Function(), {"conv": "batch_norm"}),
        (TwoReaders(), {}),
        (Lit(), {"net.conv1": "net.bn1", "net.conv2": "net.bn2"}),
        (nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Dropout(), nn.BatchNorm1d(4)), {"0": "3"}),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4)), {"0": "1"}),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(4, 4)), {"0": "1"}),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4)), {}),  # a group's channels are not alone
        (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), {}),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)), {"1": "2"}),
        (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.BatchNorm1d(4)),
            {"0": "1"},
        ),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, nn.Module) else "",
)
def test_what_reads_a_layer_alone(model: nn.Module, expected: dict[str, str]) -> None:
    names = {module: name for name, module in model.named_modules()}
    found = norms_behind(model)
    assert {names[k]: v if isinstance(v, str) else names[v] for k, v in found.items()} == expected


def test_looking_leaves_the_model_and_the_generator_alone() -> None:
    model, generator = Apart().train(), torch.get_rng_state()
    norms_behind(model)
    assert not model.seen
    assert not hasattr(model, "last")
    assert model.training
    assert torch.equal(torch.get_rng_state(), generator)


def test_hooks_are_not_run() -> None:
    """FSDP2's begin the work of a forward, and a user's may count."""
    model, calls = Apart(), []
    model.register_forward_pre_hook(lambda *args: calls.append("before"))
    model.register_forward_hook(lambda *args: calls.append("after"))
    assert norms_behind(model)
    assert not calls
