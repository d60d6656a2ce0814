"""``lightning-reg completion`` prints what a shell can read, with the options of every command."""

from __future__ import annotations

import importlib.util
import subprocess

import pytest

from lightning_reg.cli.main import main


def test_bash_reads_the_script_and_it_knows_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert "stability" in script and "--dropout" in script and "--precision" in script  # of find, of run
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


@pytest.mark.skipif(importlib.util.find_spec("shtab") is not None, reason="shtab is installed")
def test_without_shtab_the_sentence_says_what_to_install(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 1
    assert "lightning-reg completion needs shtab; run: pip install 'shtab'" in capsys.readouterr().err
