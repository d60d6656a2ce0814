"""What every projection keeps to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

from lightning_reg import callbacks, constraints
from lightning_reg.apply import Term
from lightning_reg.constraints import Constraint, GroupConstraint
from tests.constraints.cases import CASES, WITH_A_STATE, Case

each = pytest.mark.parametrize("case", CASES, ids=str)


def matrices(count: int = 12) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    scales = [0.1 * 1.5**i for i in range(count)]
    return [s * torch.randn(3, 4, dtype=torch.float64, generator=generator) for s in scales]


def projected(constraint: Constraint, weight: Tensor) -> Tensor:
    module = nn.Linear(4, 3, bias=False, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(weight)
    term = Term(constraint, module)
    term.bound.prox_([s.parameter for s in term.selected], 1.0, ())
    return module.weight.detach()


@each
def test_the_end_lies_in_the_set_and_stays_where_it_is(case: Case) -> None:
    found = [projected(case.constraint, weight) for weight in matrices()]
    assert all(case.holds(point.numpy()) for point in found)
    assert not all(case.holds(weight.numpy()) for weight in matrices())
    for point in found:
        torch.testing.assert_close(projected(case.constraint, point), point, rtol=1e-12, atol=0.0)


@each
def test_no_other_point_of_the_set_is_nearer(case: Case) -> None:
    ends = [projected(case.constraint, weight) for weight in matrices()]
    for weight, end in zip(matrices(), ends, strict=True):
        others = [*ends, *(projected(case.constraint, end + 0.1 * other) for other in matrices(6))]
        nearest = float((weight - end).norm())
        assert all(float((weight - other).norm()) >= nearest * (1 - 1e-9) for other in others)
        if case.convex:
            assert all(float(((weight - end) * (other - end)).sum()) <= 1e-9 for other in others)


@each
def test_a_weight_by_itself_goes_where_it_goes_among_others(case: Case) -> None:
    assert case.constraint.elementwise == case.elementwise
    weight = matrices()[-1]
    changed = weight.clone()
    changed[0, 0] *= 3.0
    same = torch.equal(
        projected(case.constraint, weight).flatten()[1:], projected(case.constraint, changed).flatten()[1:]
    )
    assert same or not case.elementwise


def test_on_one_process_of_a_mesh_it_is_the_same(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for case in CASES:
            module = nn.Linear(4, 3, bias=False, dtype=torch.float64)
            weight = distribute_tensor(matrices()[-1], mesh, [Shard(0)])
            module.weight = nn.Parameter(weight)
            term = Term(case.constraint, module)
            term.bound.prox_([s.parameter for s in term.selected], 1.0, ())
            found: Any = module.weight.detach()
            assert torch.equal(found.full_tensor(), projected(case.constraint, matrices()[-1])), str(case)
    finally:
        dist.destroy_process_group()


def test_every_public_constraint_has_a_row() -> None:
    public = {
        name for name in constraints.__all__ if name not in (Constraint.__name__, GroupConstraint.__name__)
    }
    assert public == {str(case) for case in CASES} | WITH_A_STATE
    assert public <= set(callbacks.__all__)
