"""``lightning-reg path`` and ``find`` on a config: what they write, and Ctrl-C."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import time
from inspect import signature
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from torch import nn
from torch.utils.data import DataLoader

from lightning_reg.cli.main import main
from lightning_reg.cli.tune import NOT_OPTIONS
from lightning_reg.tune import compare, find_strength, regularization_path, stability_selection
from tests.support import Net, data

pytest.importorskip("jsonargparse")
pytest.importorskip("matplotlib")


class Numbers(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(data(), batch_size=16)

    def val_dataloader(self) -> Any:
        return DataLoader(data(24), batch_size=24)


class Slow(Net):
    """A point takes half a second, so that a signal comes in the midst of one."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.training:
            time.sleep(0.06)
        return super().training_step(batch, batch_idx)


class Dropping(Net):
    def __init__(self) -> None:
        super().__init__()
        self.net.insert(1, nn.Dropout(0.25))


OF: dict[str, Any] = {
    "path": regularization_path,
    "find": find_strength,
    "compare": compare,
    "stability": stability_selection,
}

CONFIG = """
model: {class_path: MODEL}
data: {class_path: tests.cli.test_tune.Numbers}
penalty: {class_path: lightning_reg.L1, init_args: {strength: 0}}
options: {OPTIONS, trainer: {accelerator: cpu}}
"""


def config(folder: Path, options: str, model: str = "tests.support.Net") -> str:
    file = folder / "config.yaml"
    file.write_text(CONFIG.replace("OPTIONS", options).replace("MODEL", model))
    return str(file)


def lines(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["path", config(tmp_path, "points: 3, max_epochs: 3, patience: 2")]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    rows = lines(tmp_path / "out" / "path.csv")
    assert len(rows) == 3 and all(float(row["validation_loss"]) > 0 and row["best_epoch"] for row in rows)
    assert (tmp_path / "out" / "path.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "best strength" in said and "standard error" not in said and "3/3" in said


def test_path_with_folds_says_both_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["path", config(tmp_path, "strengths: [0.1, 0.01], folds: 3, max_epochs: 1")]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    assert all(float(row["validation_error"]) > 0 for row in lines(tmp_path / "out" / "path.csv"))
    said = capsys.readouterr().out
    assert "best strength" in said and "within one standard error of it" in said
    assert "fold3" in said and said.count("2/2") == 4


@pytest.mark.parametrize("dropout", [False, True], ids=["strength", "dropout"])
def test_find(tmp_path: Path, capsys: pytest.CaptureFixture[str], dropout: bool) -> None:
    file = config(tmp_path, "points: 3, epochs: 1", "tests.cli.test_tune.Dropping")
    if dropout:
        text = Path(file).read_text()
        Path(file).write_text("\n".join(line for line in text.splitlines() if "penalty" not in line))
    arguments = ["find", file, "--output", str(tmp_path / "out"), *(["--dropout"] if dropout else [])]
    assert main(arguments) == 0
    found = [float(row["rate" if dropout else "strength"]) for row in lines(tmp_path / "out" / "find.csv")]
    assert found[0] == 0.0 and len(found) == (3 if dropout else 4)
    assert (tmp_path / "out" / "find.png").read_bytes().startswith(b"\x89PNG")
    assert f"suggested: {'dropout rate' if dropout else 'strength'} " in capsys.readouterr().out


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(config(tmp_path, "epochs: 1, budget: 3, seeds: 2"))
    kinds = "kinds: [l2 decoupled, {class_path: lightning_reg.L2, init_args: {strength: 0}}]"
    file.write_text(
        "\n".join([line for line in file.read_text().splitlines() if "penalty" not in line] + [kinds])
    )
    out = tmp_path / "out"
    assert main(["compare", str(file), "--output", str(out)]) == 0
    said = capsys.readouterr().out
    assert "Recommended: " in said and "l2 decoupled" in said
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert [row["kind"] for row in lines(out / "compare.csv")] == ["none"] * 2 + ["l2 decoupled"] * 2 + [
        "l2"
    ] * 2
    kept = {run: run.stat().st_mtime_ns for run in out.glob("runs/*.pt")}
    assert len(kept) == 2 + 4 + 4 and main(["compare", str(file), "--output", str(out)]) == 0
    assert all(run.stat().st_mtime_ns == time for run, time in kept.items())


def test_stability(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = config(tmp_path, "points: 2, subsamples: 2, max_epochs: 2"), tmp_path / "out"
    assert main(["stability", file, "--output", str(out)]) == 0
    said = capsys.readouterr().out
    assert "2/2" in said and ("are stable" in said or "too many" in said)
    units = sum(p.numel() for p in Net().parameters() if p.dim() > 1)
    assert len(lines(out / "stability.csv")) == units and len(list(out.glob("subsamples/*.pt"))) == 2
    assert (out / "stability.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", ["path", "find", "compare", "stability"])
def test_help_lists_the_options_of_the_config(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "82")  # argparse leaves two columns free
    with pytest.raises(SystemExit):
        main([command, "--help"])
    said = capsys.readouterr().out
    function = OF[command]
    for name in set(signature(function).parameters) - NOT_OPTIONS:
        assert f"\n  {name} (" in said, name
    assert max(map(len, said.splitlines())) <= 80 and ":func:" not in said and "``" not in said


def interrupted(arguments: list[str], ready: Any) -> str:
    """Send SIGINT to the command once it is ready, and return what it has said."""
    command = [sys.executable, "-m", "lightning_reg.cli.main", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            end = time.monotonic() + 90
            while not ready():
                assert process.poll() is None and time.monotonic() < end, "ended, or was not ready in 90 s"
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, said
    return said


@pytest.mark.slow
@pytest.mark.turns(2, 0)
@pytest.mark.usefixtures("_interruptible")
def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    out = tmp_path / "out"
    file = config(tmp_path, "points: 5, max_epochs: 2", "tests.cli.test_tune.Slow")
    arguments = ["path", file, "--output", str(out)]
    said = interrupted(arguments, lambda: len(list(out.glob("points/path-*.pt"))) == 2)
    assert "stopped after 2 points" in said
    assert len(lines(out / "path.csv")) == 2 and (out / "path.png").exists()
    kept = {point: point.stat().st_mtime_ns for point in out.glob("points/path-*.pt")}
    assert main(arguments) == 0
    assert len(lines(out / "path.csv")) == 5
    assert all(point.stat().st_mtime_ns == time for point, time in kept.items())


@pytest.mark.slow
@pytest.mark.turns(2, 1)
@pytest.mark.usefixtures("_interruptible")
def test_ctrl_c_keeps_what_find_has_seen(tmp_path: Path) -> None:
    out, begun = tmp_path / "out", time.monotonic()
    file = config(tmp_path, "points: 300, epochs: 1", "tests.cli.test_tune.Slow")

    # nothing is written before the end: three seconds after the folder is there, some points are done
    def ready() -> bool:
        nonlocal begun
        begun = begun if out.exists() else time.monotonic()
        return time.monotonic() - begun > 3

    said = interrupted(["find", file, "--output", str(out)], ready)
    assert "stopped after" in said and 0 < len(lines(out / "find.csv")) < 300


class Unread(Numbers):
    def setup(self, stage: str) -> None:
        raise AssertionError("the data were loaded")


@pytest.mark.parametrize(
    ("command", "options", "sentence"),
    [
        ("path", "points: 0", "points=0 and ratio=0.01 are no path"),
        ("path", "ratio: 1.5", "ratio=1.5 are no path"),
        ("path", "strengths: [0.1, -1]", "not all finite and above 0"),
        ("path", "patience: 0", "patience=0 stops a point"),
        ("path", "folds: 1", "folds=1 is out of range"),
        ("find", "points: 0", "points=0 is too few; give 3 or more"),
        ("find --dropout", "highest: 1", "highest=1.0 makes no sweep; give 0 < highest < 1"),
    ],
)
def test_options_are_refused_before_the_data_are_loaded(
    command: str, options: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(config(tmp_path, options))
    file.write_text(file.read_text().replace("Numbers", "Unread"))
    assert main([*command.split(), str(file), "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()
