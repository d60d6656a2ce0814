"""Run a program of the tests in several processes, as ``torchrun`` would start them, and wait for them.

They are forked from a server that has imported Lightning: to import it takes longer than most programs.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from tests.ports import free_port

#: Also for pools and launchers of other tests: in a worker of pytest it is started once.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["lightning.pytorch", "torch.distributed.fsdp", "lightning_reg.callbacks"])


class Launch:
    """``main(*arguments)`` of ``program``, under way in ``processes`` processes, with logs of this name."""

    def __init__(self, program: str, arguments: list[Any], processes: int, folder: Path, name: str) -> None:
        port = str(free_port())
        self.logs = [folder / f"{name}-{rank}.log" for rank in range(processes)]
        self.processes = []
        for rank, log in enumerate(self.logs):
            world = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
                "GROUP_RANK": "0",
                "MASTER_ADDR": "127.0.0.1",
                "TORCHELASTIC_RUN_ID": "tests",
            }
            environment = {"OMP_NUM_THREADS": "1", "MASTER_PORT": port, **(world if processes > 1 else {})}
            process = SERVER.Process(target=_run, args=(program, arguments, environment, str(log)))
            process.start()
            self.processes.append(process)

    def wait(self, seconds: float) -> list[int]:
        """Wait for all to end, and return their exit codes; what is late is ended, and raises."""
        end = time.monotonic() + seconds
        try:
            for process, log in zip(self.processes, self.logs, strict=True):
                process.join(max(0.0, end - time.monotonic()))
                if process.exitcode is None:
                    raise TimeoutError(f"not done after {seconds} s: {log.read_text()[-3000:]}")
            return [process.exitcode or 0 for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def succeed(self, seconds: float) -> None:
        """Wait for all; if one fails, raise with what it wrote last."""
        for code, log in zip(self.wait(seconds), self.logs, strict=True):
            if code != 0:
                raise RuntimeError(log.read_text()[-3000:])


def _run(program: str, arguments: list[Any], environment: dict[str, str], log: str) -> None:
    os.environ.update(environment)
    with open(log, "w") as file:  # a pipe that nobody empties would stop the other rank
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    warnings.simplefilter("ignore")
    sys.warnoptions[:] = ["ignore"]  # for the processes that these start
    importlib.import_module(program).main(*arguments)
