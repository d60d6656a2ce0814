"""Of every m consecutive inputs the n largest are kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_reg import NM, Refit, attach
from lightning_reg.apply import Term
from tests import support


def cut(module: nn.Module, constraint: NM) -> list[Tensor]:
    """Project once; return the weights."""
    term = Term(constraint, module)
    weights = [s.parameter for s in term.selected]
    term.bound.prox_(weights, 1.0, ())
    return [w.detach() for w in weights]


def by_hand(rows: Tensor, n: int, m: int) -> Tensor:
    """The nearest matrix of the pattern, block by block."""
    result = torch.zeros_like(rows)
    for r, row in enumerate(rows):
        for first in range(0, rows.shape[1], m):
            kept = first + torch.topk(row[first : first + m].abs(), n).indices
            result[r, kept] = row[kept]
    return result


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (1, 2), (3, 6)])
def test_a_linear_layer_is_that_by_hand(n: int, m: int) -> None:
    layer = nn.Linear(24, 5)
    wanted = by_hand(layer.weight.detach(), n, m)
    (weight,) = cut(layer, NM(n, m))
    assert torch.equal(weight, wanted) and bool((layer.bias != 0).any())
    assert torch.equal(cut(layer, NM(n, m))[0], wanted)  # a projection


def test_convolutions_and_recurrent_layers_are_cut_along_their_inputs() -> None:
    convolution = nn.Conv2d(4, 6, 3)
    wanted = by_hand(convolution.weight.detach().flatten(1), 2, 4)
    assert torch.equal(cut(convolution, NM(2, 4))[0].flatten(1), wanted)
    transposed = nn.ConvTranspose2d(4, 6, 3)
    wanted = by_hand(transposed.weight.detach().transpose(0, 1).flatten(1), 2, 4)
    assert torch.equal(cut(transposed, NM(2, 4))[0].transpose(0, 1).flatten(1), wanted)
    recurrent = nn.LSTM(8, 4)
    wanted = by_hand(recurrent.weight_ih_l0.detach(), 2, 4)
    assert torch.equal(cut(recurrent, NM(2, 4))[0], wanted)
    assert len(cut(nn.LSTM(8, 4), NM(2, 4))) == 2


def test_channels_last_is_the_same() -> None:
    plain = nn.Conv2d(4, 6, 3)
    last = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    last.load_state_dict(plain.state_dict())
    assert torch.equal(cut(plain, NM(2, 4))[0], cut(last, NM(2, 4))[0])


def test_of_equal_weights_the_first_are_kept_and_what_is_no_number_shows() -> None:
    layer = nn.Linear(8, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, -1.0, 1.0, 1.0, 0.5, 2.0, -0.5, 0.5]])
    assert cut(layer, NM(2, 4))[0].tolist() == [[1.0, -1.0, 0.0, 0.0, 0.5, 2.0, 0.0, 0.0]]
    layer.weight.data[0, 2] = torch.nan
    assert bool(cut(layer, NM(2, 4))[0].isnan().any())


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.01),
    ],
    ids=["SGD", "AdamW"],
)
def test_it_holds_after_every_step_and_refit_fixes_the_choice(make: Any) -> None:
    torch.manual_seed(0)
    net = nn.Linear(16, 8)
    optimizer = make(net.parameters())
    attach(net, optimizer, NM(2, 4))
    attach(net, optimizer, Refit(5))
    zeros = torch.zeros(8, 16, dtype=torch.bool)
    for step in range(12):
        optimizer.zero_grad()
        net(torch.randn(32, 16)).sub(1.0).square().mean().backward()
        optimizer.step()
        blocks = (net.weight.detach() != 0).view(8, 4, 4).sum(-1)
        assert bool((blocks == 2).all())
        if step > 4:
            assert torch.equal(net.weight == 0, zeros)
        zeros = net.weight.detach() == 0


def test_in_a_trainer() -> None:
    from lightning_reg.callbacks import NM as Callback

    net = support.Net()
    support.fit(net, Callback(2, 5, select="net.0.weight"), steps=4)
    assert bool(((net.net[0].weight != 0).view(5, 2, 5).sum(-1) == 2).all())


@pytest.mark.parametrize(("n", "m"), [(4, 4), (0, 4), (2.0, 4), (5, 4)])
def test_numbers_that_are_none_are_refused(n: Any, m: Any) -> None:
    with pytest.raises(ValueError, match="0 < n < m"):
        NM(n, m)


def test_a_layer_that_m_does_not_divide_is_refused() -> None:
    net = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    with pytest.raises(ValueError, match=r"1\.weight of shape \(4, 6\) has 6; leave it out"):
        attach(net, torch.optim.SGD(net.parameters(), lr=0.1), NM(2, 4))
    attach(net, torch.optim.SGD(net.parameters(), lr=0.1), NM(2, 4, select=["weights", "!1.weight"]))
