"""The package's names: loaded when first asked for, and all there."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import torch

import lightning_reg
from lightning_reg.penalties import ForwardPenalty, Penalty
from lightning_reg.schedules.base import Schedule


def in_fresh_interpreter(program: str) -> str:
    """Run ``program``, and return what it printed."""
    command = [sys.executable, "-W", "error::ImportWarning", "-c", program]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_every_name_is_declared_three_times_alike() -> None:
    tree = ast.parse(Path(lightning_reg.__file__).read_text())
    (for_checkers,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.name: (node.module or "").removeprefix("lightning_reg.")
        for node in for_checkers.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == lightning_reg._HOME_OF
    assert sorted(imported) == sorted(lightning_reg.__all__)
    assert set(lightning_reg.__all__) <= set(dir(lightning_reg))
    for name in lightning_reg.__all__:
        assert getattr(lightning_reg, name) is not None


def test_penalties_and_schedules_load_with_weights_only() -> None:
    public = [getattr(lightning_reg, name) for name in lightning_reg.__all__]
    classes = {
        one
        for one in public
        if isinstance(one, type) and issubclass(one, (Penalty, ForwardPenalty, Schedule))
    }
    assert len(classes) > 30
    abstract = {Penalty, ForwardPenalty, Schedule}
    assert classes - abstract <= set(torch.serialization.get_safe_globals())

    class Mine(Penalty):
        pass

    assert Mine not in torch.serialization.get_safe_globals()


def test_a_fresh_interpreter() -> None:
    """What takes an interpreter of its own, in one of them."""
    program = """
import sys
import lightning_reg
from lightning_reg.cli.entry_point import callbacks

assert callbacks() == []
heavy = ("lightning_reg", "torch", "lightning", "pytorch_lightning", "jsonargparse", "rich")
print(*sorted(name for name in sys.modules if name.partition(".")[0] in heavy))

import lightning_reg.hosts.attachment, lightning_reg.look.compaction
from lightning_reg import attach, compact
assert callable(attach) and callable(compact) and lightning_reg.attach is attach

import io, torch
from lightning_reg.penalties.l1 import L1
file = io.BytesIO()
torch.save(L1(0.5), file)
file.seek(0)
assert torch.load(file, weights_only=True) == L1(0.5) == lightning_reg.L1(0.5)

import lightning_reg.look.plot, lightning_reg.metrics
loaded = {"lightning", "matplotlib", "rich", "torchmetrics"} & set(sys.modules)
assert not loaded, f"the core and the functions need torch alone, not {loaded}"
"""
    assert in_fresh_interpreter(program) == (
        "lightning_reg lightning_reg.cli lightning_reg.cli.entry_point lightning_reg.hosts "
        "lightning_reg.hosts.requested"
    )
