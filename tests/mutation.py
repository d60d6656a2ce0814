"""Whether the everyday tests notice a broken formula: ``python -m tests.mutation``, some thirty minutes.

The operators are cosmic-ray's, the map is coverage's (``pip install 'cosmic-ray>=8.4' coverage``). One
process collects the tests and notes which of them run which line. Each mutant is a fork of it in which one
function has other code; the tests that run the changed line run in the fork, the quickest case of each test
first, until one fails. A seeded draw takes as many mutants of each stratum. ``--again mutation.jsonl`` tries
only the survivors of an earlier run once more.
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
from itertools import islice, zip_longest
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ["penalties", "prox", "schedules", "constraints", "apply"]
#: The strata of the draw: the rooms, and one file by itself.
ALONE = "schedules/target_sparsity.py"
STRATA = [*ROOMS, ALONE]
#: Compiled by numba once, so that other code in a fork would not run.
COMPILED = {"prox/_loops.py", "prox/_group_loops.py"}
TESTS = [
    *(f"tests/{room}" for room in (*ROOMS, "groups", "tensors", "hosts", "parity")),
    "tests/modules/test_sparse_mlp.py",
    *(
        f"tests/callbacks/test_{name}.py"
        for name in ("penalty", "constraints", "structured", "forward_penalty", "laws")
    ),
    *(f"lightning_reg/{room}" for room in ROOMS),
]
WALL_SECONDS = 300
Key = tuple[str, str, int]


class Mutant(NamedTuple):
    """One function with one token changed."""

    stratum: str
    operator: str
    line: int
    was: str
    now: str
    key: Key
    code: CodeType
    lines: range  # of the statement that has the token, without the block below it


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


def statement_at(tree: ast.AST, line: int) -> range:
    """Lines of the innermost statement there, without the block below it."""
    found = range(line, line + 1)
    for node in ast.walk(tree):  # outer ones first
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or 0):
            body = getattr(node, "body", None)
            end = body[0].lineno - 1 if body else node.end_lineno or 0
            if line <= max(end, node.lineno):
                found = range(node.lineno, max(end, node.lineno) + 1)
    return found


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
    """As many mutants of each stratum, each at a place of its own; the strata take turns."""
    each = [drawn_of(stratum, -(-count // len(STRATA)), seed) for stratum in STRATA]
    yield from islice((mutant for turn in zip_longest(*each) for mutant in turn if mutant), count)


def drawn_of(stratum: str, count: int, seed: int) -> Iterator[Mutant]:
    from cosmic_ray.mutating import mutate_code

    root = ROOT / "lightning_reg"
    leave = {root / name for name in COMPILED | {ALONE}}
    files = [root / ALONE] if stratum == ALONE else sorted({*(root / stratum).rglob("*.py")} - leave)
    places = [(path, place, changes) for path in files for place, changes in sites(path).items()]
    generator = random.Random(f"{seed} {stratum}")
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
            lines = statement_at(ast.parse(source), line)
            yield Mutant(stratum, name, line, was, now, key, code, lines)


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
        reached = self.map(session.items)
        items = {item.nodeid: item for item in session.items}
        live: dict[Key, list[FunctionType]] = defaultdict(list)
        gc.unfreeze()  # what the tests' conftest has frozen is not among the objects
        for found in gc.get_objects():
            if type(found) is FunctionType and found.__code__.co_filename.startswith(str(ROOT)):
                code = found.__code__
                live[code.co_filename, code.co_qualname, code.co_firstlineno].append(found)
        results: list[dict[str, Any]] = []
        again = None
        if self.options.again:
            rows = map(json.loads, Path(self.options.again).read_text().splitlines())
            again = {identity(row) for row in rows if not row["killed"]}
        gc.freeze()  # or each fork would copy what it only looks at
        with open(self.options.out, "w", buffering=1) as out:
            for mutant in drawn(self.options.count, self.options.seed):
                if again is not None and identity(mutant._asdict()) not in again:
                    continue
                tests: dict[str, float] = {}
                for line in mutant.lines:
                    tests |= reached.get((mutant.key[0], line), {})
                chosen, total = [], 0.0
                for name in in_turns({n: t for n, t in tests.items() if n in items}):
                    if not chosen or total + tests[name] <= self.options.seconds:
                        chosen.append(items[name])
                        total += tests[name]
                start = time.monotonic()
                limit = int(10 + 4 * total)
                status = in_child(lambda m=mutant, c=chosen, s=limit: self.attempt(m, live[m.key], c, s))
                row = mutant._asdict() | {
                    "killed": bool(chosen) and status != 0,
                    "status": status,
                    "tests": len(chosen),
                    "of": len(tests),
                    "seconds": round(time.monotonic() - start, 2),
                }
                del row["code"], row["lines"]
                results.append(row)
                out.write(json.dumps(row) + "\n")
        report(results)
        return True

    def attempt(
        self, mutant: Mutant, live: Iterable[FunctionType], chosen: list[pytest.Item], limit: int
    ) -> int:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        if self.options.dry:
            return int(not all(passes(a, b) for a, b in zip(chosen, [*chosen[1:], None], strict=True)))
        for function in live:
            function.__code__ = mutant.code
        return int(not all(passes(a, b) for a, b in zip(chosen, [*chosen[1:], None], strict=True)))

    def map(self, items: list[pytest.Item]) -> dict[tuple[str, int], dict[str, float]]:
        """For each line, the tests that run it and the CPU seconds each takes."""
        file = Path(self.options.map)
        known = {json.loads(row)["test"] for row in file.read_text().splitlines()} if file.exists() else set()
        if fresh := [item for item in items if item.nodeid not in known]:
            in_child_without_limit(lambda: self.trace(fresh, file))
        reached: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
        for row in map(json.loads, file.read_text().splitlines()):
            for path, lines in row["ran"].items():
                for line in lines:
                    reached[str(ROOT / path), line][row["test"]] = row["seconds"]
        return reached

    def trace(self, items: list[pytest.Item], file: Path) -> int:
        import coverage

        noted = coverage.Coverage(data_file=None, include=[f"{ROOT}/lightning_reg/*"])
        noted.start()
        seconds: dict[str, float | None] = {}
        for item, following in zip(items, [*items[1:], None], strict=True):
            noted.switch_context(item.nodeid)
            start = time.process_time()
            good = passes(item, following)
            seconds[item.nodeid] = time.process_time() - start if good else None
        noted.stop()
        data, ran = noted.get_data(), defaultdict(lambda: defaultdict(list))
        for path in data.measured_files():
            for line, tests in data.contexts_by_lineno(path).items():
                for test in tests:
                    ran[test][str(Path(path).relative_to(ROOT))].append(line)
        with file.open("a") as out:
            for test, took in seconds.items():
                lines = ran[test] if took is not None else {}  # one that fails says nothing of mutants
                out.write(json.dumps({"test": test, "seconds": took, "ran": lines}) + "\n")
        return 0


def in_turns(tests: dict[str, float]) -> list[str]:
    """The quickest case of every test, quickest first; then the second quickest of each, and so on."""
    turns: dict[str, int] = Counter()
    ranked = []
    for name in sorted(tests, key=tests.__getitem__):
        test = name.partition("[")[0]
        ranked.append((turns[test], tests[name], name))
        turns[test] += 1
    return [name for _, _, name in sorted(ranked)]


def identity(row: dict[str, Any]) -> tuple[str, int, str, str]:
    return Path(row["key"][0]).name, row["line"], row["operator"], row["now"]


def in_child_without_limit(work: Any) -> None:
    global WALL_SECONDS
    before, WALL_SECONDS = WALL_SECONDS, 24 * 3600
    status = in_child(work)
    WALL_SECONDS = before
    if status != 0:
        raise RuntimeError(f"noting what each test enters ended with {status}")


def report(rows: list[dict[str, Any]]) -> None:
    total: Counter[str] = Counter()
    killed, reached = total.copy(), total.copy()
    for row in rows:
        for stratum in (row["stratum"], "all"):
            total[stratum] += 1
            killed[stratum] += row["killed"]
            reached[stratum] += bool(row["tests"])
        if not row["killed"]:
            path = Path(row["key"][0]).relative_to(ROOT / "lightning_reg")
            print(f"\n{path}:{row['line']} {row['operator']} ({row['tests']} of {row['of']} tests)")
            print(f"  - {row['was']}\n  + {row['now']}")
    print("\n| stratum | mutants | reached by a test | died |\n|---|---|---|---|")
    for stratum in [*sorted(total.keys() - {"all"}), "all"]:
        print(f"| {stratum} | {total[stratum]} | {reached[stratum]} | {killed[stratum]} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=8.0, help="of tests for one mutant")
    parser.add_argument("--map", default="mutation-map.jsonl", help="which tests run which line, kept")
    parser.add_argument("--again", help="an earlier --out: only its survivors")
    parser.add_argument("--out", default="mutation.jsonl")
    parser.add_argument("--dry", action="store_true", help="run the tests without the mutants: none may fail")
    parser.add_argument("tests", nargs="*", default=TESTS)
    options = parser.parse_args()
    os.chdir(ROOT)
    arguments = ["-q", "-n", "0", "-p", "no:cacheprovider", "-p", "no:timeout", "--capture=no", "--tb=native"]
    sys.exit(pytest.main([*arguments, *options.tests], plugins=[Mutation(options)]))


if __name__ == "__main__":
    main()
