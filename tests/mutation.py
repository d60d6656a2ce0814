"""Whether the everyday tests notice a broken formula: ``python -m tests.mutation``, some twenty minutes.

The operators are cosmic-ray's (``pip install 'cosmic-ray>=8.4'``). One process collects the tests and notes
which of them enter which function. Each mutant is a fork of it in which one function has other code; the
tests that enter that function run in the fork, the quickest first, until one fails. A seeded draw takes as
many mutants of each room.
"""

from __future__ import annotations

import argparse
import ast
import gc
import json
import os
import random
import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ["penalties", "prox", "schedules", "constraints", "apply"]
#: Compiled by numba once, so that other code in a fork would not run.
COMPILED = {"prox/_loops.py", "prox/_group_loops.py"}
TESTS = [
    *(f"tests/{room}" for room in (*ROOMS, "groups", "hosts", "parity")),
    *(
        f"tests/callbacks/test_{name}.py"
        for name in ("penalty", "constraints", "structured", "forward_penalty")
    ),
    *(f"lightning_reg/{room}" for room in ROOMS),
]
CPU_SECONDS = 60
WALL_SECONDS = 300
Key = tuple[str, str, int]


class Mutant(NamedTuple):
    """One function with one token changed."""

    room: str
    operator: str
    line: int
    was: str
    now: str
    key: Key
    code: CodeType


# --- which mutants there are -------------------------------------------------------------------------


def operators() -> Iterator[tuple[str, Any]]:
    """Those of cosmic-ray that leave a program which could have been meant."""
    from cosmic_ray.plugins import get_operator, operator_names

    arithmetic = {"Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow"}
    for name in operator_names():
        kind, _, swap = name.removeprefix("core/").partition("_")
        old, _, new = swap.partition("_")
        if kind in ("VariableReplacer", "VariableInserter", "RemoveDecorator", "ExceptionReplacer"):
            continue
        if kind == "ReplaceBinaryOperator" and (old in arithmetic) != (new in arithmetic):
            continue  # a TypeError that any test sees
        if kind == "ReplaceBinaryOperator" and {old, new} & {"LShift", "RShift"}:
            continue
        if kind == "ReplaceComparisonOperator" and ("Is" in old) != ("Is" in new):
            continue
        if kind == "ReplaceUnaryOperator" and "Invert" in (old, new) and "Delete" not in (old, new):
            continue
        yield name.removeprefix("core/"), get_operator(name)()


def functions(tree: ast.AST, inside: str = "") -> Iterator[tuple[Key, range, list[range]]]:
    """Outermost functions: their key, the lines of their bodies, and lines without code that counts."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from functions(node, f"{inside}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            skip = [
                range(part.lineno, (part.end_lineno or part.lineno) + 1)
                for part in ast.walk(node)
                if isinstance(part, ast.Raise)
                or (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
            ]
            body = range(node.body[0].lineno, (node.end_lineno or 0) + 1)
            yield ("", f"{inside}{node.name}", first), body, skip


def code_in(code: CodeType, qualname: str, first: int) -> CodeType | None:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            if (inner.co_qualname, inner.co_firstlineno) == (qualname, first):
                return inner
            if found := code_in(inner, qualname, first):
                return found
    return None


def annotations(tree: ast.AST) -> set[tuple[int, int]]:
    places = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign):
            places |= {(n.lineno, n.col_offset) for n in ast.walk(node.annotation) if isinstance(n, ast.expr)}
    return places


def sites(path: Path) -> dict[tuple[Key, tuple[int, int]], list[tuple[str, Any, int]]]:
    """Places in the functions of a file, and the changes that could be made at each."""
    from cosmic_ray.ast import ast_nodes, get_ast

    source = path.read_text()
    tree, parsed = ast.parse(source), get_ast(source)
    annotated = {line for line, _ in annotations(tree)}
    lines = source.splitlines()
    inside = list(functions(tree))
    nodes = list(ast_nodes(parsed))
    found: dict[tuple[Key, tuple[int, int]], list[tuple[str, Any, int]]] = defaultdict(list)
    for name, operator in operators():
        occurrence = -1
        for node in nodes:
            for (line, column), _ in operator.mutation_positions(node):
                occurrence += 1
                if line in annotated or "raise " in lines[line - 1]:
                    continue
                for (_, qualname, first), body, skip in inside:
                    if line in body and not any(line in part for part in skip):
                        key = str(path), qualname, first
                        found[key, (line, column)].append((name, operator, occurrence))
    return found


def drawn(count: int, seed: int) -> Iterator[Mutant]:
    """As many mutants of each room, each at a place of its own; the rooms take turns."""
    each = [drawn_of(room, count // len(ROOMS), seed) for room in ROOMS]
    for turn in zip_longest(*each):
        yield from filter(None, turn)


def drawn_of(room: str, count: int, seed: int) -> Iterator[Mutant]:
    from cosmic_ray.mutating import mutate_code

    folder = ROOT / "lightning_reg" / room
    files = sorted(folder.rglob("*.py"))
    files = [p for p in files if p.relative_to(folder.parent).as_posix() not in COMPILED]
    places = [(path, place, changes) for path in files for place, changes in sites(path).items()]
    generator = random.Random(f"{seed} {room}")
    generator.shuffle(places)
    for path, (key, (line, _)), changes in places:
        if count == 0:
            return
        name, operator, occurrence = generator.choice(changes)
        source = path.read_text()
        mutated = mutate_code(source, operator, occurrence)
        try:
            code = code_in(compile(mutated, str(path), "exec"), key[1], key[2])
        except SyntaxError:
            continue
        if code is not None:
            was, now = (text.splitlines()[line - 1].strip() for text in (source, mutated))
            count -= 1
            yield Mutant(room, name, line, was, now, key, code)


# --- the tests, and the forks ------------------------------------------------------------------------


def in_child(work: Any) -> int:
    """Exit status of ``work()`` in a fork, −1 where it takes too long."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 3
        try:
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, 1), os.dup2(sink, 2)
            status = work()
        finally:
            os._exit(status)
    end = time.monotonic() + WALL_SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -1


def passes(item: pytest.Item, following: pytest.Item | None) -> bool:
    from _pytest.runner import runtestprotocol

    return not any(report.failed for report in runtestprotocol(item, nextitem=following, log=False))


class Mutation:
    """The plugin: what runs in place of the tests."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options

    def pytest_configure(self) -> None:
        from hypothesis import Phase, settings

        phases = [Phase.explicit, Phase.generate]
        settings.register_profile("mutants", database=None, derandomize=True, phases=phases)
        settings.load_profile("mutants")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        entered = self.map(session.items)
        items = {item.nodeid: item for item in session.items}
        live: dict[Key, list[FunctionType]] = defaultdict(list)
        for found in gc.get_objects():
            if type(found) is FunctionType and found.__code__.co_filename.startswith(str(ROOT)):
                code = found.__code__
                live[code.co_filename, code.co_qualname, code.co_firstlineno].append(found)
        results = []
        gc.freeze()  # or each fork would copy what it only looks at
        with open(self.options.out, "w", buffering=1) as out:
            for mutant in drawn(self.options.count, self.options.seed):
                tests = sorted(entered.get(mutant.key, {}).items(), key=lambda test: test[1])
                chosen, total = [], 0.0
                for name, seconds in tests:
                    if name in items and total + seconds <= self.options.seconds:
                        chosen.append(items[name])
                        total += seconds
                start = time.monotonic()
                status = in_child(lambda m=mutant, c=chosen: self.attempt(m, live[m.key], c)) if chosen else 0
                row = mutant._asdict() | {
                    "killed": status != 0,
                    "status": status,
                    "tests": len(chosen),
                    "of": len(tests),
                    "seconds": round(time.monotonic() - start, 2),
                }
                del row["code"]
                results.append(row)
                out.write(json.dumps(row) + "\n")
        report(results)
        return True

    def attempt(self, mutant: Mutant, live: Iterable[FunctionType], chosen: list[pytest.Item]) -> int:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        if self.options.dry:
            return int(not all(passes(a, b) for a, b in zip(chosen, [*chosen[1:], None], strict=True)))
        for function in live:
            function.__code__ = mutant.code
        return int(not all(passes(a, b) for a, b in zip(chosen, [*chosen[1:], None], strict=True)))

    def map(self, items: list[pytest.Item]) -> dict[Key, dict[str, float]]:
        """For each function, the tests that enter it and the CPU seconds each takes."""
        file = Path(self.options.map)
        if not file.exists():
            in_child_without_limit(lambda: self.trace(items, file))
        entered: dict[Key, dict[str, float]] = defaultdict(dict)
        for row in map(json.loads, file.read_text().splitlines()):
            for path, qualname, first in row["entered"]:
                entered[path, qualname, first][row["test"]] = row["seconds"]
        return entered

    def trace(self, items: list[pytest.Item], file: Path) -> int:
        prefix = str(ROOT / "lightning_reg")
        seen: set[CodeType] = set()

        def note(frame: Any, event: str, argument: Any) -> None:
            seen.add(frame.f_code)

        part = file.with_suffix(".part")
        done = (
            {json.loads(line)["test"] for line in part.read_text().splitlines()} if part.exists() else set()
        )
        items = [item for item in items if item.nodeid not in done]  # where an earlier run was stopped
        with part.open("a", buffering=1) as out:
            for item, following in zip(items, [*items[1:], None], strict=True):
                seen.clear()
                start = time.process_time()
                sys.settrace(note)
                good = passes(item, following)
                sys.settrace(None)
                seconds = time.process_time() - start
                ours = [c for c in seen if c.co_filename.startswith(prefix)]
                where = [[c.co_filename, c.co_qualname, c.co_firstlineno] for c in ours]
                if good:
                    out.write(json.dumps({"test": item.nodeid, "seconds": seconds, "entered": where}) + "\n")
        part.rename(file)
        return 0


def in_child_without_limit(work: Any) -> None:
    global WALL_SECONDS
    before, WALL_SECONDS = WALL_SECONDS, 24 * 3600
    status = in_child(work)
    WALL_SECONDS = before
    if status != 0:
        raise RuntimeError(f"noting what each test enters ended with {status}")


def report(rows: list[dict[str, Any]]) -> None:
    total, killed = Counter(r["room"] for r in rows), Counter(r["room"] for r in rows if r["killed"])
    for row in rows:
        if not row["killed"]:
            path = Path(row["key"][0]).relative_to(ROOT / "lightning_reg")
            print(f"\n{path}:{row['line']} {row['operator']} ({row['tests']} of {row['of']} tests)")
            print(f"  - {row['was']}\n  + {row['now']}")
    print("\n| room | killed |\n|---|---|")
    for room in total:
        print(f"| {room} | {killed[room]} of {total[room]} |")
    print(f"| all | {sum(killed.values())} of {len(rows)}, {sum(killed.values()) / max(len(rows), 1):.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20.0, help="of tests for one mutant")
    parser.add_argument("--map", default="mutation-map.jsonl", help="which tests enter which function, kept")
    parser.add_argument("--out", default="mutation.jsonl")
    parser.add_argument("--dry", action="store_true", help="run the tests without the mutants: none may fail")
    parser.add_argument("tests", nargs="*", default=TESTS)
    options = parser.parse_args()
    os.chdir(ROOT)
    arguments = ["-q", "-n", "0", "-p", "no:cacheprovider", "-p", "no:timeout", "--capture=no", "--tb=native"]
    sys.exit(pytest.main([*arguments, *options.tests], plugins=[Mutation(options)]))


if __name__ == "__main__":
    main()
