"""Run every Python block of the documentation by itself: ``python -m tests.documentation_blocks``.

Arguments keep to the pages whose name they are a part of. Each block runs in a process of its own, forked
from one that has imported Lightning, in an empty folder and with no name from the blocks before it, as it
does for a reader who pastes it. It prints the blocks that fail. In the tests, a third of them has its turn.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import lightning.pytorch
import torch

from tests.turns import part_of

ROOT = Path(__file__).parents[1]
BROUGHT = {"benchmarks", "notebooks", "contributing.md", "changelog.md"}  # copies that a build makes


def blocks() -> list[tuple[str, str]]:
    """Return each block's page with its number, and its text."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = []
    for page in pages:
        if page.parent != ROOT and page.relative_to(ROOT / "docs").parts[0] in BROUGHT:
            continue
        text = page.read_text(encoding="utf-8")
        for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S), 1):
            found.append((f"{page.relative_to(ROOT)}, Python block {number}", block))
    return [each for each in found if not sys.argv[1:] or any(page in each[0] for page in sys.argv[1:])]


class QuietTrainer(lightning.pytorch.Trainer):
    """A Trainer that writes and draws nothing, for one epoch on the CPU."""

    def __init__(self, **arguments: object) -> None:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        short = {"max_epochs": 1, "accelerator": "cpu", "enable_model_summary": False}
        super().__init__(**{**arguments, **quiet, **short})  # type: ignore[arg-type]


def main() -> int:
    """Run them all, two at a time, and return how many fail."""
    torch.set_num_threads(1)
    lightning.pytorch.Trainer = QuietTrainer  # type: ignore[misc]
    for package in ("lightning_reg.callbacks", "lightning_reg.tune"):  # whose searches take that Trainer
        importlib.import_module(package)
    today = os.environ.get("TESTS_TURN", "all")
    waiting = part_of(blocks(), 3, None if today == "all" else int(today))
    running: dict[int, str] = {}
    failed = 0
    while waiting or running:
        while waiting and len(running) < 2:
            name, block = waiting.pop(0)
            child = os.fork()
            if child == 0:
                os._exit(_run(name, block))
            running[child] = name
        child, status = os.wait()
        running.pop(child)
        failed += status != 0
    return failed


def _run(name: str, block: str) -> int:
    warnings.simplefilter("ignore")
    out = os.dup(1)
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nothing:
        os.chdir(folder)
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
        try:
            exec(compile(block, name, "exec"), {"__name__": "__main__"})
        except BaseException:
            last = traceback.format_exc().strip().splitlines()[-1]
            os.write(out, f"{name}: {last}\n".encode())
            return 1
        finally:
            os.chdir("/")
    return 0


if __name__ == "__main__":
    sys.exit(min(main(), 100))
