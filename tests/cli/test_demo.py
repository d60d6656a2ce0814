"""The demo runs from any folder, shows what it promises, and leaves nothing but its figure."""

import builtins
import logging

import pytest
import torch
from rich.console import Console
from torch import nn

import lightning_reg.callbacks
from lightning_reg import EarlyDropout
from lightning_reg.cli.main import main


@pytest.mark.slow
def test_demo_trains_every_method_and_leaves_only_its_figure(tmp_path, monkeypatch):
    from lightning_reg.cli.demo import METHODS, demo

    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    console = Console(record=True, width=80, force_terminal=False)
    results = demo(tmp_path / "new" / "figure.png", epochs=12, seeds=1, console=console)

    assert [path.name for path in tmp_path.rglob("*")] == ["new", "figure.png"]
    assert (tmp_path / "new" / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert torch.get_num_threads() == threads
    assert logging.root.manager.disable == logging.NOTSET
    text = console.export_text()
    assert "…" not in text, "a column is cut at 80 characters"
    assert all(name in text for name in METHODS) and "nothing is claimed" in text
    by_name = {result.name: result for result in results}
    assert all(result.accuracy > 70 for result in results)
    assert by_name.pop("proximal L1").zeros > 50
    assert all(result.zeros == 0 for result in by_name.values())


def test_what_to_type_is_what_was_trained_with():
    from lightning_reg.cli.demo import METHODS

    names = vars(lightning_reg.callbacks) | {"nn": nn, "EarlyDropout": EarlyDropout}
    methods = [method for method in METHODS.values() if method is not None]
    for method in methods:
        typed, trained = vars(eval(method.code, dict(names))), vars(method.make())
        for what in ("penalty", "apply", "rate", "after"):
            assert typed.get(what) == trained.get(what), method.code
    assert len(methods) == 5


def result(name, losses, accuracies, zeros=0.0):
    from lightning_reg.cli.demo_figure import Result

    return Result(name, [[9.0, loss] for loss in losses], accuracies, [zeros] * len(losses))


def test_the_claim_is_computed_from_the_table():
    from lightning_reg.cli.demo import claims

    plain = result("plain", [0.9, 1.0, 1.1], [80.0, 81.0, 82.0])
    better = result("L2", [0.8, 0.85, 0.9], [81.5, 82.0, 82.5])  # by 0.15 > 0.1, and 1.0 = 1.0
    near = result("L1", [0.85, 0.92, 0.99], [82.0, 83.5, 85.0], zeros=40.0)  # by 0.08 < 0.1, and 2.5 > 1.5
    lines = claims([plain, better, near])
    assert lines[0] == "Better than plain by more than one deviation: in loss L2; in accuracy L1."
    assert "L1 has 40 % exact zeros, at +2.5 points" in lines[1]
    assert lines[-1] == "  Trainer(callbacks=[L2PenaltyCallback(1e-2)])"
    assert claims([plain, result("L2", [0.95, 1.0, 1.1], [80.0] * 3)])[-1] == "No regularizer won here."
    assert "nothing is claimed" in claims([result("plain", [1.0], [80.0]), result("L2", [0.5], [90.0])])[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",  # every other day: the test above looks at all methods each day
    [pytest.param(0, marks=pytest.mark.turns(4, 0)), pytest.param(3, marks=pytest.mark.turns(4, 2))],
)
def test_at_least_two_methods_win_beyond_one_deviation(first, tmp_path):
    from lightning_reg.cli.demo import demo

    plain, *others = demo(tmp_path / "figure.png", seed=first, console=Console(quiet=True))
    by_loss = [r for r in others if plain.loss - r.loss > max(plain.loss_deviation, r.loss_deviation)]
    by_accuracy = [
        r for r in others if r.accuracy - plain.accuracy > max(plain.accuracy_deviation, r.accuracy_deviation)
    ]
    assert min(len(by_loss), len(by_accuracy)) >= 2


def test_demo_command_passes_its_arguments_on(tmp_path, capsys):
    command = ["demo", "--epochs", "1", "--seed", "3", "--seeds", "2", "--output", str(tmp_path / "f.png")]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert "1 epochs, seeds 3 to 4" in captured.out and captured.out.rstrip().endswith("f.png")
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
    assert captured.err == f"lightning-reg demo needs {package}; run: pip install '{package}'\n"


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
