"""Start a program of this folder in several processes, as ``torchrun`` would, and wait for them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.ports import free_port

ROOT = Path(__file__).parents[2]


class Launch:
    """``python -m program arguments``, under way in ``processes`` processes, with logs of this name."""

    def __init__(self, program: str, arguments: list[str], processes: int, folder: Path, name: str) -> None:
        command = [sys.executable, "-W", "ignore", "-m", program, *arguments]
        port = str(free_port())
        self._started: list[tuple[subprocess.Popen[bytes], Path]] = []
        for rank in range(processes):
            world = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
                "GROUP_RANK": "0",
                "MASTER_ADDR": "127.0.0.1",
                "TORCHELASTIC_RUN_ID": "tests",
            }
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": port}
            if processes > 1:
                environment |= world
            path = folder / f"{name}-{rank}.log"
            with path.open("w") as log:  # a pipe that nobody empties would stop the other rank
                process = subprocess.Popen(
                    command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=log
                )
            self._started.append((process, path))

    def wait(self, seconds: float) -> None:
        """Wait for all; one that fails or is late ends the others, and raises with what it wrote last."""
        try:
            for process, path in self._started:
                if process.wait(timeout=seconds) != 0:
                    raise RuntimeError(path.read_text()[-3000:])
        finally:
            for process, _ in self._started:
                process.kill()
