"""What the README shows runs, in the order in which it stands there."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_every_python_block_runs_and_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    assert len(blocks("python")) >= 5
    for number, block in enumerate(blocks("python"), 1):
        exec(compile(block, f"README.md, python block {number}", "exec"), names)
    data = DataLoader(TensorDataset(torch.randn(8, 10), torch.randn(8, 1)), batch_size=4)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = names["Trainer"](max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(names["Net"](), data)
    assert trainer.global_step == 2
    names["model"](torch.ones(1, 10)).sum().backward()
    names["optimizer"].step()
    assert names["handle"].step == 1


def test_shell_commands_are_one_line_each_and_name_real_extras():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(lines) == 2
    for line in lines:
        extra = re.search(r"\.\[(\w+)\]", line).group(1)
        assert extra in project["optional-dependencies"]
        assert shlex.split(line)
    assert "lightning-reg" in project["scripts"]


def test_badges_say_what_the_project_says():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    badges = " ".join(re.findall(r"^!\[(.*?)\]\(https://img", README, re.MULTILINE))
    versions = [c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r"Python :: 3\.\d+", c)]
    assert f"Python {versions[0]} to {versions[-1]}" in badges
    assert f"license {project['license']}" in badges
    (lightning,) = [line for line in project["dependencies"] if line.startswith("lightning")]
    assert f"Lightning {re.search(r'>=([0-9.]+)', lightning).group(1)} or later" in badges


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
