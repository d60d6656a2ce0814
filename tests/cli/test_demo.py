"""The demo runs from any folder, shows what it promises, and leaves nothing but its figure."""

import builtins
import logging

import pytest
import torch
from rich.console import Console

from lightning_reg.cli.main import main


def test_demo_trains_every_method_and_leaves_only_its_figure(tmp_path, monkeypatch):
    from lightning_reg.cli.demo import METHODS, demo

    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    console = Console(record=True, width=80, force_terminal=False)
    results = demo(tmp_path / "new" / "figure.png", epochs=30, console=console)

    assert [path.name for path in tmp_path.rglob("*")] == ["new", "figure.png"]
    assert (tmp_path / "new" / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert torch.get_num_threads() == threads
    assert logging.root.manager.disable == logging.NOTSET
    text = console.export_text()
    assert "…" not in text, "a column is cut at 80 characters"
    assert all(name in text for name in METHODS)
    by_name = {result.name: result for result in results}
    assert all(result.validation > 90 for result in results)
    assert by_name["plain"].zeros == by_name["L1 (gradient)"].zeros == by_name["L2"].zeros == 0
    assert by_name["L1 (proximal)"].zeros > 50
    assert by_name["elastic net (proximal)"].zeros > 50


def test_demo_command_passes_its_arguments_on(tmp_path, capsys):
    assert main(["demo", "--epochs", "1", "--seed", "3", "--output", str(tmp_path / "f.png")]) == 0
    captured = capsys.readouterr()
    assert "epochs: 1" in captured.out and captured.out.rstrip().endswith("f.png")
    assert captured.err == ""


@pytest.mark.parametrize(
    "module, package", [("sklearn", "scikit-learn"), ("matplotlib", "matplotlib"), ("rich", "rich")]
)
def test_a_missing_extra_is_one_sentence(module, package, monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "lightning_reg.cli.demo":
            raise ModuleNotFoundError(f"No module named '{module}.part'", name=f"{module}.part")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["demo"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"lightning-reg demo needs {package}; install it with: pip install 'lightning-reg[demo]'\n"
    )


def test_other_missing_modules_are_not_blamed_on_an_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "lightning_reg.cli.demo":
            raise ModuleNotFoundError("No module named 'other'", name="other")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match="other"):
        main(["demo"])


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["demo", "--epochs", "0"], ["demo", "--epochs", "x"]])
def test_bad_arguments_are_one_line(arguments, capsys):
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lightning-reg")
    assert "1 or more" in line if "--epochs" in arguments else "demo" in line


def test_help_and_version(capsys):
    for arguments, expected in (
        (["--help"], "demo"),
        (["demo", "--help"], "--output"),
        (["--version"], "0."),
    ):
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        assert exit.value.code == 0
        assert expected in capsys.readouterr().out
