"""The commands find modules in the current directory, as ``python -m`` does."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from lightning_reg.cli.main import main
from lightning_reg.cli.script import current_directory_first

pytest.importorskip("jsonargparse")
pytest.importorskip("matplotlib")

MINE = """
import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        return (self.linear(batch[0]) - batch[1]).square().mean()

    validation_step = training_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Numbers(pl.LightningDataModule):
    def train_dataloader(self):
        x = torch.linspace(-1, 1, 24).reshape(8, 3) ** 2
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8)

    val_dataloader = train_dataloader
"""
CONFIG = """
model: {class_path: found_here.Net}
data: {class_path: found_here.Numbers}
penalty: {class_path: lightning_reg.L1, init_args: {strength: 0}}
options: {points: 3, EPOCHS: 1, trainer: {accelerator: cpu}}
"""
EPOCHS = {"path": "max_epochs", "find": "epochs"}
FIT = "fit --model found_here.Net --data found_here.Numbers --trainer.max_epochs 1 --trainer.accelerator cpu"


@pytest.mark.slow
def test_the_installed_command_finds_a_module_in_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "found_here.py").write_text(MINE)
    command = str(Path(sysconfig.get_path("scripts")) / "lightning-reg")
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    fit = subprocess.run(
        [command, *FIT.split()], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert fit.returncode == 0, fit.stderr
    assert list((tmp_path / "lightning_logs").rglob("*.ckpt"))


@pytest.mark.parametrize("command", ["path", "find"])
def test_the_other_commands_find_it_too(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "found_here.py").write_text(MINE)
    (tmp_path / "config.yaml").write_text(CONFIG.replace("EPOCHS", EPOCHS[command]))
    monkeypatch.chdir(tmp_path)
    try:
        assert main([command, "config.yaml"]) == 0
    finally:
        sys.modules.pop("found_here", None)
    assert ("suggested: strength" in capsys.readouterr().out) == (command == "find")
    assert (tmp_path / f"lightning-reg-{command}" / f"{command}.csv").exists()


def test_the_search_path_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    with current_directory_first():
        assert sys.path == [str(tmp_path), *before]
    assert sys.path == before


def test_a_safe_path_stays(tmp_path: Path) -> None:
    program = "import sys; from lightning_reg.cli.script import current_directory_first as first\n"
    program += "before = list(sys.path)\nwith first(): print(sys.path == before)"
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", program]
    said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == str(sys.version_info >= (3, 11))
