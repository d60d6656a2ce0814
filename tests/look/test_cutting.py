"""Channels of a residual stream are cut, and what RMSNorm makes of the others stays."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_reg import GroupLasso, TargetSparsity, Units, attach, compact
from lightning_reg.look.cutting import _correct_
from lightning_reg.metrics import group_sparsity
from tests.groups.test_unit_sets import TOKENS, HandWritten, LanguageModel, half_dead, rms_norm

pytest.importorskip("torch_pruning")
OTHERS = torch.randint(12, (3, 5), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("norm", [rms_norm, HandWritten])
def test_dead_channels_of_the_stream_are_cut(norm: Any, tied: bool) -> None:
    model = half_dead(LanguageModel(norm, tied)).double().eval()
    smaller = compact(model, TOKENS)
    torch.testing.assert_close(smaller(OTHERS), model(OTHERS), rtol=0, atol=1e-13)
    assert {n: tuple(p.shape) for n, p in smaller.named_parameters() if "norm" in n or "bias" not in n} == {
        **{n: (4,) for n in ("block.n1.weight", "block.n2.weight", "norm.weight")},
        **{f"block.attn.{n}_proj.weight": (8, 4) for n in "qkv"},
        "embed.weight": (12, 4),
        "positions": (1, 5, 4),
        "block.attn.o_proj.weight": (4, 8),
        "block.up.weight": (6, 4),
        "block.down.weight": (4, 6),
        **({} if tied else {"head.weight": (12, 4)}),
    }
    assert (smaller.head.weight is smaller.embed.weight) == tied  # type: ignore[union-attr]
    smaller(OTHERS).sum().backward()  # it trains on


def test_a_layer_norm_keeps_them() -> None:
    model = half_dead(LanguageModel(nn.LayerNorm)).eval()
    with pytest.warns(UserWarning, match="4 of embed, as block.n1, a LayerNorm, depends on all of them"):
        smaller = compact(model, TOKENS)
    assert smaller.embed.embedding_dim == 8  # type: ignore[union-attr]


def test_a_norm_without_a_scale_keeps_them() -> None:
    """Its mean could not be corrected."""
    model = half_dead(LanguageModel(lambda width: nn.RMSNorm(width, elementwise_affine=False)))
    with pytest.warns(UserWarning, match="4 of embed, as the model needs as many as there are"):
        smaller = compact(model.eval(), TOKENS)
    torch.testing.assert_close(smaller(OTHERS), model(OTHERS))


def test_a_table_that_is_not_zero_keeps_them() -> None:
    model = half_dead(LanguageModel()).eval()
    with torch.no_grad():
        model.positions[..., 0] = 1.0  # type: ignore[index]
    with pytest.warns(UserWarning, match="1 of embed, as a parameter that is joined to them is not zero"):
        smaller = compact(model, TOKENS)
    assert smaller.embed.embedding_dim == 5  # type: ignore[union-attr]
    torch.testing.assert_close(smaller(OTHERS), model(OTHERS))


def test_from_a_penalty_to_a_smaller_model() -> None:
    model, units = LanguageModel(), Units(TOKENS, stream=True)
    x = torch.randint(12, (64, 5), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    penalty = GroupLasso(TargetSparsity(0.5, until=0.6), groups=units)
    attach(model, optimizer, penalty, apply="proximal", total_steps=80)
    for i in range(80):
        optimizer.zero_grad()
        part = x[8 * (i % 8) :][:8]
        nn.functional.cross_entropy(model(part).flatten(0, 1), part.flatten()).backward()
        optimizer.step()
    assert float(group_sparsity(model, units)) == pytest.approx(0.5, abs=1 / 16)
    dead = int((model.embed.weight == 0).all(0).sum())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        smaller = compact(model.eval(), TOKENS)
    assert dead > 0 and smaller.embed.embedding_dim == 8 - dead  # type: ignore[union-attr]
    torch.testing.assert_close(smaller(OTHERS), model(OTHERS), rtol=0, atol=1e-5)


class Summed(nn.Module):
    """Sums what a convolution puts out, so that a constant counts as often as there are pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.conv(x)).relu().sum((2, 3)))


class Bag(nn.Module):
    """Sums over the tokens that are not 0."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv, self.out = nn.Embedding(20, 6), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((self.conv(self.table(x)).relu() * (x != 0).unsqueeze(-1)).sum(1))


def test_a_constant_that_depends_on_size_or_mask_is_not_folded() -> None:
    torch.manual_seed(0)
    summed, bag = Summed().eval(), Bag().eval()
    with torch.no_grad():
        summed.norm.weight[::2], summed.norm.bias[:] = 0.0, torch.randn(8).abs()
        bag.conv.weight[::2], bag.conv.bias[:] = 0.0, 1.0
    words = torch.randint(1, 20, (3, 5))
    padded = words.clone()
    padded[:, 3:] = 0
    for model, example, other in (
        (summed, torch.randn(2, 3, 8, 8), torch.randn(2, 3, 12, 12)),
        (bag, words, padded),
    ):
        with pytest.warns(UserWarning, match=r"4 of conv, as the constant that out reads may depend on siz"):
            small = compact(model, example)
        torch.testing.assert_close(small(other), model(other))


def test_units_before_a_local_response_norm_stay() -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.LocalResponseNorm(3), nn.Conv2d(8, 4, 3), nn.Flatten(2)
    model, x = nn.Sequential(*layers).eval(), torch.randn(2, 3, 8, 8)
    assert not any("0.weight" in forms for forms in Units(x).find(model))
    with torch.no_grad():
        model[0].weight[::2], model[0].bias[::2] = 0.0, 0.0
    with pytest.warns(UserWarning, match="4 of 0, as a LocalResponseNorm mixes them"):
        small = compact(model, x)
    torch.testing.assert_close(small(100 * x), model(100 * x))


class Offset(nn.Module):
    """Gemma's RMSNorm, whose scale is 1 + weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(weight), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt() * (1.0 + self.weight)


def test_a_norm_that_scales_by_one_and_its_weight_is_corrected() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(8), torch.randn(3, 8)
    x[:, 4:] = 0.0
    before, after = Offset(weight.clone()), Offset(weight[:4].clone())
    _correct_(after, 4)
    torch.testing.assert_close(after(x[:, :4]), before(x)[:, :4])


def slimmed(*layers: nn.Module, at: int, share: int = 2) -> nn.Sequential:
    """A network whose batch normalization at a place has scales of 0, and shifts."""
    torch.manual_seed(0)
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        model[at].weight[::share] = 0.0
        model[at].bias.normal_()
    return model


@pytest.mark.parametrize("multiplier", [1, 2])
def test_what_dies_behind_a_depthwise_convolution_is_cut_or_named(multiplier: int) -> None:
    wide = 24 * multiplier
    model = slimmed(
        nn.Conv2d(3, 24, 1, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU6(),
        nn.Conv2d(24, wide, 3, padding=1, groups=24, bias=False),
        nn.BatchNorm2d(wide),
        nn.ReLU6(),
        nn.Conv2d(wide, 8, 1),
        nn.Flatten(2),
        at=4,
    )
    x = torch.randn(2, 3, 8, 8)
    if multiplier == 1:
        small = compact(model, x)
        assert [small[i].out_channels for i in (0, 3)] == [12, 12] and small[6].in_channels == 12
    else:
        with pytest.warns(UserWarning, match=r"24 of 3, a grouped convolution"):
            small = compact(model, x)
    torch.testing.assert_close(small(2.0 * x), model(2.0 * x))


def test_filters_of_zeros_of_a_depthwise_convolution_are_cut() -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    model, x = nn.Sequential(*layers).eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        model[2].weight[::2], model[2].bias[:] = 0.0, 1.0
    small = compact(model, x)
    assert small[0].out_channels == small[2].groups == 4
    torch.testing.assert_close(small(2.0 * x), model(2.0 * x))


@pytest.mark.parametrize("between", [nn.ReLU(), nn.MaxPool2d(2)])
def test_what_dies_in_a_norm_behind_something_else_is_cut(between: nn.Module) -> None:
    model = slimmed(nn.Conv2d(3, 8, 3), between, nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), at=2)
    x = torch.randn(2, 3, 12, 12)
    small = compact(model, x)
    assert small[0].out_channels == small[2].num_features == 4
    torch.testing.assert_close(small(2.0 * x), model(2.0 * x))


class PreActivated(nn.Module):
    """Two norms of one sum, as in a ResNet that norms before it convolves: of many units, or of a few."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(width)])
        self.convs = nn.ModuleList([nn.Conv2d(width, width, 1), nn.Conv2d(width, 4, 1)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.convs[0](self.norms[0](x).relu())
        return self.convs[1](self.norms[1](x).relu()).mean((2, 3))


@pytest.mark.parametrize("width", [8, 32])
def test_what_one_of_several_norms_kills_stays_and_is_named(width: int) -> None:
    torch.manual_seed(0)
    model, x = PreActivated(width).eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        model.norms[0].weight[::2] = 0.0
        model.norms[1].weight[::4] = 0.0
        for norm in model.norms:
            norm.bias.normal_()
    with pytest.warns(UserWarning, match=rf"{width // 4} of norms.0, as what .* no constant"):
        small = compact(model, x)
    assert small.stem.out_channels == width - width // 4
    torch.testing.assert_close(small(2.0 * x), model(2.0 * x))


class Answer:
    """What a model of one's own may put out; it knows itself."""

    def __init__(self, logits: Any) -> None:
        self.logits, self.me = logits, self


class Answering(nn.Module):
    def __init__(self, hides: bool) -> None:
        super().__init__()
        self.p, self.q, self.hides = nn.Linear(6, 8), nn.Linear(8, 2), hides

    def forward(self, x: Tensor) -> Answer:
        logits = self.q(self.p(x).relu())
        return Answer((lambda: logits) if self.hides else {"of": logits})


def test_what_an_object_holds_is_an_output() -> None:
    torch.manual_seed(0)
    model, x = Answering(False).eval(), torch.randn(3, 6)
    with torch.no_grad():
        model.p.weight[::2], model.p.bias[::2] = 0.0, 0.0
    small = compact(model, x)
    assert small.p.out_features == 4
    torch.testing.assert_close(small(x).logits["of"], model(x).logits["of"])
    assert "p.weight" in Units(x).find(Answering(False))[0]
    for asks in (lambda: compact(Answering(True), x), lambda: Units(x).find(Answering(True))):
        with pytest.raises(ValueError, match="it puts out a Answer, in which no tensor is seen"):
            asks()


@pytest.mark.parametrize("how", [{"kdim": 10, "vdim": 10}, {"add_bias_kv": True}])
def test_dead_heads_that_stay_are_named(how: dict[str, Any]) -> None:
    torch.manual_seed(0)

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m, self.out = nn.MultiheadAttention(16, 4, batch_first=True, **how), nn.Linear(16, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.out(self.m(x, y, y)[0])

    example = torch.randn(2, 7, 16), torch.randn(2, 5, how.get("kdim", 16))
    model = Reads().eval()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for forms in Units(example).find(model):
            for name, layout in forms.items():
                view = layout.view(parameters[name])
                view.mul_(layout.spread(torch.arange(layout.count) % 2 == 0, view))
    with pytest.warns(UserWarning, match="2 heads of m, which does not run with fewer"):
        compact(model, example)
