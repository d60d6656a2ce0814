"""Two processes ≡ one process with the whole batch: DDP, FSDP2 with layers sharded, tensor parallelism."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.launch import Launch
from tests.support import relative
from tests.turns import part_of, turn

Results = dict[tuple[str, int], dict[str, Any]]

APPLY = ["gradient", "loss", "decoupled", "proximal", "module"]
BASE = {"optimizer": "sgd", "steps": 20, "penalty": "l1", "apply": "gradient"}
JOBS: list[dict[str, Any]] = [
    {**BASE, "apply": "none"},
    *({**BASE, "apply": apply} for apply in APPLY),
    *({**BASE, "apply": apply, "optimizer": "adam"} for apply in APPLY),
    *({**BASE, "apply": apply, "penalty": "elastic_net"} for apply in APPLY),
    *({**BASE, "apply": apply, "penalty": "l2", "accumulate": 2, "clip": 0.3} for apply in APPLY),
    *({**BASE, "apply": apply, "penalty": "rows"} for apply in APPLY),
    *({**BASE, "apply": apply, "penalty": "columns", "layers": 1} for apply in APPLY),
    *({**BASE, "apply": apply, "penalty": "nuclear", "layers": 1} for apply in APPLY),
    *({**BASE, "apply": "proximal", "penalty": p, "optimizer": "adam"} for p in ("rows", "columns", "l_inf")),
    *({**BASE, "apply": "module", "penalty": p, "layers": 1} for p in ("l2_sp", "spectral")),
    {**BASE, "apply": "proximal", "penalty": "target", "monitor": True},
    {**BASE, "apply": "gradient", "penalty": "rows", "monitor": True},
    *({**BASE, "apply": "constraint", "penalty": p} for p in ("max_norm", "max_norm_columns", "norm_budget")),
    {**BASE, "apply": "constraint", "penalty": "max_norm", "optimizer": "adam"},
]


UNUSED = [{**BASE, "apply": apply, "unused": True} for apply in ("gradient", "decoupled", "proximal")]
ALL = JOBS + UNUSED
#: Each strategy runs every so many of the jobs; ddp_spawn, which starts its own processes, runs one.
STRATEGIES = {"ddp": 3, "ddp_find_unused_parameters_true": 9, "fsdp2": 1, "tensor_parallel": 2}
WHOLE = [(strategy, i) for strategy, every in STRATEGIES.items() for i in range(1, len(JOBS), every)]
WHOLE += [("ddp_find_unused_parameters_true", i) for i in range(len(JOBS), len(ALL))]
WHOLE += [("ddp_spawn", JOBS.index({**BASE, "apply": "proximal", "penalty": "rows"}))]
#: A run of the tests has one of so many parts of the cells.
PARTS = 4


def cells_of(number: int | None) -> list[tuple[str, int]]:
    """A quarter of the cells of each strategy, or all of them."""
    grids = [[cell for cell in WHOLE if cell[0] == strategy] for strategy in dict(WHOLE)]
    return [cell for grid in grids for cell in part_of(grid, PARTS, number)]


CELLS = cells_of(turn())


def names(job: dict[str, Any]) -> str:
    return "-".join(str(value) for key, value in job.items() if BASE.get(key) != value) or "base"


def prepared(strategy: str, index: int) -> dict[str, Any]:
    # ModelParallelStrategy refuses the other
    precision = "32-true" if strategy in ("fsdp2", "tensor_parallel") else "64-true"
    devices = 1 if strategy == "auto" else 2
    return {**ALL[index], "precision": precision, "strategy": strategy, "devices": devices}


def launch(cells: list[tuple[str, int]], processes: int, folder: Path) -> Results:
    """Run the cells in one process group, as ``torchrun`` would start it."""
    out = folder / f"{processes}.pt"
    arguments = [[prepared(*cell) for cell in cells], str(out)]
    Launch("tests.distributed.program", arguments, processes, folder, out.stem).succeed(600)
    return dict(zip(cells, torch.load(out), strict=False))  # none after one that failed


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("distributed")
    spawned = [cell for cell in CELLS if cell[0] == "ddp_spawn"]  # which starts its processes itself
    alone = [("auto", index) for index in sorted({0} | {index for _, index in CELLS})]
    launched = [cell for cell in CELLS if cell not in spawned]
    return launch(alone + spawned, 1, folder) | launch(launched, 2, folder)


def test_every_part_has_every_strategy_and_apply() -> None:
    parts = [cells_of(number) for number in range(PARTS)]
    assert sorted(cell for part in parts for cell in part) == sorted(WHOLE)
    for part in parts:
        assert {strategy for strategy, _ in part} >= set(STRATEGIES)
        assert {ALL[index]["apply"] for name, index in part if name == "fsdp2"} == {*APPLY, "constraint"}


@pytest.mark.slow
@pytest.mark.xdist_group("strategies")
@pytest.mark.parametrize(("strategy", "index"), CELLS, ids=[f"{s}-{names(ALL[i])}" for s, i in CELLS])
def test_two_processes_equal_one(strategy: str, index: int, results: Results) -> None:
    reference, result = results["auto", index], results[strategy, index]
    assert "error" not in result, result["error"]
    tolerance = 1e-12 if result["weights"].dtype == torch.float64 else 1e-5
    assert relative(result["weights"].double(), reference["weights"]) < tolerance
    torch.testing.assert_close(result["value"], reference["value"].to(result["value"]))
    without = results["auto", 0]["weights"]
    assert relative(reference["weights"][: len(without)], without) > 1e-4, "the term must matter"
    assert len(result["history"]) == len(reference["history"])
    for logged, expected in zip(result["history"], reference["history"], strict=True):
        assert logged == pytest.approx(expected, rel=100 * tolerance)
