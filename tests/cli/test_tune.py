"""``lightning-reg path`` and ``find`` on a config: what they write, and Ctrl-C."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from torch.utils.data import DataLoader

from lightning_reg.cli.main import main
from tests.support import data

pytest.importorskip("jsonargparse")
pytest.importorskip("matplotlib")


class Numbers(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(data(), batch_size=16)

    def val_dataloader(self) -> Any:
        return DataLoader(data(24), batch_size=24)


class Interrupt(pl.Callback):
    """Ctrl-C in the third point."""

    fits = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        Interrupt.fits += 1
        if Interrupt.fits == 3:
            raise KeyboardInterrupt


CONFIG = """
model: {class_path: tests.support.Net}
data: {class_path: tests.cli.test_tune.Numbers}
penalty: {class_path: lightning_reg.L1, init_args: {strength: 0}}
options: {points: 5, OPTIONS}
"""


def config(folder: Path, options: str) -> str:
    file = folder / "config.yaml"
    file.write_text(CONFIG.replace("OPTIONS", options))
    return str(file)


def lines(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["path", config(tmp_path, "max_epochs: 2, trainer: {accelerator: cpu}")]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    rows = lines(tmp_path / "out" / "path.csv")
    assert len(rows) == 5 and all(float(row["validation_loss"]) > 0 for row in rows)
    assert (tmp_path / "out" / "path.png").read_bytes().startswith(b"\x89PNG")
    assert "best strength" in capsys.readouterr().out


def test_ctrl_c_keeps_what_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_reg.cli import tune

    kept = tune.regularization_path
    monkeypatch.setattr(Interrupt, "fits", 0)
    monkeypatch.setattr(
        tune,
        "regularization_path",
        lambda *a, trainer, **k: kept(*a, trainer={**trainer, "callbacks": [Interrupt()]}, **k),
    )
    arguments = ["path", config(tmp_path, "max_epochs: 2, trainer: {accelerator: cpu}")]
    arguments += ["--output", str(tmp_path / "out")]
    assert main(arguments) == 130
    assert len(lines(tmp_path / "out" / "path.csv")) == 2
    assert "stopped after 2 points" in capsys.readouterr().out
    assert main(arguments) == 0
    assert len(lines(tmp_path / "out" / "path.csv")) == 5
    assert Interrupt.fits == 6  # two, the one that was stopped, and the three that were missing


def test_find(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["find", config(tmp_path, "warmup: 1, epochs: 1, trainer: {accelerator: cpu}")]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    assert len(lines(tmp_path / "out" / "find.csv")) == 5
    assert (tmp_path / "out" / "find.png").read_bytes().startswith(b"\x89PNG")
    assert "suggested strength" in capsys.readouterr().out
