"""What is wrong with a command line or a config, in one line."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

__all__ = ["OneLineParser", "UsageError", "one_line"]


class UsageError(Exception):
    """An argument or a config that cannot be used.

    Args:
        key: the option or the config's key.
        problem: what came, and what is accepted.
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")


class OneLineParser(argparse.ArgumentParser):
    """A parser that raises :class:`UsageError` where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        """Name the argument and what is accepted."""
        key, _, problem = message.removeprefix("argument ").partition(": ")
        if "unrecognized" in key or "required" in key:
            options = [name for action in self._actions for name in action.option_strings[-1:]]
            raise UsageError(
                problem, f"{key.removeprefix('the following ')}; accepted are {', '.join(options)}"
            )
        raise UsageError(key, one_line_of(problem))


def one_line(error: BaseException) -> str:
    """Return a parser's error, which may span lines, in one."""
    return one_line_of(str(error)) or type(error).__name__


def one_line_of(text: str) -> str:
    r"""Return ``text`` in one line.

    >>> one_line_of('Parser key "callbacks":\n  Expected a list')
    'callbacks: Expected a list'
    """
    return re.sub(r'Parser key "([^"]+)":', r"\1:", " ".join(text.split()))
