"""Four kinds of networks for images of one channel, small enough to train in a minute on one core."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["NETWORKS"]


def conv_net(side: int) -> nn.Module:
    """Convolutions with batch normalization."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * (side // 4) ** 2, 10)),
    )


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.down: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.down = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum, above zero."""
        h = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(h)) + self.down(x))


def resnet(side: int, width: int = 16) -> nn.Module:
    """The shape of ResNet-18: two blocks of each of four widths."""
    layers: list[nn.Module] = [
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    for i in range(4):
        inputs, outputs = width * 2 ** max(i - 1, 0), width * 2**i
        layers += [Block(inputs, outputs, 1 + (i > 0)), Block(outputs, outputs, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10))


class Encoder(nn.Module):
    """Rows of an image as tokens, two encoder layers, the mean of what comes out."""

    def __init__(self, side: int, width: int = 64) -> None:
        super().__init__()
        self.into = nn.Linear(side, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, side, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of images ``(batch, 1, side, side)``."""
        h: Tensor = self.layers(self.into(x[:, 0]) + self.position)
        result: Tensor = self.head(h.mean(1))
        return result


def vit(side: int) -> nn.Module:
    """timm's vision transformer, of depth 4 and width 64."""
    timm = importlib.import_module("timm")
    made: nn.Module = timm.models.VisionTransformer(
        img_size=side, patch_size=side // 4, in_chans=1, num_classes=10, embed_dim=64, depth=4, num_heads=4
    )
    return made


#: Made for images of a side of so many pixels.
NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "conv": conv_net,
    "resnet": resnet,
    "encoder": Encoder,
    "vit": vit,
}
