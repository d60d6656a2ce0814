"""What is wrong with a command line or a config, in one line."""

from __future__ import annotations

import argparse
import inspect
import re
import traceback
from collections.abc import Iterable
from importlib import import_module
from typing import NoReturn

__all__ = ["OneLineParser", "UsageError", "one_line", "positive", "refusal"]

#: Lines of jsonargparse's errors that repeat what the others say.
_REPEATS = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes:|Errors:|Given value type:|"
    r"Given value: \w*[\[{(]|Expected a <class 'NoneType'>|Subclass types expect one of|a class path \(str\)|"
    r"a dict without class_path|a dict with parameters"
)


class UsageError(Exception):
    """An argument or a config that cannot be used: one line that says what came and what is accepted."""


class OneLineParser(argparse.ArgumentParser):
    """A parser that raises :class:`UsageError` where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        """Name the argument and what is accepted."""
        message = message.removeprefix("argument ")
        if message.startswith(("unrecognized", "the following")):
            message += (
                f"; accepted are {', '.join(name for action in self._actions for name in _names(action))}"
            )
        raise UsageError(" ".join(message.split()))


def _names(action: argparse.Action) -> list[str]:
    """What to write for an argument: an option's first name, or the words of one that has a closed set."""
    if action.option_strings:
        return [action.option_strings[0]]
    words = action.choices or [action.metavar or action.dest]
    return [str(word) for word in words]


def positive(text: str) -> int:
    """Return an argument that is a whole number, 1 or more.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 1 or more")


def one_line(error: BaseException, keys: Iterable[str] = ()) -> str:
    """Return a parser's error, which may span lines, in one, with what is accepted.

    Args:
        error: of jsonargparse, of YAML, or a refusal.
        keys: the keys that the config may have.
    """
    text = ""
    for line in (line.strip().removeprefix("- ") for line in str(error).splitlines()):
        if line and not _REPEATS.match(line):
            text += line if not text else f" {line}" if text.endswith(":") else f"; {line}"
    text = re.sub(r'Parser key "([^"]+)":', r"\1:", text)
    text = re.sub(r"an? <class '(?:[\w.]+\.)?(\w+)'>", r"\1", text)
    text = text.replace("a dict with class_path entry", "give class_path and init_args")
    text = re.sub(r"(Given|Got) value: (.{60}).*", r"\1 value: \2...", text)
    return f"{text}{_accepted(text, keys)}" if text else type(error).__name__


def refusal(error: BaseException | None) -> BaseException | None:
    """Return what this library refused in a sentence of its own, if that is behind ``error``."""
    while error is not None:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        last = str(frames[-1].f_globals.get("__name__")) if frames else ""
        if isinstance(error, (ValueError, TypeError)) and last.startswith("lightning_reg."):
            return error
        error = error.__cause__
    return None


def _accepted(text: str, keys: Iterable[str]) -> str:
    """What could stand in place of a name that is not known."""
    option = re.search(
        r"[Oo]ption '([^']+)' is not accepted|not accept option '([^']+)'|arguments: --(\S+)", text
    )
    paths = re.findall(r"given class_path '([^']+)'", text)
    module = re.search(r"module '([\w.]+)' has no attribute", text)
    names: Iterable[str] = ()
    if option and paths:
        module_name, _, name = paths[-1].rpartition(".")
        cls = getattr(import_module(module_name), name)
        names = [name for name in inspect.signature(cls).parameters if name not in ("args", "kwargs")]
    elif option:
        within = re.search(r"Group '([^']+)'", text)
        name = next(filter(None, option.groups())).partition("=")[0]
        group = within[1] if within else name.rpartition(".")[0]
        names = [key for key in keys if key.rpartition(".")[0] == group]
    elif module:
        names = getattr(import_module(module[1]), "__all__", ())
    elif "Expected a dot import path" in text:
        names = ["a class's path, module.Class", *(key for key in keys if key[0].isupper())]
    return f"; accepted are {', '.join(names)}" if names else ""
