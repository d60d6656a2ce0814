"""A hundred malformed command lines and configs: one line that names the key, and nothing started."""

from __future__ import annotations

import io
import math
import string
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_reg.cli.main import main

pytest.importorskip("jsonargparse")
pytestmark = pytest.mark.filterwarnings("ignore")


def hundred(examples: int) -> Any:
    return settings(
        max_examples=examples, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
    )


@dataclass(frozen=True)
class Malformed:
    """What is wrong: the arguments, the config, and what the line must hold."""

    arguments: tuple[str, ...]
    content: bytes | None
    names: tuple[str, ...]


def config(content: Any, *names: str, command: str = "run") -> Malformed:
    written = content if isinstance(content, bytes) else yaml.safe_dump(content).encode()
    arguments = {"run": ("run", "--callbacks", "@file", "@script"), "fit": ("fit", "--config", "@file")}
    return Malformed(arguments.get(command, (command, "@file")), written, names)


words = st.text(string.ascii_lowercase + "_", min_size=4, max_size=12).map(lambda word: f"x{word}")
junk = st.one_of(
    words, st.none(), st.booleans(), st.lists(words, max_size=2), st.dictionaries(words, words, max_size=2)
)
strengths = st.one_of(
    junk.filter(lambda value: value is not True),
    st.floats(max_value=-1e-300),
    st.sampled_from([math.nan, math.inf]),
)
KEYS = ("class_path", "init_args")
CALLBACKS = ["lightning_reg.callbacks.L1PenaltyCallback", "L2PenaltyCallback"]


@st.composite
def callback_lists(draw: st.DrawFn) -> Malformed:
    """A list of callbacks with one thing wrong."""
    path, word, name = (
        draw(st.sampled_from(CALLBACKS)),
        draw(words),
        draw(st.sampled_from(["L1", "ElasticNet"])),
    )
    strength = draw(strengths)

    def one(**init_args: Any) -> list[Any]:
        return [{"class_path": path, "init_args": {"strength": 1e-3, **init_args}}]

    def nested(penalty: Any) -> list[Any]:
        return [{"class_path": "PenaltyCallback", "init_args": {"penalty": penalty}}]

    return draw(
        st.sampled_from(
            [
                config(one(**{word: 1}), word, "strength, select, apply"),
                config(one(strength=strength), "strength"),
                config(one(apply=draw(junk.filter(lambda value: value is not None))), "apply", "'proximal'"),
                config(one(select=draw(st.sampled_from([3, [], {}, "", [""], [[]]]))), "select"),
                config([{"class_path": path, "init_args": {}}], "strength"),
                config([path], "strength"),
                config([{"class_path": path, "init_args": draw(words)}], path.rpartition(".")[2]),
                config([{"class_path": word}], word, "L1PenaltyCallback"),
                config([{"class_path": f"lightning_reg.callbacks.{word}"}], word, "L1PenaltyCallback"),
                config([{"class_path": f"{word}.{word}"}], word),
                config([{"class_path": "lightning_reg.L1", "init_args": {"strength": 1}}], "Callback"),
                config([{"class_path": path, word: 1}], word, *KEYS),
                config([{word: path}], word, *KEYS),
                config([draw(junk.filter(lambda value: not isinstance(value, str)))], *KEYS),
                config(
                    draw(
                        st.one_of(st.integers(), st.none(), st.dictionaries(words, junk, max_size=2), words)
                    ),
                    *KEYS,
                ),
                config({"callbacks": draw(st.one_of(st.integers(), st.none(), words))}, *KEYS),
                config(draw(st.binary(max_size=40)), "--callbacks"),
                config(
                    draw(
                        st.sampled_from(
                            [b"[", b"{a: ", b"- a: b: c", b"'", b"\t- a", b"&a [*a]", b"- 2001-13-45", b"!!x"]
                        )
                    ),
                    "allbacks",
                ),
                config(b"[" * draw(st.integers(500, 3000)), "--callbacks"),
                config(
                    nested({"class_path": f"lightning_reg.{name}", "init_args": {word: 1}}), word, "strength"
                ),
                config(nested({"class_path": name, "init_args": {"strength": strength}}), "strength"),
                config(nested(draw(junk)), "penalty"),
            ]
        )
    )


@st.composite
def flags(draw: st.DrawFn) -> Malformed:
    """A command line of ``run`` with one thing wrong."""
    text = st.text(max_size=12).filter(lambda value: not _is_number(value))
    schedules = st.builds("{}({})".format, st.sampled_from(["cosine", "linear", "multi_step", "sine"]), words)
    number = st.one_of(
        text, schedules, st.sampled_from(["-1", "nan", "inf", "cosine(1", "linear(0, -1)", "piecewise([])"])
    )
    counts = st.one_of(text, st.sampled_from(["0", "-3", "1.5", "²"]))
    values = {
        "--l1": number,
        "--l2": number,
        "--dropout": st.one_of(number, st.sampled_from(["1.5", "cosine(0.5, 2)"])),
        "--apply": text,
        "--strategy": text,
        "--precision": text,
        "--accelerator": text,
        "--devices": st.one_of(counts, st.sampled_from(["0,x", ",", "1,,2"])),
        "--num-nodes": counts,
        "--node-rank": text,
        "--main-port": counts,
    }
    flag = draw(st.sampled_from([*values, "unknown", "missing", "nothing", "alone", "valueless"]))
    valid = ("run", "--l1", "1e-3")
    word = draw(words)
    others = {
        "unknown": Malformed((*valid, f"--{word}", "@script"), None, (f"--{word}", "--callbacks, --l1")),
        "missing": Malformed(
            (*valid, *draw(st.sampled_from([(), (word,), ("-m",), ("-m", word), ("-m", f"{word}.{word}")]))),
            None,
            ("SCRIPT",),
        ),
        "nothing": Malformed(("run", "@script"), None, ("--callbacks", "--l1", "--dropout")),
        "alone": Malformed(
            ("run", "--dropout", "0.1", "--apply", "loss", "@script"), None, ("--apply", "--l1")
        ),
        "valueless": Malformed((*valid, "--l2", "--dry-run", "@script"), None, ("--l2",)),
    }
    if flag in others:
        return others[flag]
    return Malformed((*valid, f"{flag}={draw(values[flag])}", "@script"), None, (flag,))


def _is_number(text: str) -> bool:
    try:
        return float(text) >= 0
    except ValueError:
        return False


BORING = "lightning.pytorch.demos.boring_classes"


@st.composite
def study_configs(draw: st.DrawFn) -> Malformed:
    """A config of ``path`` or ``find`` with one thing wrong."""
    command, word, wrong = draw(st.sampled_from(["path", "find"])), draw(words), draw(junk)
    key = draw(st.sampled_from(["model", "data", "penalty"]))
    valid: dict[str, Any] = {
        "model": {"class_path": f"{BORING}.BoringModel"},
        "data": {"class_path": f"{BORING}.BoringDataModule"},
        "penalty": {"class_path": "lightning_reg.L1", "init_args": {"strength": 0}},
        "options": {"points": 3},
    }
    return draw(
        st.sampled_from(
            [
                config({**valid, word: 1}, word, "penalty", command=command),
                config({name: part for name, part in valid.items() if name != key}, key, command=command),
                config({**valid, key: wrong}, key, command=command),
                config({**valid, key: {"class_path": word}}, word, command=command),
                config({**valid, "options": {word: 3}}, word, "options.points", command=command),
                config({**valid, "options": {"points": word}}, "options.points", "int", command=command),
                config({**valid, "options": word}, "options", command=command),
                config(
                    draw(st.sampled_from([b"[", b"{a: ", b"- a: b: c", b"", b"3", b"\xff"])),
                    "@file",
                    command=command,
                ),
            ]
        )
    )


@st.composite
def fit_configs(draw: st.DrawFn) -> Malformed:
    """A config of ``fit`` with one thing wrong."""
    word = draw(words)
    callback = {"class_path": "L1PenaltyCallback", "init_args": {"strength": 1e-3}}
    valid: dict[str, Any] = {
        "trainer": {"callbacks": [callback], "logger": False},
        "model": {"class_path": f"{BORING}.BoringModel"},
        "data": {"class_path": f"{BORING}.BoringDataModule"},
    }
    wrong = {"class_path": "L1PenaltyCallback", "init_args": {word: 1}}
    negative = {"class_path": "L1PenaltyCallback", "init_args": {"strength": -1}}
    return draw(
        st.sampled_from(
            [
                config({**valid, word: 1}, word, command="fit"),
                config({**valid, "trainer": {word: 1}}, word, "trainer.max_epochs", command="fit"),
                config(
                    {**valid, "trainer": {"max_epochs": word}}, "trainer.max_epochs", "int", command="fit"
                ),
                config({**valid, "trainer": {"callbacks": [wrong]}}, word, "strength, select", command="fit"),
                config({**valid, "trainer": {"callbacks": [negative]}}, "strength=-1", command="fit"),
                config({**valid, "model": {"class_path": word}}, word, command="fit"),
                config({**valid, "model": 3}, "model", command="fit"),
                config(draw(st.sampled_from([b"[", b"{a: ", b"3", b"\xff"])), "config", command="fit"),
            ]
        )
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("malformed")
    (folder / "script.py").write_text("raise AssertionError('started')")
    return folder


def check(case: Malformed, folder: Path) -> None:
    file = folder / "file.yaml"
    if case.content is not None:
        file.write_bytes(case.content)
    stand_for = {"@file": str(file), "@script": str(folder / "script.py")}
    started = mock.Mock(side_effect=AssertionError("started"))
    err = io.StringIO()
    with (
        redirect_stderr(err),
        mock.patch("lightning_reg.cli.run.run_script", started),
        mock.patch("lightning_reg.cli.run.launch", started),
        mock.patch("lightning_reg.cli.tune.batches_of_data", started),
        mock.patch("lightning_reg.cli.lightning_cli.OneLineCLI._run_subcommand", started),
    ):
        status = main([stand_for.get(argument, argument) for argument in case.arguments])
    said = err.getvalue()
    assert status in (1, 2), said
    assert said.startswith(f"lightning-reg {case.arguments[0]}: ") and said.count("\n") == 1, said
    assert len(said) < 1500
    for name in case.names:
        assert stand_for.get(name, name) in said


@hundred(40)
@given(case=callback_lists())
def test_callbacks(case: Malformed, folder: Path) -> None:
    check(case, folder)


@hundred(35)
@given(case=flags())
def test_flags(case: Malformed, folder: Path) -> None:
    check(case, folder)


@hundred(15)
@given(case=study_configs())
def test_path_and_find(case: Malformed, folder: Path) -> None:
    check(case, folder)


@pytest.mark.slow
@hundred(10)
@given(case=fit_configs())
def test_fit(case: Malformed, folder: Path) -> None:
    check(case, folder)
