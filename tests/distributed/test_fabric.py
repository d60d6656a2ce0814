"""attach() under Fabric: two processes ≡ one process with the whole batch, written by hand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.distributed.fabric_program import JOBS
from tests.distributed.launch import Launch
from tests.hosts.test_attach_fabric import by_hand
from tests.support import relative
from tests.turns import part_of, turn

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Tensor]:
    folder = tmp_path_factory.mktemp("fabric")
    out = folder / "results.pt"
    Launch("tests.distributed.fabric_program", [str(out)], 2, folder, "rank").succeed(240)
    loaded: list[Tensor] = torch.load(out)
    return loaded


@pytest.mark.xdist_group("fabric")
@pytest.mark.parametrize("index", range(len(JOBS)), ids=["-".join(map(str, job.values())) for job in JOBS])
def test_two_processes_are_one(index: int, results: list[Tensor]) -> None:
    job, got = JOBS[index], results[index]
    expected = by_hand(job["apply"], job["accumulate"], job["clip"])
    assert relative(got.double(), expected) < (1e-12 if job["strategy"] == "ddp" else 1e-5)


LAUNCHERS = {
    "python": [],
    "fabric run": ["-m", "lightning.fabric.cli", "--accelerator=cpu", "--devices=2", "--strategy=ddp"],
}


@pytest.mark.parametrize("launcher", part_of(list(LAUNCHERS), 2, turn()))
def test_the_example(launcher: str) -> None:
    example = Path(__file__).parents[2] / "examples" / "fabric.py"
    program = [sys.executable, "-W", "ignore", *LAUNCHERS[launcher], str(example)]
    run = subprocess.run(program, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-3000:]
    found = re.findall(r"loss ([\d.]+), zeros ([\d.]+)%", run.stdout)
    assert len(found) == 1, "one process says so"
    loss, zeros = map(float, found[0])
    assert loss < 0.2 and zeros > 30.0
