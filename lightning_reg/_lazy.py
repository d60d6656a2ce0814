"""Names of a package that load when they are first asked for, listed once: in its stub, ``__init__.pyi``.

A line ``from lightning_reg.penalties import L1 as L1`` of the stub makes ``L1`` a name of the package: for
type checkers and, through :func:`lazy`, at run time. The stub is read when a name is first asked for, so
that importing the package costs nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any

__all__ = ["homes", "lazy", "load"]


@cache
def homes(package: str) -> dict[str, str]:
    """Return where each public name of ``package`` comes from: the module that its stub imports it from."""
    import ast
    from importlib.resources import files

    tree = ast.parse(files(package).joinpath("__init__.pyi").read_text(encoding="utf-8"))
    lines = [line for line in tree.body if isinstance(line, ast.ImportFrom) and line.module != "typing"]
    return {str(name.asname): str(line.module) for line in lines for name in line.names}


def load(package: str) -> None:
    """Load the names of ``package`` that come from its own modules.

    It is for a package with a function that has the name of its module, which the module would else hide, and
    for one whose classes a parser finds by their bare names once they are loaded.
    """
    for name, home in homes(package).items():
        if home.startswith(f"{package}."):
            setattr(sys.modules[package], name, getattr(import_module(home), name))


def lazy(
    package: str, *, elsewhere: Sequence[str] = (), unstarred: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` for a package whose names stand in its stub.

    ``__dir__`` lists them all; ``__all__`` leaves out rooms (``from lightning_reg import tune as tune``).

    Args:
        package: its ``__name__``.
        elsewhere: packages whose names work in this one too, unlisted, for those who look for them here.
        unstarred: names that ``__all__`` leaves out as well.
    """

    def get(name: str) -> Any:
        if name == "__all__":
            starred = (name for name, home in homes(package).items() if home != package)
            return sorted(name for name in starred if name not in unstarred)
        if name.startswith("__"):  # what tools ask of any module: __path__, __wrapped__
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        for room in (package, *elsewhere):
            if (home := homes(room).get(name)) is None:
                continue
            is_room = home == package
            value = import_module(f"{home}.{name}") if is_room else _get(home, name)
            setattr(sys.modules[package], name, value)
            return value
        raise AttributeError(f"module {package!r} has no attribute {name!r}{_near(package, elsewhere, name)}")

    def names() -> list[str]:
        return sorted({*homes(package), *(["__version__"] if "." not in package else [])})

    return get, names


def _get(home: str, name: str) -> Any:
    """A name of a module, or a module of a package."""
    module = import_module(home)
    return getattr(module, name) if hasattr(module, name) else import_module(f"{home}.{name}")


def _near(package: str, elsewhere: Sequence[str], name: str) -> str:
    """What the user may have meant."""
    from difflib import get_close_matches

    known = {each: room for room in (*elsewhere, package) for each in homes(room)}
    lowered = {each.lower(): each for each in known}
    near = get_close_matches(name, known, n=1) or [
        lowered[each] for each in get_close_matches(name.lower(), lowered, n=1)
    ]
    return f"; did you mean {known[near[0]]}.{near[0]}?" if near else ""
