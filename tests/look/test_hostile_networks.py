"""Networks that are hard to cut: every one comes out right, and what stays in it is named."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_reg import GroupLasso, Units, attach, compact
from lightning_reg.groups.probing import constant_at, probes_of
from lightning_reg.metrics import group_sparsity

pytest.importorskip("torch_pruning")

WIDTH = 8


class Net(nn.Module):
    """A stem of eight channels, something in the middle, a convolution, and a head."""

    def __init__(self, middle: nn.Module, width: int = WIDTH) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH)
        self.middle, self.conv, self.head = middle, nn.Conv2d(width, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(batch, 3)``."""
        x = self.middle(self.norm(self.stem(x)).relu())
        return self.head(self.conv(x).relu().mean((2, 3)))


class Of(nn.Module):
    """A function of what comes in, and the layers that it needs."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the function's result."""
        return self.function(x, *self.layers)


def shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def squeezed(x: Tensor, down: nn.Module, up: nn.Module) -> Tensor:
    return x * up(down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


def again(x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
    for _ in range(3):
        x = norm(conv(x)).relu()
    return x


def read_in_order(x: Tensor, recurrent: nn.Module) -> Tensor:
    return recurrent(x.mean(2).transpose(1, 2))[0][:, -1, :, None, None]


def grown(x: Tensor, norm: nn.Module, conv: nn.Module) -> Tensor:
    return torch.cat([x, conv(norm(x).relu())], 1)


def written_out(x: Tensor, layer: nn.Module) -> Tensor:
    return layer(x.view(-1, WIDTH * 64)).view(-1, WIDTH, 1, 1)


def from_mean(x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True)


def conv(inputs: int, outputs: int, size: int = 1, **options: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


#: How the network is made, and the sizes of its sets of units.
HOSTILE: dict[str, tuple[Callable[[], nn.Module], list[int]]] = {
    "depthwise": (lambda: Net(conv(8, 8, 3, groups=8)), [8, 6]),
    "a multiplier": (lambda: Net(conv(8, 16, 3, groups=8), 16), [6]),
    "grouped": (lambda: Net(conv(8, 8, 3, groups=2)), [6]),
    "a shuffle": (lambda: Net(nn.ChannelShuffle(2)), [6]),
    "a shuffle by hand": (lambda: Net(Of(shuffled)), [6]),
    "squeezed": (lambda: Net(Of(squeezed, conv(8, 4), conv(4, 8))), [8, 4, 6]),
    "shared": (lambda: Net(Of(again, conv(8, 8, 3), nn.BatchNorm2d(8))), [8, 6]),
    "LSTM": (lambda: Net(Of(read_in_order, nn.LSTM(8, 8, batch_first=True))), [6]),
    "GRU": (lambda: Net(Of(read_in_order, nn.GRU(8, 8, batch_first=True))), [6]),
    "grown": (lambda: Net(Of(grown, nn.BatchNorm2d(8), conv(8, 4, 3)), 12), [8, 4, 6]),
    "group norm": (lambda: Net(nn.GroupNorm(4, 8)), [6]),
    "instance norm": (lambda: Net(nn.InstanceNorm2d(8, affine=True)), [8, 6]),
    "softmax": (lambda: Net(nn.Softmax(1)), [6]),
    "from the mean": (lambda: Net(Of(from_mean)), [6]),
    "pixel shuffle": (lambda: Net(nn.PixelShuffle(2), 2), [6]),
    "gated": (lambda: Net(nn.Sequential(conv(8, 16), nn.GLU(1))), [8, 6]),
    "transposed": (lambda: Net(nn.ConvTranspose2d(8, 8, 2, 2, groups=8)), [8, 6]),
    "written out": (lambda: Net(Of(written_out, nn.Linear(512, 8))), [8, 8, 6]),
}


def images(count: int) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def same(model: nn.Module, smaller: nn.Module) -> None:
    x = images(20)
    with torch.no_grad():
        torch.testing.assert_close(smaller.eval()(x), model.eval()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("make", "sizes"), HOSTILE.values(), ids=HOSTILE)
def test_units_that_a_penalty_makes_zero_are_cut(make: Callable[[], nn.Module], sizes: list[int]) -> None:
    """And no other set is thought to be one; an example of one sample, all zeros, is enough."""
    torch.manual_seed(0)
    model, units = make(), Units(torch.zeros(1, 1, 8, 8))
    assert [next(iter(forms.values())).count for forms in units.find(model)] == sizes
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    attach(model, optimizer, GroupLasso(0.02, groups=units), apply="proximal")
    for _ in range(8):
        optimizer.zero_grad()
        model(images(16)).square().mean().backward()
        optimizer.step()
    dead = round(group_sparsity(model, units).item() * sum(sizes))
    assert dead > 0
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        smaller = compact(model.eval(), torch.zeros(1, 1, 8, 8))
    same(model, smaller)
    kept = sum(m.out_channels for m in (smaller.stem, smaller.conv))
    assert kept < 14 or said, "nothing was cut, in silence"


@pytest.mark.parametrize("make", [make for make, _ in HOSTILE.values()], ids=HOSTILE)
def test_whatever_is_zero_the_outputs_stay(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.BatchNorm2d) and module is not model.head:
                dead = torch.rand(len(module.weight)) < 0.5
                module.bias.normal_()
                module.weight[dead] = 0.0
                module.bias[dead & (torch.rand(len(dead)) < 0.5)] = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        smaller = compact(model, torch.zeros(1, 1, 8, 8))
    same(model, smaller)


KEPT = {
    "grouped": r"3 of stem, as middle is a grouped convolution; 3 of middle, a grouped convolution",
    "LSTM": r"3 of stem, as middle\.layers\.0, a LSTM, depends on all of them",
    "GRU": r"3 of stem, as the model needs as many as there are",
    "group norm": r"3 of stem, as middle, a GroupNorm, depends on all of them",
    "softmax": r"3 of stem, as what conv reads of them is no constant",
    "written out": r"3 of stem, as the model needs as many as there are",
}


@pytest.mark.parametrize("name", KEPT)
def test_what_stays_is_named(name: str) -> None:
    torch.manual_seed(0)
    model = HOSTILE[name][0]().eval()
    with torch.no_grad():
        for module in (model.stem, model.norm, model.middle if name == "grouped" else model.norm, model.conv):
            module.weight[:3], module.bias[:3] = 0.0, 0.0
    with pytest.warns(
        UserWarning, match=rf"compact\(\.\.\.\) keeps dead units that it cannot cut: {KEPT[name]}"
    ):
        smaller = compact(model, images(2))
    assert (smaller.stem.out_channels, smaller.conv.out_channels) == (8, 3)
    same(model, smaller)


def test_probes() -> None:
    """A constant of one sample, or of zeros, is none; what a model rejects is not tried."""
    example = {"x": torch.zeros(1, 3), "k": torch.tensor([2])}
    model = Of(lambda x, k: x * k)
    model.forward = model.function  # type: ignore[method-assign]
    probes = probes_of(model, example, "it")
    assert probes[0] == example and probes[1]["x"].std() > 0 and probes[1]["k"] is example["k"]
    assert len(probes_of(Of(torch.log), torch.ones(1, 3), "it")) == 1
    with pytest.raises(ValueError, match=r"it cannot run Linear with the example that it has: mat1 and mat2"):
        probes_of(nn.Linear(2, 2), torch.zeros(1, 3), "it")
    read = [torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 3.0]])]
    assert constant_at(read, [0]).tolist() == [1.0]
    assert constant_at(read, [1]) is None and constant_at(read, [2]) is None and constant_at([], [0]) is None
