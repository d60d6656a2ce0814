"""The package's names: loaded when first asked for, and all there."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import lightning_reg
from lightning_reg._lazy import homes
from lightning_reg.penalties import ForwardPenalty, Penalty
from lightning_reg.schedules.base import Schedule


def in_fresh_interpreter(program: str) -> str:
    """Run ``program``, and return what it printed."""
    command = [sys.executable, "-W", "error::ImportWarning", "-c", program]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


ROOMS = ("lightning_reg", "lightning_reg.callbacks", "lightning_reg.metrics", "lightning_reg.tune")


@pytest.mark.parametrize("room", ROOMS)
def test_every_name_of_the_stub_is_there_and_dir_shows_no_other(room: str) -> None:
    package = import_module(room)
    names = set(dir(package)) - {"__version__"}
    assert names == set(homes(room)) >= set(package.__all__)
    assert not any(name.startswith("_") for name in names)
    for name in names - {"PenaltyTrainerCallback"}:
        assert getattr(package, name) is not None
    source = ast.parse(Path(str(package.__file__)).read_text())
    listed = {
        alias.name for node in ast.walk(source) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert not listed & names, "listed in the stub, and there alone"


def test_a_name_looked_for_at_the_root_is_found_or_said_where() -> None:
    assert lightning_reg.L1PenaltyCallback is lightning_reg.callbacks.L1PenaltyCallback  # type: ignore[attr-defined]
    assert lightning_reg.callbacks.StrengthFinder.__module__ == "lightning_reg.tune.strength_finder"
    assert lightning_reg.plot.__name__ == "lightning_reg.look.plot"
    with pytest.raises(AttributeError, match=r"mean lightning_reg.callbacks.L1PenaltyCallback\?"):
        lightning_reg.L1Callback  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute 'kernels'$"):
        lightning_reg.kernels  # type: ignore[attr-defined]  # noqa: B018
    assert isinstance(lightning_reg.__version__, str)


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


@pytest.mark.slow
def test_a_fresh_interpreter() -> None:
    """What takes an interpreter of its own, in one of them."""
    program = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"lightning", "lightning_fabric", "pytorch_lightning"}:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Block())
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

for apply in ("gradient", "decoupled", "proximal"):
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters())
    strength = lightning_reg.Linear(0.0, 0.1)
    handle = attach(model, optimizer, L1(strength), apply=apply, total_steps=2)
    for _ in range(2):
        (model(torch.ones(2, 3)).sum() + lightning_reg.L2(1e-3)(model)).backward()
        optimizer.step()
    handle.remove()
assert "numba" not in sys.modules, "imported before it is of use"

import lightning_reg.look.plot, lightning_reg.metrics
loaded = {"lightning", "matplotlib", "rich", "torchmetrics"} & set(sys.modules)
assert not loaded, f"the core and the functions need torch alone, not {loaded}"

try:
    lightning_reg.RegularizedModule
except ModuleNotFoundError as error:
    assert "lightning" in str(error)
else:
    raise AssertionError("Lightning was not blocked")
"""
    parts = ("", "._lazy", ".cli", ".cli.entry_point", ".hosts", ".hosts.requested")
    assert in_fresh_interpreter(program) == " ".join(f"lightning_reg{part}" for part in parts)


@pytest.mark.parametrize("first", ["lightning_reg.callbacks", "pytorch_lightning.callbacks"])
def test_the_other_namespace_is_left_to_its_users_in_either_order(first: str) -> None:
    program = f"""
import sys, {first}
from lightning_reg.callbacks import L1PenaltyCallback
before = L1PenaltyCallback(0.1)
print({first!r}.startswith("pytorch") or "pytorch_lightning" not in sys.modules)
import lightning.pytorch, pytorch_lightning
for callback in (before, L1PenaltyCallback(0.1)):
    print(isinstance(callback, lightning.pytorch.Callback), isinstance(callback, pytorch_lightning.Callback))
print([type(finder).__name__ for finder in sys.meta_path].count("_OtherNamespace"))
"""
    assert in_fresh_interpreter(program).split() == ["True"] * 5 + ["0"]
