"""Units in two processes: the same on each, and the run is that of one process with the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed.launch import Launch

SETS = [{"0.weight": 7, "0.bias": 7}, {"2.weight": 5, "2.bias": 5}]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each rank saved, by the number of processes and the rank."""
    folder = tmp_path_factory.mktemp("units")
    two = Launch("tests.distributed.units_program", [["ddp", "fsdp2"], str(folder)], 2, folder, "two")
    one = Launch("tests.distributed.units_program", [["auto"], str(folder)], 1, folder, "one")
    one.succeed(300)
    two.succeed(300)
    return {path.stem: torch.load(path) for path in folder.glob("*.pt")}


def _ranks(results: dict[str, Any], run: str) -> list[dict[str, Any]]:
    """What both ranks saved of a run, in which they agree."""
    ranks = [results[f"2-{rank}"][run] for rank in range(2)]
    for rank in ranks:
        names = [{name.removeprefix("net."): count for name, count in one.items()} for one in rank["sets"]]
        assert names == SETS
        assert rank["share"] == ranks[0]["share"]
        assert torch.equal(rank["weights"], ranks[0]["weights"])
    return ranks


@pytest.mark.slow
@pytest.mark.parametrize(("way", "whole"), [("ddp", "auto"), ("fsdp2", "auto"), ("loop", "loop")])
def test_units_in_two_processes(results: dict[str, Any], way: str, whole: str) -> None:
    alone = results["1-0"][f"{whole}, number"]
    found, _ = _ranks(results, f"{way}, number")
    assert found["share"] == alone["share"] and 0 < alone["share"] < 1
    assert torch.equal(found["weights"] == 0, alone["weights"] == 0)
    torch.testing.assert_close(found["weights"], alone["weights"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_a_share_of_units_in_two_processes(results: dict[str, Any], way: str) -> None:
    assert _ranks(results, f"{way}, share")[0]["share"] == 0.5
