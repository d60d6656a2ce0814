"""The rooms of the source: what each may import, read from the code as text."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "lightning_reg"
#: From the ground up: a room imports from itself and from rooms before it.
ROOMS = [
    "tensors",
    "select",
    "groups",
    "prox",
    "schedules",
    "dropout",
    "penalties",
    "constraints",
    "metrics",
    "apply",
    "hosts",
    "look",
    "data",
    "modules",
    "callbacks",
    "tune",
    "cli",
]
#: Rooms that may import Lightning.
WITH_LIGHTNING = {"hosts", "callbacks", "modules", "tune", "cli", "data"}


class Import(NamedTuple):
    """One import of a module: from which file, of what, and where in it."""

    file: str
    room: str
    module: str
    names: tuple[str, ...]
    level: str  # "module", "function" or "typing"


def imports() -> Iterator[Import]:
    for path in sorted(PACKAGE.rglob("*.py")) + sorted((PACKAGE / "callbacks").glob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        if "/" in file:
            yield from _imports_of(ast.parse(path.read_text()), file, "module")


def _imports_of(node: ast.AST, file: str, level: str) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        inner = level
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inner = "function"
        elif isinstance(child, ast.expr):
            continue  # no import inside
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            inner = "typing"
        room = file.partition("/")[0]
        if isinstance(child, ast.ImportFrom) and child.module:
            yield Import(file, room, child.module, tuple(a.name for a in child.names), inner)
        elif isinstance(child, ast.Import):
            yield from (Import(file, room, a.name, (), inner) for a in child.names)
        else:
            yield from _imports_of(child, file, inner)


ALL = list(dict.fromkeys(imports()))
OURS = [i for i in ALL if i.module.startswith("lightning_reg.") and i.module != "lightning_reg._lazy"]


def room_of(module: str) -> str:
    return module.split(".")[1]


#: Longer than 300 lines for now; each is to be split, and none may join.
LONG = {
    "prox/group.py",
}


def test_every_folder_is_a_room_and_no_module_lies_outside() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= set(ROOMS)
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "_lazy.py"}


def test_no_arrow_points_up() -> None:
    up = [i for i in OURS if i.level == "module" and ROOMS.index(room_of(i.module)) > ROOMS.index(i.room)]
    assert not up, "\n".join(f"{i.file} imports {i.module}" for i in up)


def test_no_circle_of_modules() -> None:
    graph: dict[str, set[str]] = {}
    for i in OURS:
        if i.level in ("module", "function"):  # a late import would only hide the circle
            me = "lightning_reg." + i.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            graph.setdefault(me, set()).add(i.module)
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " → ".join((*above[above.index(module) :], module))
        if module not in done:
            for other in sorted(graph.get(module, ())):
                visit(other, (*above, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_no_private_name_crosses_rooms() -> None:
    crossing = [
        i
        for i in OURS
        if room_of(i.module) != i.room
        and any(part.startswith("_") for part in (*i.module.split("."), *i.names) if part != "__version__")
    ]
    assert not crossing, "\n".join(f"{i.file} takes {i.module}: {', '.join(i.names)}" for i in crossing)


def test_lightning_is_imported_in_its_rooms_only() -> None:
    roots = {"lightning", "pytorch_lightning"}
    strangers = [i for i in ALL if i.module.partition(".")[0] in roots and i.room not in WITH_LIGHTNING]
    assert not strangers, "\n".join(f"{i.file} imports {i.module}" for i in strangers)


@pytest.mark.parametrize("file", sorted({i.file for i in ALL}))
def test_a_file_has_at_most_300_lines(file: str) -> None:
    assert (len((PACKAGE / file).read_text().splitlines()) <= 300) or file in LONG
