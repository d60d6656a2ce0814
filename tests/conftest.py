from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Ctrl-C as in a terminal, here and in child processes.

    Lightning leaves it ignored, and so does a shell in what it starts in the background.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
