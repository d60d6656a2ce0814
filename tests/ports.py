"""A port to meet on, which nothing else takes between the choice and its use."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator

# Below 32768, where Linux begins to number outgoing connections: a port that the system hands out, and that
# is closed again, may be a connection's or the other worker's by the time a process listens on it.
FIRST, LAST = 12_000, 32_000


def _candidates() -> Iterator[int]:
    """Ports of this worker alone, from a start that another session hardly shares."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = range(FIRST + worker, LAST, workers)
    start = random.SystemRandom().randrange(len(ports))
    while True:
        yield ports[start]
        start = (start + 1) % len(ports)


_ports = _candidates()


def free_port() -> int:
    for port in _ports:
        with socket.socket() as tried:
            try:
                tried.bind(("", port))
            except OSError:
                continue
        return port
    raise AssertionError("the candidates do not end")
