"""Numbers and schedules on the command line: ``0.1`` and ``cosine(0.3, 0)``."""

from __future__ import annotations

import argparse
import ast
import inspect
import warnings
from dataclasses import fields
from typing import Any

import lightning_reg
from lightning_reg.schedules.base import Schedule, check_schedule

__all__ = ["dropout_rate", "strength"]

_ANYWHERE = ("Constant", "Cosine", "Exponential", "Linear", "MultiStep", "Piecewise", "Polynomial")
_STRENGTHS = (*_ANYWHERE, "TargetSparsity")
_RATES = (*_ANYWHERE, "AnnealedDropout", "CurriculumDropout", "EarlyDropout", "LateDropout")


def strength(text: str) -> Any:
    """Read a strength, as a value of a config.

    Raises:
        argparse.ArgumentTypeError: it is neither a number, 0 or more, nor a schedule.

    >>> strength("1e-4"), strength("linear(0, 1e-3, until=0.5)")["class_path"]
    (0.0001, 'lightning_reg.Linear')
    """
    return _read(text, "strength", float("inf"), _STRENGTHS)


def dropout_rate(text: str) -> Any:
    """Read a dropout rate, as a value of a config.

    Raises:
        argparse.ArgumentTypeError: it is neither a number from 0 to 1 nor a schedule.

    >>> dropout_rate("cosine(0.3, 0)")
    {'class_path': 'lightning_reg.Cosine', 'init_args': {'start': 0.3, 'end': 0, 'begin': 0, 'until': 1.0}}
    """
    return _read(text, "dropout rate", 1.0, _RATES)


def _read(text: str, what: str, upper: float, names: tuple[str, ...]) -> Any:
    try:
        number = float(text)
    except ValueError:
        return _schedule(text, what, upper, names)
    if not 0.0 <= number <= upper or number == float("inf"):
        limits = "from 0 to 1" if upper == 1.0 else "0 or more"
        raise argparse.ArgumentTypeError(f"{text!r} is not a {what}; give a finite number, {limits}")
    return number


def _schedule(text: str, what: str, upper: float, names: tuple[str, ...]) -> dict[str, Any]:
    known = {name.lower(): name for name in names}
    hint = f"give a number or a schedule such as 'cosine(0.3, 0)', of {', '.join(known)}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes such as "\\d"
            call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        call = None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise argparse.ArgumentTypeError(f"{text!r} is not a {what}; {hint}")
    name = known.get(call.func.id.lower().replace("_", ""))
    if name is None:
        raise argparse.ArgumentTypeError(f"{call.func.id!r} is not a schedule; {hint}")
    cls = getattr(lightning_reg, name)
    try:
        arguments = [ast.literal_eval(argument) for argument in call.args]
        keywords = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        made: Schedule = cls(*arguments, **keywords)
        check_schedule(made, 1_000, name=what, upper=upper)
    except (TypeError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        takes = f"{name.lower()}{inspect.signature(cls)}".replace(" -> None", "").replace("'", "")
        raise argparse.ArgumentTypeError(f"{text!r} is not a {what} ({error}); it is {takes}") from None
    values = {field.name: getattr(made, field.name) for field in fields(made)}  # type: ignore[arg-type]
    return {"class_path": f"lightning_reg.{name}", "init_args": values}
