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
