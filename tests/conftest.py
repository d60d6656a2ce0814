from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import torch

from tests.ports import free_port
from tests.turns import has_its_turn, turn

turn()  # before workers start, so that all have the same

if "PYTEST_XDIST_WORKER" in os.environ:  # beside another worker, threads would wait for each other's
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for what a test starts
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what has its turn on another day."""
    marks = [item.get_closest_marker("turns") for item in items]
    later = [i for i, mark in zip(items, marks, strict=True) if mark and not has_its_turn(*mark.args, turn())]
    if later:
        config.hook.pytest_deselected(items=later)
        items[:] = [item for item in items if item not in later]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.default_generator.manual_seed(0)  # torch.manual_seed queues a stack trace for each accelerator
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
