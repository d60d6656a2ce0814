"""What numba compiles is compiled when a penalty is put to work, and not in the first step."""

from __future__ import annotations

import logging

import pytest
import torch

from lightning_reg import L1, L2, MCP, ElasticNet, GroupLasso, L2Norm, Penalty, attach
from lightning_reg.apply import warm_up
from lightning_reg.apply.term import Apply
from lightning_reg.tensors import fused

pytest.importorskip("numba")
pytestmark = pytest.mark.xdist_group("numba")


@pytest.mark.parametrize(
    "penalty, apply, loops",
    [
        (L1(1e-4), "gradient", {"add_sign"}),
        (L1(1e-4), "proximal", {"soft_threshold"}),
        (ElasticNet(1e-4), "decoupled", {"add_sign"}),
        (ElasticNet(1e-4), "proximal", {"elastic_net"}),
        (L2(1e-4), "proximal", {"elastic_net"}),
        (MCP(1e-4), "proximal", {"firm_threshold"}),
        (GroupLasso(1e-4), "proximal", {"shrink_groups"}),
        (L2Norm(1e-4), "proximal", {"shrink_groups"}),
        (L2(1e-4), "gradient", set()),
    ],
    ids=str,
)
def test_a_step_compiles_nothing(
    penalty: Penalty, apply: Apply, loops: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = fused._compiled

    def counted(module: str, loop: str, dtype: str) -> fused.Compiled | None:
        asked.append(loop)
        return real(module, loop, dtype)

    monkeypatch.setattr(fused, "_compiled", counted)
    net = torch.nn.Linear(200, 100)
    optimizer = torch.optim.Adam(net.parameters())
    attach(net, optimizer, penalty, apply=apply)
    before, asked[:] = set(asked), []
    net(torch.ones(200)).sum().backward()
    optimizer.step()
    assert set(asked) == before == loops


def test_small_models_need_no_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_compiled", lambda *_: pytest.fail("asked for"))
    net = torch.nn.Linear(20, 10)
    attach(net, torch.optim.SGD(net.parameters(), 0.1), L1(1e-4))


def test_one_line_where_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(warm_up, "LONG", -1.0)
    net = torch.nn.Linear(200, 100)
    with caplog.at_level(logging.WARNING):
        attach(net, torch.optim.SGD(net.parameters(), 0.1), L1(1e-4))
    assert "to compile the loops of L1" in caplog.text
