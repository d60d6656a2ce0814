"""Killed and resumed ≡ uninterrupted, bit for bit, wherever Lightning's own resume is."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from packaging.version import Version
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import L1, L2, Cosine, Linear
from lightning_reg.callbacks import PenaltyCallback
from tests.distributed.launch import Launch
from tests.support import QUIET, STRICT, Net, batches, data, weights

EPOCHS = 4
KILL_AT = 21  # in the third epoch of eight batches
MODES = ["gradient", "loss", "decoupled", "proximal"]
#: at an epoch's end with a plain loader; in mid-epoch where every batch is the same
SAVES: dict[str, dict[str, Any]] = {
    "epoch": {"every_n_epochs": 1},
    "mid-epoch": {"every_n_train_steps": 5},
}

pytestmark = pytest.mark.xdist_group("resume")  # one worker kills the runs, for all
own_resume_is_exact = pytest.mark.skipif(
    Version(pl.__version__) < Version("2.5"),
    reason="lightning 2.4 alone is not exact in mid-epoch",
)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-2)


def loader(saves: str) -> DataLoader:
    if saves == "epoch":
        return batches()
    x, y = data().tensors
    return DataLoader(TensorDataset(x[:8].repeat(8, 1), y[:8].repeat(8, 1)), batch_size=8)


class Kill(pl.Callback):
    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == KILL_AT:
            os.kill(os.getpid(), signal.SIGKILL)


def run(
    apply: Any,
    saves: str,
    folder: Path,
    *extra: pl.Callback,
    ckpt: Path | None = None,
    regularized: bool = True,
) -> Tensor:
    module = Net(adam)
    penalties = [
        PenaltyCallback(L1(Cosine(0.0, 0.05), "all"), apply=apply),
        PenaltyCallback(L2(Linear(0.1, 0.0, until=30)), apply=apply),
    ]
    checkpoint = ModelCheckpoint(folder, save_top_k=-1, filename="{step}", **SAVES[saves])
    options = {**QUIET, "enable_checkpointing": True, "max_epochs": EPOCHS}
    trainer = pl.Trainer(callbacks=[*(penalties if regularized else []), checkpoint, *extra], **options)
    trainer.fit(module, loader(saves), ckpt_path=ckpt, **STRICT)
    return weights(module)


def last(folder: Path) -> Path:
    return max(folder.glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1].split("-")[0]))


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """The last checkpoint of a killed run for each mode."""
    root = tmp_path_factory.mktemp("killed")
    Launch("tests.callbacks.test_resume", [str(root)], 1, root, "killed").succeed(300)
    return {(apply, saves): last(root / f"{apply}-{saves}") for apply in MODES for saves in SAVES}


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
@pytest.mark.parametrize("saves", ["epoch", pytest.param("mid-epoch", marks=own_resume_is_exact)])
@pytest.mark.parametrize("apply", MODES)
def test_killed_and_resumed_equals_uninterrupted(
    apply: Any, saves: str, killed: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    checkpoint = killed[apply, saves]
    state = torch.load(checkpoint, weights_only=True)
    assert state["global_step"] == (16 if saves == "epoch" else 20)
    uninterrupted = run(apply, saves, tmp_path / "whole")
    resumed = run(apply, saves, checkpoint.parent, ckpt=checkpoint)
    assert torch.equal(resumed, uninterrupted)
    if saves == "epoch":
        from_start = run(apply, saves, tmp_path / "plain", regularized=False)
        assert not torch.equal(from_start, uninterrupted)


def test_a_checkpoint_loads_without_this_library(killed: dict[tuple[str, str], Path]) -> None:
    """By plain Lightning, in a process that cannot import lightning_reg."""
    for apply in MODES:
        checkpoint = killed[apply, "epoch"]
        state = torch.load(checkpoint, weights_only=True)
        assert not any("Penalty" in key for key in state["callbacks"])
    script = f"""
import sys
import importlib.metadata as metadata
sys.modules["lightning_reg"] = None  # any import of it raises
all_entry_points = metadata.entry_points  # and it has no entry points, as if it were not installed
def others(**group):
    found = all_entry_points(**group)
    return [e for e in found if not e.value.startswith("lightning_reg")] if group else found
metadata.entry_points = others
import lightning.pytorch as pl, torch
from torch.utils.data import DataLoader, TensorDataset

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(10, 5), torch.nn.ReLU(), torch.nn.Linear(5, 1))
    def training_step(self, batch, batch_idx):
        return torch.nn.functional.mse_loss(self.net(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)

module = Net()
pl.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False,
           enable_progress_bar=False).fit(
    module, DataLoader(TensorDataset(torch.zeros(64, 10), torch.zeros(64, 1)), batch_size=8),
    ckpt_path={str(checkpoint)!r}, **{STRICT!r})
assert module.trainer.global_step == 24
"""
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], check=True, timeout=300, capture_output=True
    )


def main(root: str) -> None:
    for apply, saves in itertools.product(MODES, SAVES):
        child = os.fork()  # what is imported once serves all, and no thread has started
        if child == 0:
            run(apply, saves, Path(root) / f"{apply}-{saves}", Kill())
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (apply, saves, status)
