"""The table of a deep network fits a terminal, with no two rows that look the same."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from lightning_reg import L1, GroupLasso
from lightning_reg.apply import Term
from lightning_reg.look.layers import Acting, Rate, dropout_rates, layer_states
from lightning_reg.look.summary import regularization_table

rich_console = pytest.importorskip("rich.console")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, dropout=0.1)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 8))


def _shown(net: nn.Module, dropout: list[Rate] | None = None) -> list[str]:
    acting = [
        Acting("l1", Term(L1(1e-4, "*mlp*weight"), net), "proximal", False),
        Acting("group_lasso", Term(GroupLasso(3e-4, select="*.0.weight"), net), "gradient", True),
    ]
    states = layer_states(net)
    table = regularization_table(
        states, states, acting, {"l1": 0.5}, dropout_rates(net) if dropout is None else dropout, 1000
    )
    console = rich_console.Console(file=io.StringIO(), width=80)
    console.print(table)
    return console.file.getvalue().splitlines()


def _net(depth: int) -> nn.Module:
    torch.manual_seed(0)
    net = nn.ModuleDict({"blocks": nn.ModuleList(Block() for _ in range(depth)), "head": nn.Linear(8, 2)})
    with torch.no_grad():
        net["blocks"][0].mlp[0].weight.zero_()  # type: ignore[index, union-attr, operator]
    return net


def test_many_layers_share_rows_and_many_rates_a_line() -> None:
    lines = _shown(_net(12))
    assert all(len(line) <= 80 for line in lines) and len(lines) < 25
    text = "\n".join(lines)
    assert "…" not in text
    rows = [line.split() for line in lines if "blocks." in line]
    assert [row[0] for row in rows] == [
        "blocks.0-11.attn.in_proj_weight",
        "blocks.0-11.attn.out_proj.weight",
        "blocks.0-11.mlp.0.weight",
        "blocks.0-11.mlp.3.weight",
    ]
    assert "1,536" in rows[2] and "8.3%" in rows[2]  # one of twelve is zero
    assert "dropout (attention) 0.1 at 12 places" in text and "dropout (element) 0.2 at 12 places" in text
    l1 = "l1 0.0001 (proximal), 12 KiB of optimizer state, ‖∇l1‖/‖∇loss‖ 0.5"  # 2 × 12 × 8 × 16 floats
    assert l1 in text and "group_lasso 0.0003 (gradient)" in text


def test_rows_name_the_blocks_that_they_are_of() -> None:
    net = _net(6)
    states = layer_states(net)
    acting = [Acting("l1", Term(L1(0.1, "blocks.[0135].mlp.0.weight"), net), "proximal", False)]
    console = rich_console.Console(file=io.StringIO(), width=80)
    console.print(regularization_table(states, states, acting, {}, [], 1))
    text = console.file.getvalue()
    assert "blocks.0,1,3,5.mlp.0.weight" in text and "blocks.2,4.mlp.0.weight" in text
    assert "blocks.0-5.mlp.3.weight" in text


def test_few_layers_have_a_row_each_and_rates_their_range() -> None:
    rates = [Rate("a", "row", 0.0), Rate("b", "row", 0.3), Rate("c.p", "element", 0.5)]
    text = "\n".join(_shown(_net(2), rates))
    assert all(f"blocks.{i}.mlp.{j}.weight" in text for i in (0, 1) for j in (0, 3))
    assert "dropout (row) 0 to 0.3 at 2 places" in text and "dropout (element) 0.5 at c.p" in text
