"""The Hugging Face Trainer, and dropout in a plain loop: two processes ≡ one with the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed.launch import Launch
from tests.networks.hf_program import JOBS, dropout_rates, train
from tests.support import relative

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.xdist_group("hf_two_processes"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Tensor], list[Any]]:
    folder = tmp_path_factory.mktemp("hf")
    Launch("tests.networks.hf_program", [str(folder)], 2, folder, "rank").succeed(240)
    loaded: tuple[list[Tensor], list[Any]] = torch.load(folder / "results.pt")
    return loaded


@pytest.mark.parametrize("index", range(len(JOBS)), ids=["-".join(map(str, job.values())) for job in JOBS])
def test_two_processes_are_one(index: int, results: tuple[list[Tensor], Any], tmp_path: Path) -> None:
    assert relative(results[0][index], train(tmp_path, 1, **JOBS[index])) < 1e-12  # type: ignore[arg-type]


def test_both_ranks_drop_at_the_rates_of_one_process(results: tuple[Any, list[Any]], tmp_path: Path) -> None:
    one = dropout_rates(tmp_path, 1)
    assert results[1] == [one, one]
    trainer = [0.1 * i for i in range(8)]
    assert [known for known, _ in one["trainer"]] == pytest.approx([*trainer, 0.1])
    assert [found for _, found in one["trainer"]] == pytest.approx([0.1, *trainer[1:], 0.1])
    assert one["loop"] == [(0.0, 0.5), *((pytest.approx(0.2 * i),) * 2 for i in (1, 2, 3)), (0.1, 0.5)]
