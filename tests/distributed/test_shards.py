"""Sharded tensors ≡ plain ones, in float64, on four processes and seven ways of sharding."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed.launch import Launch
from tests.distributed.shards import OF_THE_REST, PARTS, PENALTIES, RANKS, WAYS, checks
from tests.turns import turn

grouped = pytest.mark.xdist_group("shards")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("shards")
    out = folder / "results.pt"
    Launch("tests.distributed.shards", [turn(), str(out)], RANKS, folder, "rank").succeed(800)
    found: dict[str, Any] = torch.load(out)
    return found


@grouped
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, *_ in checks(turn())])
def test_sharded_tensors_equal_plain_ones(name: str, results: dict[str, Any]) -> None:
    assert not isinstance(results[name], str), results[name]
    assert results[name] < 1e-12


@grouped
@pytest.mark.slow
def test_every_check_ran(results: dict[str, Any]) -> None:
    assert set(results) == {name for name, *_ in checks(turn())}


def test_every_part_has_every_way_and_every_kind_of_check() -> None:
    whole = {name for name, *_ in checks(None)}
    parts = [{name for name, *_ in checks(number)} for number in range(PARTS * OF_THE_REST)]
    assert set.union(*parts) == whole
    for one in parts:
        of_penalties = {name for name in one if any(f"-{penalty}-" in name for penalty in PENALTIES)}
        for some in (of_penalties, one - of_penalties):
            assert {way for way in WAYS if any(name.startswith(f"{way}-") for name in some)} == set(WAYS)
        for ending in ("loss", "gradient", "proximal-sgd", "proximal-adam"):
            assert any(name.endswith(ending) for name in of_penalties)
        for kind in ("-constraints-", "-steered-", "-pruned", "-metrics", "-partial_in_backward-", "fsdp1-"):
            assert any(kind in name for name in one), kind
    for penalty in PENALTIES:  # on most days; and on each, cut into rows in the conformance table
        assert sum(any(f"-{penalty}-" in name for name in one) for one in parts) > len(parts) / 2
