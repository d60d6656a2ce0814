"""Sharded tensors ≡ plain ones, in float64, on four processes and seven ways of sharding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.shards import RANKS, checks
from tests.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("shards")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("shards")
    command = [sys.executable, "-W", "ignore", "-m", "tests.distributed.shards", str(folder / "results.pt")]
    world = {"WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = []
    for rank in range(RANKS):
        with (folder / f"{rank}.log").open("w") as log:
            environment = {**os.environ, **world, "RANK": str(rank), "OMP_NUM_THREADS": "1"}
            root = Path(__file__).parents[2]
            processes.append(subprocess.Popen(command, env=environment, cwd=root, stdout=log, stderr=log))
    for rank, process in enumerate(processes):
        assert process.wait(timeout=300) == 0, (folder / f"{rank}.log").read_text()[-3000:]
    found: dict[str, Any] = torch.load(folder / "results.pt")
    return found


@pytest.mark.parametrize("name", [name for name, *_ in checks()])
def test_sharded_tensors_equal_plain_ones(name: str, results: dict[str, Any]) -> None:
    assert not isinstance(results[name], str), results[name]
    assert results[name] < 1e-12


def test_every_check_ran(results: dict[str, Any]) -> None:
    assert set(results) == {name for name, *_ in checks()}
