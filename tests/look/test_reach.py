"""Which parameters a selection reaches, and why not the others."""

from __future__ import annotations

import torch
from torch import nn

from lightning_reg.look.reach import NamedSelect, coverage


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        self.head = nn.Linear(3, 2)
        self.loose = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.ones(3))
        self.encoder[0].weight.requires_grad_(False)


def reasons(*acting: NamedSelect) -> dict[str, str]:
    net = Net()
    optimizer = torch.optim.SGD([p for n, p in net.named_parameters() if not n.startswith("loose")], lr=0.1)
    return {row.name: "+".join(row.by) or row.why for row in coverage(net, acting, [optimizer])}


def test_the_default_selection() -> None:
    assert reasons(NamedSelect("l1", "weights"), NamedSelect("l2", ["head.*"])) == {
        "scale": "fewer than two dimensions",
        "encoder.0.weight": "frozen",
        "encoder.0.bias": "bias",
        "encoder.1.weight": "normalization",
        "encoder.1.bias": "normalization",
        "head.weight": "l1+l2",
        "head.bias": "l2",
        "loose.weight": "in no optimizer",
        "loose.bias": "bias",
    }


def test_a_glob() -> None:
    found = reasons(NamedSelect("l1", "head.weight"))
    assert found.pop("head.weight") == "l1"
    assert set(found.values()) == {"not selected"}


def test_what_a_list_takes_out() -> None:
    found = reasons(NamedSelect("l1", ["weights", "!head*"]))
    assert (found["head.weight"], found["head.bias"]) == ("not selected", "bias")


def test_tied_and_lazy_parameters() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.LazyLinear(2))
    net[1].weight = net[0].weight
    rows = {row.name: row.entries for row in coverage(net, [NamedSelect("l1", "weights")])}
    assert rows == {"0.weight": 9, "0.bias": 3, "1.bias": 3, "2.weight": 0, "2.bias": 0}
