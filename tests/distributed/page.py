"""Run the conformance table and write it: ``python -m tests.distributed.page`` makes docs/conformance.md.

With names of families it runs their cells only, in some minutes, and takes the others from the page. What the
others are refused for or not is then as it was; the slow tests say where that is wrong.
"""

from __future__ import annotations

import argparse
import itertools
import re
import tempfile
import time
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tests.distributed.cells import (
    APPLY,
    CLIPPING,
    FAMILIES,
    STEPS,
    TOLERANCES,
    Cell,
    crossed,
    reference,
    whole,
    without,
)
from tests.distributed.conformance import COLUMNS, SPAWNED, cells_of
from tests.distributed.launch import Launch
from tests.support import relative

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
PASSED, DIFFERS = "✓", "✗"
#: Between signs of an entry, so that a browser keeps them on one line.
UNBROKEN = "\N{NO-BREAK SPACE}"

TEXT = """# What works where

✓ means that the combination works: it ends with the weights of a hand-written loop. A number means that the
library refuses it before training, with [the sentence of that number](#refusals). There is no third case: a
run that differs fails the tests.

Each sign is a training run of {steps} optimizer steps. The loop is plain PyTorch, in one process and in
float64, without a Trainer or a callback. From this library it uses only the formulas of the penalties.

## Every penalty, `apply` and strategy

The four signs of an entry are {apply}. The number
after a strategy is its number of processes; with two, each sees half of every batch. "DDP, unused found" is
`ddp_find_unused_parameters_true`, and "DDP spawned" is `ddp_spawn`. FSDP2 is `ModelParallelStrategy`, with
each layer sharded and then the whole. The optimizer is SGD with momentum in 64-bit, under FSDP2 in 32-bit.
In the last column it is Adam, with ε = 0.1.

{families}

## Precision, accumulation and clipping

The signs mean the same. The penalties that go with the `apply` take turns from run to run, and so do SGD and
Adam. A line with several settings stands for all their combinations; each of them was run.

{settings}

`16-mixed` is float16 with a `GradScaler`; on the CPU Lightning needs
`plugins=[MixedPrecision("16-mixed", "cpu", scaler)]` for it. In `bf16-true`, `"decoupled"` and
`"proximal"` round the weights stochastically, or small steps would be lost.

`"proximal"` is the plain step here, with `dual_averaging=False`, as the loop takes it;
[exact zeros](exact_zeros.md) says what the averages were held against.

`ddp_spawn` is slow to start, so one run has every penalty and `apply` at once, each on a network of its
own: {spawned}. {came_of_it}.

## What "agree" means

The relative distance of all weights from the loop's. Leaving the penalty out moves them by twice as much
at least in every run, else the run would show nothing. Two processes under DDP end with the same bits.

{allowed}

## Refusals

{notes}

FSDP1 and DeepSpeed are not run here: they need a GPU. `python -m tests.distributed.page` writes this
page, and slow tests, which run a part of the table each day, fail where it is out of date.
"""

#: For each cell PASSED, the sentence that refuses it, or DIFFERS and how.
Results = dict[Cell, str]


def run(folder: Path, turn: int | None = None, families: Collection[str] = tuple(FAMILIES)) -> Results:
    """Run every cell of some families, or those whose turn it is, and judge them."""
    results: Results = {}
    for name in COLUMNS:
        if not cells_of(name, turn):
            continue
        began = time.perf_counter()
        processes = 2 if name == "two" else 1
        program = "tests.distributed.conformance"
        arguments = [name, turn, list(families), str(folder / name)]
        Launch(program, arguments, processes, folder, name).succeed(600)
        ranks = [torch.load(folder / f"{name}.{rank}") for rank in range(processes)]
        cells = [cell for cell in cells_of(name, turn) if cell.family in families]
        for cell, *found in zip(cells, *ranks, strict=True):
            results[cell] = judge(cell, found)
        print(f"{name}: {len(ranks[0])} cells in {time.perf_counter() - began:.0f} s")
    return results


def judge(cell: Cell, found: list[Tensor | str]) -> str:
    """What came of a cell on each of the processes."""
    first = found[0]
    if isinstance(first, str):
        same = all(isinstance(other, str) and other == first for other in found)
        return first if same else f"{DIFFERS} one process refuses and another does not"
    if not all(isinstance(other, Tensor) and torch.equal(first, other) for other in found):
        return f"{DIFFERS} the processes end apart"
    tolerance, _ = TOLERANCES[cell.precision]
    expected = reference(cell)
    if relative(without(cell), expected) < 2 * tolerance:
        return f"{DIFFERS} the term is too weak to be seen"
    distance = relative(first, expected)
    return PASSED if distance <= tolerance else f"{DIFFERS} by {distance:.1e}, and {tolerance:.0e} is allowed"


class Notes:
    """Refusals, numbered as they come."""

    def __init__(self) -> None:
        self.sentences: dict[str, int] = {}

    def mark(self, results: Iterable[str]) -> str:
        """One sign for each result."""
        return UNBROKEN.join(self._sign(result) for result in results)

    def _sign(self, result: str) -> str:
        if result == PASSED or result.startswith(DIFFERS):
            return result[:1]
        number = self.sentences.setdefault(result, len(self.sentences) + 1)
        return f"<sup>{number}</sup>"

    def lines(self) -> list[str]:
        """The sentences."""
        return [f"{number}. {sentence}" for sentence, number in self.sentences.items()]


def table(header: list[str], rows: Iterable[list[str]]) -> list[str]:
    """A Markdown table."""
    return ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]


def render(results: Results) -> str:
    """The page."""
    notes = Notes()
    families = table(["", *_columns(), "single device, Adam"], _families(results, notes))
    settings = table(
        ["precision", "accumulated", "clipping", *_columns(spawn=False)], _settings(results, notes)
    )
    allowed = table(
        ["precision", "distance", "because of"],
        [[f"`{name}`", f"{distance:.0e}", reason] for name, (distance, reason) in TOLERANCES.items()],
    )
    return TEXT.format(
        steps=STEPS,
        apply=", ".join(f'`"{apply}"`' for apply in APPLY),
        families="\n".join(families),
        settings="\n".join(settings),
        spawned="; ".join(f"in `{p}`, {a} accumulated, clipping {c}" for p, a, c in SPAWNED),
        came_of_it=_spawned(results),
        allowed="\n".join(allowed),
        notes="\n".join(notes.lines()),
    )


def read(text: str) -> Results:
    """What :func:`render` was given; nothing of families that have come since."""
    sentences = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    results: Results = {}

    def note(cells: list[Cell], signs: str) -> None:
        for cell, sign in zip(cells, signs.split(UNBROKEN), strict=True):
            results[cell] = PASSED if sign == PASSED else sentences[re.sub(r"\D", "", sign)]

    families, settings = _families_columns(), _settings_columns()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    known = {_label(family): family for family in FAMILIES}
    of_families = [row for row in rows if row[0] in known]
    for family, row in ((known[row[0]], row) for row in of_families):
        for cells, signs in zip(families, row[1:], strict=True):
            note([cell for cell in cells if cell.family == family], signs)
    for precision, accumulated, clipping, *row in rows[len(of_families) : -len(TOLERANCES)]:
        for setting in itertools.product(accumulated.split(", "), clipping.split(", ")):
            for cells, signs in zip(settings, row, strict=True):
                here = (precision.strip("`"), *setting)
                note([c for c in cells if (c.precision, str(c.accumulate), c.clip) == here], signs)
    for cell in cells_of("spawn"):
        shown = replace(cell, precision="64-true", accumulate=1, clip="none")
        if shown in results:
            results[cell] = results[shown]
    return results


def _label(family: str) -> str:
    return f"`{family}`" if "," not in family else "`{}`, {}".format(*family.split(", "))


def _families_columns() -> list[list[Cell]]:
    return [whole(strategy) for strategy in _columns()] + [whole("single device", "Adam")]


def _settings_columns() -> list[list[Cell]]:
    return [crossed(strategy) for strategy in _columns(spawn=False)]


def _columns(spawn: bool = True) -> list[str]:
    return [s for name, names in COLUMNS.items() if spawn or name != "spawn" for s in names]


def _families(results: Results, notes: Notes) -> Iterable[list[str]]:
    columns = _families_columns()
    for family in FAMILIES:
        signs = [notes.mark(results[c] for c in cells if c.family == family) for cells in columns]
        yield [_label(family), *signs]


def _settings(results: Results, notes: Notes) -> Iterable[list[str]]:
    columns = _settings_columns()
    for precision in TOLERANCES:
        rows: dict[tuple[str, ...], list[tuple[int, str]]] = {}
        for setting in itertools.product((1, 2), CLIPPING):
            signs = tuple(
                notes.mark(
                    results[c] for c in cells if (c.precision, c.accumulate, c.clip) == (precision, *setting)
                )
                for cells in columns
            )
            rows.setdefault(signs, []).append(setting)
        for signs, settings in rows.items():
            accumulated = ", ".join(dict.fromkeys(str(a) for a, _ in settings))
            clipping = ", ".join(dict.fromkeys(c for _, c in settings))
            product = len(settings) == len({a for a, _ in settings}) * len({c for _, c in settings})
            assert product, f"{settings} is not a product; print them one by one"
            yield [f"`{precision}`", accumulated, clipping, *signs]


def _setting(cell: Cell) -> tuple[str, int, str]:
    return cell.precision, cell.accumulate, cell.clip


def _spawned(results: Results) -> str:
    found = [result for cell, result in results.items() if cell.strategy in COLUMNS["spawn"]]
    wrong = sum(result.startswith(DIFFERS) for result in found)
    if wrong:
        return f"{wrong} runs differ"
    refused = len(found) - found.count(PASSED)
    return f"{found.count(PASSED)} agree, and {refused} are refused with the sentences of the first table"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="; ".join(FAMILIES))
    families = parser.parse_args().families
    if unknown := set(families) - set(FAMILIES):
        parser.error(f"{', '.join(sorted(unknown))}: no such family; there is {', '.join(FAMILIES)}")
    results = read(PAGE.read_text()) if families else {}
    with tempfile.TemporaryDirectory() as folder:
        results.update(run(Path(folder), families=families or list(FAMILIES)))
    for cell, result in results.items():
        if result.startswith(DIFFERS):
            print(cell, result)
    PAGE.write_text(render(results))


if __name__ == "__main__":
    main()
