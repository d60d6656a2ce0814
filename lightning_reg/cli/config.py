"""Callbacks from a config: a list of class paths with their arguments, as under ``trainer.callbacks``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback

import lightning_reg.callbacks  # makes its names known to the parser
from lightning_reg.cli.errors import UsageError, one_line

__all__ = ["make_callbacks", "read_callbacks"]


def read_callbacks(file: Path) -> list[Mapping[str, Any]]:
    """Read a list of callbacks: the file's whole content, or what stands under ``callbacks``.

    Raises:
        UsageError: the file is not there, or holds something else.
    """
    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise UsageError(f"--callbacks: cannot read {file} ({error.strerror}); give a YAML file") from None
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: not UTF-8, or a date such as 1-13-1
        raise UsageError(f"--callbacks: {file} is not YAML: {one_line(error)}") from None
    if isinstance(content, Mapping) and set(content) == {"callbacks"}:
        content = content["callbacks"]
    if not isinstance(content, list) or not content:
        raise UsageError(
            f"--callbacks: {file} holds {_kind(content)}; give a list of callbacks, each with class_path and "
            "init_args"
        )
    entries = [{"class_path": entry} if isinstance(entry, str) else entry for entry in content]
    for entry in entries:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("class_path"), str):
            raise UsageError(f"callbacks: {entry!r} is not a callback; give class_path and init_args")
        if unknown := sorted(set(map(str, entry)) - {"class_path", "init_args"}):
            raise UsageError(f"callbacks: {unknown[0]!r} is not known; accepted are class_path and init_args")
    try:
        json.dumps(entries)
    except (TypeError, ValueError):
        raise UsageError(
            "callbacks: a value is neither a number, text, true, false, null, a list nor a mapping"
        ) from None
    return entries


def make_callbacks(entries: Sequence[Mapping[str, Any]]) -> list[Callback]:
    """Make the callbacks that a config describes, anew at each call.

    Raises:
        UsageError: a class is not there or not a callback, or an argument is not accepted.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callbacks", type=list[Callback])
    made: list[Callback] = []
    for entry in entries:
        if entry["class_path"] in dir(lightning_reg.callbacks):  # one in a room that is not loaded yet
            entry = {**entry, "class_path": f"{lightning_reg.callbacks.__name__}.{entry['class_path']}"}
        try:
            made += parser.instantiate(parser.parse_object({"callbacks": [entry]})).callbacks
        except Exception as error:
            raise UsageError(one_line(error, dir(lightning_reg.callbacks))) from error
    return made


def _kind(content: object) -> str:
    return "nothing" if content is None else f"{type(content).__name__} {str(content)[:60]!r}"
