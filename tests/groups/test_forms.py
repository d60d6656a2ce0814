"""Which weights make a group: every layout against one written out by hand."""

import pytest
import torch
from torch import Tensor, nn

from lightning_reg import L1, GroupLasso
from lightning_reg.groups.forms import check_groups, default_layout, layout_of
from lightning_reg.groups.layout import Labels, Slices
from lightning_reg.prox.projections import max_norm_
from lightning_reg.select.parameters import named_parameters


def _layout(module, name, groups):
    (selected,) = [s for s in named_parameters(module) if s.name == name]
    layout = layout_of(selected, groups)
    return layout, selected.parameter.detach()


def _labels(layout, weight: Tensor) -> Tensor:
    """The group of every weight, found by spreading group numbers over the view."""
    numbers = torch.arange(layout.count, dtype=weight.dtype)
    view = layout.view(weight)
    return layout.spread(numbers, view).expand(view.shape).reshape(weight.shape).long()


def _brute(shape, group_of) -> Tensor:
    """Labels written out weight by weight."""
    labels = torch.empty(shape, dtype=torch.long)
    for index in torch.cartesian_prod(*(torch.arange(s) for s in shape)).reshape(-1, len(shape)).tolist():
        labels[tuple(index)] = group_of(index)
    return labels


H, E = 5, 8
CASES = {
    "linear rows": (nn.Linear(3, 4), "weight", "rows", lambda i: i[0]),
    "linear columns": (nn.Linear(3, 4), "weight", "columns", lambda i: i[1]),
    "bias rows": (nn.Linear(3, 4), "bias", "rows", lambda i: i[0]),
    "tensor": (nn.Linear(3, 4), "weight", "tensor", lambda i: 0),
    "embedding rows": (nn.Embedding(6, 3), "weight", "rows", lambda i: i[0]),
    "embedding columns": (nn.Embedding(6, 3), "weight", "columns", lambda i: i[1]),
    "conv filters": (nn.Conv2d(3, 4, 2), "weight", "filters", lambda i: i[0]),
    "conv rows": (nn.Conv2d(3, 4, 2), "weight", "rows", lambda i: i[0]),
    "conv channels": (nn.Conv2d(3, 4, 2), "weight", "channels", lambda i: i[1]),
    "conv1d columns": (nn.Conv1d(3, 4, 2), "weight", "columns", lambda i: i[1]),
    "conv3d filters": (nn.Conv3d(2, 3, 2), "weight", "filters", lambda i: i[0]),
    "conv bias": (nn.Conv2d(3, 4, 2), "bias", "filters", lambda i: i[0]),
    # output channel o of a grouped convolution sees inputs (o // 3) * 2 + 0..1
    "grouped filters": (nn.Conv2d(4, 6, 2, groups=2), "weight", "filters", lambda i: i[0]),
    "grouped channels": (nn.Conv2d(4, 6, 2, groups=2), "weight", "channels", lambda i: i[0] // 3 * 2 + i[1]),
    "depthwise channels": (nn.Conv2d(4, 4, 3, groups=4), "weight", "channels", lambda i: i[0]),
    "transposed filters": (nn.ConvTranspose2d(4, 6, 2), "weight", "filters", lambda i: i[1]),
    "transposed channels": (nn.ConvTranspose2d(4, 6, 2), "weight", "channels", lambda i: i[0]),
    "grouped transposed filters": (
        nn.ConvTranspose2d(4, 6, 2, groups=2),
        "weight",
        "filters",
        lambda i: i[0] // 2 * 3 + i[1],
    ),
    "grouped transposed channels": (
        nn.ConvTranspose1d(4, 6, 2, groups=2),
        "weight",
        "channels",
        lambda i: i[0],
    ),
    "lstm rows": (nn.LSTM(3, H), "weight_ih_l0", "rows", lambda i: i[0] % H),
    "lstm hidden rows": (nn.LSTM(3, H), "weight_hh_l0", "rows", lambda i: i[0] % H),
    "lstm columns": (nn.LSTM(3, H), "weight_ih_l0", "columns", lambda i: i[1]),
    "lstm bias": (nn.LSTM(3, H), "bias_ih_l0", "rows", lambda i: i[0] % H),
    "lstm projection": (nn.LSTM(3, H, proj_size=2), "weight_hr_l0", "rows", lambda i: i[0]),
    "gru rows": (nn.GRU(3, H), "weight_ih_l0", "rows", lambda i: i[0] % H),
    "rnn rows": (nn.RNN(3, H), "weight_ih_l0", "rows", lambda i: i[0]),
    "lstm cell rows": (nn.LSTMCell(3, H), "weight_hh", "rows", lambda i: i[0] % H),
    "gru cell rows": (nn.GRUCell(3, H), "weight_hh", "rows", lambda i: i[0] % H),
    "heads in": (nn.MultiheadAttention(E, 2), "in_proj_weight", "heads", lambda i: i[0] % E // 4),
    "heads in bias": (nn.MultiheadAttention(E, 2), "in_proj_bias", "heads", lambda i: i[0] % E // 4),
    "heads k": (nn.MultiheadAttention(E, 2, kdim=3), "k_proj_weight", "heads", lambda i: i[0] // 4),
    "heads out": (nn.MultiheadAttention(E, 2), "out_proj.weight", "heads", lambda i: i[1] // 4),
}


@pytest.mark.parametrize("case", CASES)
def test_layout_is_the_partition_written_out_by_hand(case):
    module, name, groups, group_of = CASES[case]
    layout, weight = _layout(module, name, groups)
    want = _brute(weight.shape, group_of)
    got = _labels(layout, weight)
    assert torch.equal(got, want)
    assert layout.count == want.max() + 1
    assert layout.sizes * layout.count == weight.numel()


@pytest.mark.parametrize("case", CASES)
def test_sums_over_groups_are_those_of_the_labels(case):
    module, name, groups, group_of = CASES[case]
    layout, weight = _layout(module, name, groups)
    by_label = Labels(_brute(weight.shape, group_of))
    view = layout.view(weight)
    assert view.data_ptr() == weight.data_ptr()  # a view, not a copy
    for method in ("norm", "sum", "amax", "amin"):
        torch.testing.assert_close(getattr(layout, method)(view), getattr(by_label, method)(weight))
    matrix = layout.matrix(view)
    torch.testing.assert_close(matrix.sum(1), by_label.matrix(weight).sum(1))
    assert torch.equal(layout.unmatrix(matrix, view), view)
    assert torch.equal(by_label.unmatrix(by_label.matrix(weight), weight), weight)


def test_grouped_convolution_channels_are_what_an_input_channel_feeds():
    conv = nn.Conv2d(4, 6, 3, groups=2, bias=False)
    layout, weight = _layout(conv, "weight", "channels")
    labels = _labels(layout, weight)
    for channel in range(4):
        x = torch.randn(1, 4, 5, 5)
        y = torch.zeros_like(x)
        y[:, channel] = x[:, channel]
        conv.weight.data = torch.where(labels == channel, 0.0, torch.randn_like(weight))
        assert conv(y).abs().max() == 0


def test_attention_heads_as_other_libraries_name_them():
    class Attention(nn.Module):
        def __init__(self, heads):
            super().__init__()
            self.num_heads, self.num_key_value_heads = heads, 2
            self.q_proj, self.k_proj, self.o_proj = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 8)

    class Vit(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads, self.qkv, self.proj = 4, nn.Linear(8, 24), nn.Linear(8, 8)

    assert _layout(Attention(4), "q_proj.weight", "heads")[0] == Slices((1, 4, 2, 8), (1,))
    assert _layout(Attention(4), "k_proj.weight", "heads")[0].count == 2
    assert _layout(Attention(4), "o_proj.weight", "heads")[0] == Slices((8, 1, 4, 2), (2,))
    assert _layout(Vit(), "qkv.weight", "heads")[0] == Slices((3, 4, 2, 8), (1,))
    assert _layout(Vit(), "proj.weight", "heads")[0].count == 4


def test_a_callable_gives_labels_a_layout_or_a_word():
    linear = nn.Linear(3, 2)
    labels = torch.tensor([[0, 0, 1], [1, 1, -1]])
    layout, weight = _layout(linear, "weight", lambda name, parameter, module: labels)
    assert torch.equal(layout.sizes, torch.tensor([2.0, 3.0, 0.0]))
    assert torch.allclose(layout.norm(weight)[0], weight[0, :2].norm())
    assert _layout(linear, "weight", lambda *_: "columns")[0].count == 3
    assert _layout(linear, "weight", lambda *_: Slices((2, 3), (1,)))[0].count == 3


@pytest.mark.parametrize(
    ("module", "name", "groups", "says"),
    [
        (nn.Linear(2, 3), "weight", "filters", "groups='rows', which takes both"),
        (nn.Linear(2, 3), "weight", "channels", "groups='columns', which takes both"),
        (nn.Linear(2, 3), "bias", "columns", "needs two dimensions"),
        (nn.Linear(2, 3), "weight", "heads", "finds no number of heads"),
        (nn.MultiheadAttention(8, 2), "out_proj.bias", "heads", "does not know how out_proj.bias"),
        (nn.Linear(2, 3), "weight", lambda *_: torch.zeros(3, 2), "give integers"),
        (nn.Linear(2, 3), "weight", lambda *_: torch.zeros(3, dtype=torch.long), "labels of shape"),
        (nn.Linear(2, 3), "weight", lambda *_: torch.full((3, 2), -2), "a group label is -2"),
        (nn.Linear(2, 3), "weight", lambda *_: Slices((2, 2), (0,)), "the layout"),
    ],
)
def test_what_a_tensor_does_not_have_is_refused_by_name(module, name, groups, says):
    with pytest.raises(ValueError, match=says):
        _layout(module, name, groups)


def test_unknown_groups_are_refused():
    with pytest.raises(ValueError, match="'rows', 'columns'"):
        check_groups("neurons")
    with pytest.raises(TypeError, match="not understood"):
        check_groups(3)
    with pytest.raises(TypeError, match="return a tensor of labels"):
        _layout(nn.Linear(2, 3), "weight", lambda *_: 7)
    with pytest.raises(ValueError, match="call the penalty on a module"):
        default_layout((4, 4), "heads")


@pytest.mark.parametrize("size", [1e20, 1e30])
def test_norms_whose_squares_overflow(size: float) -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0]]) * size
    norms = torch.tensor([5.0, 0.0]) * size
    layout = default_layout(weight.shape, "rows")
    torch.testing.assert_close(layout.norm(weight), norms)
    torch.testing.assert_close(GroupLasso(1.0, size_weighted=False).value(weight, 1.0), norms.sum())
    max_norm_(weight, layout, 10.0)
    torch.testing.assert_close(weight, torch.tensor([[6.0, 8.0], [0.0, 0.0]]))


def test_a_callable_of_other_arguments():
    net, says = (
        nn.Sequential(nn.Linear(2, 2)),
        r"failed on 0.weight; it is called as \(name, parameter, module\)",
    )
    for made in (
        GroupLasso(1.0, groups=lambda weight: weight),
        L1(1.0, factors=lambda weight: weight),
        L1(1.0, select=lambda name, weight: True),
    ):
        with pytest.raises(TypeError, match=says):
            made(net)
