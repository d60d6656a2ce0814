"""The residual stream of a transformer as units: what goes together, and what needs all of its channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_reg import GroupLasso, Units, compact
from lightning_reg.metrics import group_sparsity

TOKENS = torch.arange(10).view(2, 5)


class HandWritten(nn.Module):
    """As transformers' models have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = 0.1

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


HandWritten.__name__ = "SomeRMSNorm"


def rms_norm(width: int) -> nn.Module:
    """One whose ε counts."""
    return nn.RMSNorm(width, eps=0.1)


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads = 2
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        parts = [layer(x) for layer in (self.q_proj, self.k_proj, self.v_proj)]
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.n1, self.n2, self.attn = norm(width), norm(width), Attention(width)
        self.up, self.down = nn.Linear(width, 6), nn.Linear(6, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.n1(x))
        return x + self.down(torch.relu(self.up(self.n2(x))))


class LanguageModel(nn.Module):
    """Embeddings, a table of positions, one block, a norm, and a head that may be the embeddings."""

    def __init__(self, norm: Callable[[int], nn.Module] = rms_norm, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(12, 8)
        self.positions = nn.Parameter(torch.randn(1, 5, 8))
        self.block, self.norm = Block(8, norm), norm(8)
        self.head = nn.Linear(8, 12, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.block(self.embed(tokens) + self.positions)))


#: Names, and the dimension along which channels of the stream lie.
STREAM = {
    "embed.weight": 1,
    "positions": 2,
    "block.attn.o_proj.weight": 0,
    "block.attn.o_proj.bias": 0,
    "block.down.weight": 0,
    "block.down.bias": 0,
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("norm", [rms_norm, HandWritten, nn.Identity])
def test_the_stream_goes_together(norm: Any, tied: bool) -> None:
    model = LanguageModel(norm, tied)
    found = Units(TOKENS, stream=True).find(model)
    assert {name: layout.keep for name, layout in found[0].items()} == {n: (d,) for n, d in STREAM.items()}  # type: ignore[attr-defined]
    assert all(layout.count == 8 for layout in found[0].values())
    others = [set(forms) for forms in found[1:]]
    assert others == [set(forms) for forms in Units(TOKENS).find(model)]  # without, no stream


@torch.no_grad()
def half_dead(model: nn.Module) -> nn.Module:
    """Set every other channel of the stream to zero, and no norm's scale."""
    by_name = dict(model.named_parameters())
    for name, dim in STREAM.items():
        by_name[name].movedim(dim, 0)[::2] = 0.0
    for name, parameter in by_name.items():
        if name.endswith(("n1.weight", "n2.weight", "norm.weight")):
            parameter.uniform_(0.5, 2.0)
    return model


def test_a_dead_channel_is_zero_behind_the_norm() -> None:
    model = half_dead(LanguageModel()).double()
    before = model(TOKENS)
    with torch.no_grad():
        for layer in (model.block.attn.q_proj, model.block.up, model.head):  # type: ignore[union-attr]
            layer.weight[:, ::2] = 7.0  # type: ignore[union-attr]
    torch.testing.assert_close(model(TOKENS), before)
    assert group_sparsity(model, Units(TOKENS, stream=True)) == 4 / (8 + 6 + 2)


class Scaled(Block):
    """With a scale for each channel of a branch, as timm's LayerScale."""

    def __init__(self) -> None:
        super().__init__(8, rms_norm)
        self.gamma = nn.Parameter(torch.full((8,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma * self.attn(self.n1(x))
        return x + self.down(torch.relu(self.up(self.n2(x))))


def test_a_scale_of_a_branch_is_no_part_of_a_unit() -> None:
    model = LanguageModel()
    model.block = Scaled()
    assert set(Units(TOKENS, stream=True).find(model)[0]) == set(STREAM)
    half_dead(model)
    smaller = compact(model.eval(), TOKENS)
    assert smaller.block.gamma.shape == (4,)  # type: ignore[union-attr]
    torch.testing.assert_close(smaller(TOKENS), model(TOKENS), rtol=0, atol=1e-6)


def test_embeddings_that_linear_layers_read() -> None:
    net = nn.Sequential(nn.Embedding(12, 8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    found = Units(TOKENS, stream=True).find(net)
    assert [set(forms) for forms in found] == [{"0.weight"}, {"1.weight", "1.bias"}]
    assert repr(Units(TOKENS, stream=True)) == "Units(example=(2, 5), stream=True)"


class OfAnotherMake(nn.LayerNorm):
    """As timm's."""


OfAnotherMake.__module__ = "another.layers"


class ByHand(nn.Module):
    """A layer norm that nothing tells but what it does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 0.1) * self.weight + self.bias


@pytest.mark.parametrize(
    ("norm", "says"),
    [
        (
            nn.LayerNorm,
            r"block\.n1, a LayerNorm, takes mean and variance .*; use RMSNorm, or leave stream out",
        ),
        (OfAnotherMake, r"block\.n1, a OfAnotherMake, takes mean and variance"),
        (ByHand, r"finds no residual stream in LanguageModel: .* LayerNorm of any make needs all of them"),
    ],
)
def test_what_needs_all_channels_is_refused_by_name(norm: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        GroupLasso(0.1, groups=Units(TOKENS, stream=True))(LanguageModel(norm))


def test_other_layers_of_the_stream_are_named_too() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 6, batch_first=True)
    net = nn.Sequential(nn.Embedding(12, 8), layer, nn.Linear(8, 2))
    says = "1.self_attn, a MultiheadAttention, needs all channels of the residual stream; leave stream out"
    with pytest.raises(ValueError, match=says):
        GroupLasso(0.1, groups=Units(TOKENS, stream=True))(net)


def test_a_network_without_a_stream_is_refused() -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="finds no residual stream in Sequential"):
        GroupLasso(0.1, groups=Units(TOKENS.float(), stream=True))(net)
