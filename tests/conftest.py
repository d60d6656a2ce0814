from __future__ import annotations

import gc
import importlib.metadata
import os
import signal
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from hypothesis import settings

from tests.ports import free_port
from tests.turns import has_its_turn, turn

turn()  # before workers start, so that all have the same

if "PYTEST_XDIST_WORKER" in os.environ:  # beside another worker, threads would wait for each other's
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for what a test starts
    torch.set_num_threads(1)


# the same examples on every machine and every day
settings.register_profile("fixed", derandomize=True, database=None)
settings.load_profile("fixed")
# every Trainer asks for them, and 150 packages are read to answer; before Lightning takes the name
importlib.metadata.entry_points = cache(importlib.metadata.entry_points)
for accelerator in (torch.cuda, torch.xpu, torch.mtia):  # torch.manual_seed queues a stack trace for each
    if not accelerator.is_available():
        accelerator.manual_seed_all = lambda seed: None

#: The slow tests that take longest begin first, or one worker would wait for the other at the end.
LONGEST = (
    "tests/test_notebooks.py::test_notebook_runs",
    "tests/cli/test_demo.py::test_at_least_two_methods",
    "tests/modules/test_linear.py::test_logistic_regression_on_breast_cancer_with_weak_penalties",
    "tests/test_docs.py::test_every_python_block_runs_by_itself",
    "tests/cli/test_launchers.py::test_a_dry_run",
    "tests/cli/test_launchers.py::test_one_process",
    "tests/look/test_smaller_networks.py::test_half_of_the_units",
    "tests/test_faults.py::test_a_rank_killed",
    "tests/tune/",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what has its turn on another day, and begin with the longest."""
    marks = [item.get_closest_marker("turns") for item in items]
    later = [i for i, mark in zip(items, marks, strict=True) if mark and not has_its_turn(*mark.args, turn())]
    if later:
        config.hook.pytest_deselected(items=later)
        items[:] = [item for item in items if item not in later]
    items.sort(key=lambda item: not (item.nodeid.startswith(LONGEST) and item.get_closest_marker("slow")))


def pytest_collection_finish() -> None:
    """Spare every later collection of garbage what is imported and collected, half a million objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # of seed_everything: the next test's order of data
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def _meeting_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the processes of a launcher meet, which would else take a port that it had closed again."""
    monkeypatch.setenv("MASTER_PORT", str(free_port()))


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Ctrl-C as in a terminal, here and in child processes.

    Lightning leaves it ignored, and so does a shell in what it starts in the background.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
