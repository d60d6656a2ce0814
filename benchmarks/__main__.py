"""Regenerate the figures: ``python -m benchmarks [PART ...]``, all of them where none is named.

Each part writes ``results/PART.json`` after saying what has changed since; then the tables in README.md and
the plot are made anew from all records.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from benchmarks import costs, lists, passes, paths, report, steps
from benchmarks.harness import Row, record


def on_lists(networks: list[str], threads: int) -> list[Row]:
    return [row for network in networks for row in lists.measure(network, threads)]


PARTS: dict[str, Callable[[], list[Row]]] = {
    "lists-1": lambda: on_lists(["ResNet-50", "tutorial"], 1),
    "lists-2": lambda: on_lists(["ResNet-50", "tutorial"], 2),
    "large-1": lambda: on_lists(["ViT-B", "GPT-2 small"], 1),
    "large-2": lambda: on_lists(["ViT-B", "GPT-2 small"], 2),
    "passes-1": lambda: passes.measure(1),
    "passes-2": lambda: passes.measure(2),
    "memory": lists.memory,
    "decay-1": lambda: steps.weight_decay(1),
    "decay-2": lambda: steps.weight_decay(2),
    "steps-1": lambda: steps.large_steps(1),
    "steps-2": lambda: steps.large_steps(2),
    "overhead": lambda: list(steps.overhead()),
    "paths": paths.measure,
    "costs": costs.measure,
}
#: Asked for by name only: it takes 8 GiB.
OPTIONAL: dict[str, Callable[[], list[Row]]] = {"billion": lambda: on_lists(["one billion"], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join([*PARTS, *OPTIONAL, "report"]))
    parser.add_argument("--only", metavar="CASE", help="of costs, what has this in its name; the rest stays")
    arguments = parser.parse_args()
    if arguments.only and arguments.parts != ["costs"]:
        parser.error("--only is for costs, and for costs alone")
    for name in arguments.parts or list(PARTS):
        if name == "costs":
            record(name, costs.measure(only=arguments.only or ""), whole=not arguments.only)
        elif name != "report":
            record(name, (PARTS | OPTIONAL)[name]())
    report.write()


if __name__ == "__main__":
    main()
