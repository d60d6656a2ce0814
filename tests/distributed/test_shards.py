"""Sharded tensors ≡ plain ones, in float64, on four processes and seven ways of sharding."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed.launch import Launch
from tests.distributed.shards import FEW, PARTS, PENALTIES, RANKS, WAYS, checks
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


def test_every_part_has_every_way_with_every_kind_of_check() -> None:
    whole = {name for name, *_ in checks(None)}
    parts = [{name for name, *_ in checks(number)} for number in range(PARTS)]
    assert set.union(*parts) == whole
    for one in parts:
        for ending in ("loss", "gradient", "proximal-sgd", "constraints-rows", "pruned", "metrics"):
            for way in WAYS:
                assert any(name.startswith(f"{way}-") and name.endswith(ending) for name in one)
        for penalty in PENALTIES:
            ways = ("rows", "columns") if penalty not in FEW else WAYS
            assert any(name.startswith(f"{way}-{penalty}-") for way in ways for name in one)
