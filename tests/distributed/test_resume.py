"""Averages of a sharded network in a resumed run, from either kind of checkpoint, and in one process."""

from __future__ import annotations

import signal
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from packaging.version import Version

from tests.distributed.launch import Launch
from tests.distributed.resume_program import BOTH, RUNS, kinds

pytestmark = pytest.mark.skipif(
    Version(pl.__version__) < Version("2.5"), reason="lightning 2.4 alone is not exact in mid-epoch"
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("resumed")
    program = "tests.distributed.resume_program"
    codes = Launch(program, [str(folder), 2, True], 2, folder, "killed").wait(100)
    assert -signal.SIGKILL in codes and 0 not in codes
    for devices in (2, 1):
        name = f"rank-of-{devices}"
        Launch(program, [str(folder), devices], devices, folder, name).succeed(200)
    return {devices: torch.load(folder / f"{devices}.pt") for devices in (2, 1)}


@pytest.mark.slow
@pytest.mark.xdist_group("resume-shards")
@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_of_shards_is_the_uninterrupted_one(
    name: str, results: dict[int, dict[str, Any]]
) -> None:
    whole = results[2][name]
    if name == BOTH:
        penalized, average, _, _, bounded, of_bounds, *_ = whole
        assert bool((penalized == 0).any()) and bool(((average != 0) & (average.abs() < 1)).any())
        assert bool((bounded == 0).any()) and bool((of_bounds < 0).any())
    for kind in kinds(name):
        resumed = results[2][f"{name}, {kind}"]
        assert len(whole) == len(resumed) >= 8
        assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True)), kind
    if name != "L1 in 16 bits":  # whose random rounding goes with the process
        for ours, theirs in zip(results[1][f"{name}, {kinds(name)[0]}"], whole, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
@pytest.mark.xdist_group("resume-shards")
def test_a_penalty_that_no_shard_knows_begins_anew(results: dict[int, dict[str, Any]]) -> None:
    weight, average, *_ = results[1]["another"]
    assert bool((weight == 0).any()) and bool(average.any())
