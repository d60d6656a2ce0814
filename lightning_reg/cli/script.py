"""One process of ``lightning-reg run``: the script, as ``python SCRIPT`` would run it.

``python -m lightning_reg.cli.script [-m] SCRIPT [ARGS...]`` is what torchelastic starts in each process;
what to attach stands in the environment.
"""

from __future__ import annotations

import builtins
import io
import os
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from types import ModuleType, TracebackType

from lightning_reg.cli.errors import UsageError, one_line, refusal
from lightning_reg.cli.plan import Plan
from lightning_reg.cli.trainer_options import trainer_options
from lightning_reg.hosts.requested import VARIABLE

__all__ = ["as_program", "current_directory_first", "main", "run_script"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script of a process that torchelastic started."""
    argv = sys.argv[1:] if argv is None else list(argv)
    is_module = argv[0] == "-m"
    target, *arguments = argv[is_module:]
    return run_script(Plan.from_json(os.environ[VARIABLE]), target, arguments, is_module)


def run_script(plan: Plan, target: str, arguments: Sequence[str], is_module: bool) -> int:
    """Run a script or a module, and return its exit status.

    Args:
        plan: what the Trainers it makes are given.
        target: the script's path, or the module's name.
        arguments: its arguments.
        is_module: whether ``target`` is a module's name, as after ``python -m``.
    """
    try:
        with trainer_options(plan.options), as_program(target, arguments, is_module):
            if is_module:
                runpy.run_module(target, run_name="__main__", alter_sys=True)
            else:
                _run_file(target)
    except SystemExit as end:
        return _status(end)
    except Exception as error:
        if plan.noted("end"):
            return 0
        plan.note("failed")
        return _failed(error)
    return 0


@contextmanager
def as_program(target: str, arguments: Sequence[str], is_module: bool) -> Iterator[None]:
    """``sys.argv`` and ``sys.path`` as the interpreter would set them."""
    argv, path, main = sys.argv, list(sys.path), sys.modules["__main__"]
    sys.argv = [target, *arguments]
    if not _is_safe_path():
        sys.path[0] = os.getcwd() if is_module else os.path.dirname(os.path.realpath(target))
    try:
        yield
    finally:
        sys.argv, sys.path[:], sys.modules["__main__"] = argv, path, main


@contextmanager
def current_directory_first() -> Iterator[None]:
    """Look for modules in the current directory first, as ``python -m`` does and installed commands do not.

    Under ``python -P``, or with ``PYTHONSAFEPATH`` set, nothing changes.
    """
    if _is_safe_path():
        yield
        return
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _is_safe_path() -> bool:
    return getattr(sys.flags, "safe_path", False)  # Python 3.11


def _run_file(target: str) -> None:
    # runpy.run_path would make __file__ relative, and take the module away while its threads still run
    path = os.path.abspath(target)
    main = ModuleType("__main__")
    main.__dict__.update(
        __file__=path, __builtins__=builtins, __cached__=None, __loader__=SourceFileLoader("__main__", path)
    )
    sys.modules["__main__"] = main
    with io.open_code(path) as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    exec(code, main.__dict__)


def _status(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1


def _failed(error: Exception) -> int:
    """Print what a script's exception would print; what this library refuses is one line."""
    if isinstance(error, UsageError) or _is_ours(error):
        print(f"lightning-reg run: {one_line(error)}", file=sys.stderr)
        return 1
    traceback.print_exception(type(error), error, _without_ours(error.__traceback__))
    return 1


def _is_ours(error: Exception) -> bool:
    """Whether a callback refused; what the script itself calls wrongly is its own."""
    names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    return "_call_callback_hooks" in names and refusal(error) is error


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    ours = {__file__, runpy.__file__, "<frozen runpy>"}
    while trace is not None and trace.tb_next is not None and trace.tb_frame.f_code.co_filename in ours:
        trace = trace.tb_next
    return trace


if __name__ == "__main__":
    sys.exit(main())
