"""The Hugging Face Trainer: two processes under DDP ≡ one process with the whole batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.networks.hf_program import JOBS, train
from tests.support import relative

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.xdist_group("hf_two_processes"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Tensor]:
    folder = tmp_path_factory.mktemp("hf")
    program = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    program += ["--nproc-per-node=2", "-m", "tests.networks.hf_program", str(folder)]
    run = subprocess.run(program, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-3000:]
    loaded: list[Tensor] = torch.load(folder / "results.pt")
    return loaded


@pytest.mark.parametrize("index", range(len(JOBS)), ids=["-".join(map(str, job.values())) for job in JOBS])
def test_two_processes_are_one(index: int, results: list[Tensor], tmp_path: Path) -> None:
    assert relative(results[index], train(tmp_path, 1, **JOBS[index])) < 1e-12  # type: ignore[arg-type]
