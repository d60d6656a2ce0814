"""Dead attention heads are cut, in torch's layers and in those that have projections of their own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lightning_reg import Units, compact
from lightning_reg.look.attention import SmallerAttention
from lightning_reg.look.sizes import sizes_of
from tests.groups.test_units import Attention

pytest.importorskip("torch_pruning")

ALIVE = torch.tensor([True, False, True, False])


def dead_heads(attention: nn.MultiheadAttention) -> nn.MultiheadAttention:
    with torch.no_grad():
        for one in (attention.in_proj_weight, attention.in_proj_bias):
            one.normal_()
            one.unflatten(0, (3, 4, 2))[:, ~ALIVE] = 0.0
        attention.out_proj.bias.normal_()
    return attention.eval()


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masked", [False, True])
def test_what_stands_in_for_a_multihead_attention(batch_first: bool, masked: bool) -> None:
    torch.manual_seed(0)
    whole = dead_heads(nn.MultiheadAttention(8, 4, batch_first=batch_first))
    part = SmallerAttention(whole, ALIVE).eval()
    x, memory = torch.randn(5, 5, 8), torch.randn(5, 5, 8)
    options = {}
    if masked:
        options["attn_mask"] = torch.ones(5, 5).triu(1).bool()
        options["key_padding_mask"] = torch.zeros(5, 5).index_fill(1, torch.tensor([4]), 1.0).bool()
        options["attn_mask"][4] = False
    expected, shares = whole(x, memory, memory, average_attn_weights=False, **options)
    got, ours = part(x, memory, memory, average_attn_weights=False, **options)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(ours, shares[:, ALIVE])
    assert part(x, memory, memory, need_weights=False, **options)[1] is None
    if not masked:
        torch.testing.assert_close(part(x[0], x[0], x[0])[0], whole(x[0], x[0], x[0])[0])
        with pytest.raises(ValueError, match="for heads of which some are cut"):
            part(x, x, x, attn_mask=torch.zeros(20, 5, 5))


@pytest.mark.parametrize("batch_first", [True, False])
def test_heads_and_units_of_an_encoder_are_cut(batch_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 4, 16, batch_first=batch_first)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3)).eval()
    x = torch.randn(2, 5, 8)
    _kill_half(model, x)
    model[0].layers[1].self_attn.in_proj_weight.requires_grad_(False)
    small = compact(model, x)
    torch.testing.assert_close(small(x), model(x))
    first = small[0].layers[0]
    assert (first.self_attn.num_heads, first.linear1.out_features) == (2, 8)
    assert first.self_attn.in_proj.weight.requires_grad
    assert not small[0].layers[1].self_attn.in_proj.weight.requires_grad
    macs = [sizes_of(one, x, 1).macs for one in (model, small)]
    length = 5 if batch_first else 2
    # of 10 tokens: projections into and out of heads, attention, feed-forward units, the last layer
    whole, half = (
        2 * (10 * 4 * 8 * width + 2 * 10 * length * width + 10 * 2 * 16 * width) + 10 * 24 for width in (8, 4)
    )
    assert macs == [whole, half]
    small.train()(x).sum().backward()  # and again smaller
    again = compact(small.eval(), x)
    torch.testing.assert_close(again(x), model(x))


def test_heads_that_share_keys_go_together() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Attention(), nn.LayerNorm(8)).eval(), torch.randn(2, 5, 8)
    with torch.no_grad():  # one query head of two that share a key, which alone is no unit
        model[0].q_proj.weight[:2] = 0.0
        model[0].q_proj.bias[:2] = 0.0
    assert compact(model, x)[0].q_proj.out_features == 8


def test_a_layer_that_does_not_run_with_fewer_heads_keeps_them() -> None:
    """Its forward has the number of heads written out."""
    torch.manual_seed(0)
    model, x = nn.Sequential(Attention(), nn.LayerNorm(8)).eval(), torch.randn(2, 5, 8)
    _kill_half(model, x)
    before = copy.deepcopy(model)
    with pytest.warns(UserWarning, match=r"heads of 0, which does not run with fewer"):
        small = compact(model, x)
    assert small[0].q_proj.out_features == 8
    assert small[0].num_heads == 4
    torch.testing.assert_close(small(x), before(x))


@pytest.mark.parametrize("mask_in_example", [True, False])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_without_some_heads_takes_a_padding_mask(mask_in_example: bool, grad: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True)
    whole = nn.TransformerEncoder(layer, 2).eval()
    dead_heads(whole.layers[1].self_attn)  # the first layer stays, and would nest
    x, padding = torch.randn(2, 5, 8), torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    small = compact(whole, {"src": x, "src_key_padding_mask": padding} if mask_in_example else x)
    assert isinstance(small.layers[1].self_attn, SmallerAttention)
    assert whole.use_nested_tensor
    with torch.set_grad_enabled(grad):
        before, after = (one(x, src_key_padding_mask=padding)[~padding] for one in (whole, small))
    torch.testing.assert_close(after, before)
    assert compact(nn.TransformerEncoder(layer, 2).eval(), x).use_nested_tensor


class Projections(nn.Module):
    """Attention with projections of its own, and heads as wide as it says."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 4, 2
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, 2)).movedim(-3, 0).transpose(2, 3)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_fused_projections_are_cut_and_one_head_stays() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Projections(), nn.LayerNorm(8)).eval(), torch.randn(2, 5, 8)
    _kill_half(model, x)
    small = compact(model, x)
    torch.testing.assert_close(small(x), model(x))
    assert (small[0].num_heads, small[0].qkv.out_features, small[0].proj.in_features) == (2, 12, 4)
    with torch.no_grad():
        for parameter in model[0].qkv.parameters():
            parameter.zero_()
    small = compact(model, x)
    torch.testing.assert_close(small(x), model(x))
    assert small[0].num_heads == 1


@torch.no_grad()
def _kill_half(model: nn.Module, x: Tensor) -> None:
    parameters = dict(model.named_parameters())
    for forms in Units(x).find(model):
        for name, layout in forms.items():
            view = layout.view(parameters[name].normal_())
            view.mul_(layout.spread(torch.arange(layout.count) % 2 == 0, view))
