"""The loops over groups against the eager passes in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_reg import GroupLasso, L2Norm, SparseGroupLasso
from lightning_reg.groups.layout import Labels, Layout, Slices
from lightning_reg.prox import _fused_groups
from lightning_reg.prox.group import shrink_groups_in_metric_
from lightning_reg.tensors import fused
from lightning_reg.tensors.fused import fuse_kernels
from lightning_reg.tensors.steps import StepSize

pytest.importorskip("numba")
pytestmark = pytest.mark.xdist_group("numba")  # one worker compiles, once

#: Narrow groups and wide ones, along the first dimension and others, in two together, and one in all.
LAYOUTS: list[Slices] = [
    Slices((2000, 9), (0,)),
    Slices((4, 5000), (0,)),
    Slices((60, 300), (1,)),
    Slices((16, 40, 3, 9), (1,)),
    Slices((16, 40, 3, 9), (0, 1)),
    Slices((16, 1, 40, 27), (2, 1)),
    Slices((1, 3, 6000), (0, 1)),
    Slices((17000,), ()),
    Slices((20000,), (0,)),
]


@pytest.fixture(autouse=True)
def _on_afterwards() -> Iterator[None]:
    yield
    fuse_kernels()


def tensors(layout: Slices, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(layout.shape, generator=generator, dtype=torch.float64)
    moment = torch.rand(layout.shape, generator=generator, dtype=torch.float64) ** 4
    weight.view(-1)[::7] = 0.0
    return weight.to(dtype), moment.to(dtype)


def act(weight: Tensor, layout: Layout, moment: Tensor | None, threshold: float, soft: float) -> bool:
    """Take a proximal step; return whether a loop did it."""
    step = StepSize(0.5, moment, 1.1, 1e-3) if moment is not None else StepSize(0.5)
    taken = []
    with pytest.MonkeyPatch.context() as patch:
        run = fused.Compiled.run
        patch.setattr(fused.Compiled, "run", lambda *a: (taken.append(1), run(*a))[1])
        shrink_groups_in_metric_([weight], [layout], [step], threshold, soft)
    return bool(taken)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("soft", [0.0, 0.05])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_groups_in_a_metric(
    layout: Slices, soft: float, kind: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(fused, "SHARE", 2**10)
    for dtype, tolerance in [(torch.float32, 1e-6), (torch.float64, 1e-12)]:
        weight, moment = tensors(layout, dtype)
        for threshold in (0.0, 1e-6, 1e-3, 0.3, 0.6 * layout.sizes**0.5):
            found, expected = weight.clone(), weight.double()
            metric = moment if kind == "adam" else None
            taken = act(found, layout, metric, threshold, soft)
            fuse_kernels(False)
            assert not act(expected, layout, None if metric is None else metric.double(), threshold, soft)
            fuse_kernels()
            assert taken or (kind == "sgd" and layout.keep != (0,) and layout.keep)
            assert torch.equal(found == 0, expected == 0)
            torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_group_that_has_gone_wrong_leaves_the_others_alone(bad: float, kind: str) -> None:
    layout = Slices((200, 100), (0,))
    weight, moment = tensors(layout, torch.float32)
    weight[3, 5] = bad
    found, expected = weight.clone(), weight.clone()
    metric = moment if kind == "adam" else None
    assert act(found, layout, metric, 0.3, 0.0)
    fuse_kernels(False)
    act(expected, layout, metric, 0.3, 0.0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert not bool(found[3].isfinite().all()) and bool(found[4:].isfinite().all())


@pytest.mark.parametrize("scale", [1e-30, 1e-21, 1e21, 1e30])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_squares_that_float32_does_not_hold(scale: float, kind: str) -> None:
    layout = Slices((200, 100), (0,))
    weight, moment = tensors(layout, torch.float32)
    found = weight * scale
    expected = found.double()
    metric = torch.ones_like(moment) if kind == "adam" else None
    assert act(found, layout, metric, 3.0 * scale, 0.0)
    fuse_kernels(False)
    act(expected, layout, None if metric is None else metric.double(), 3.0 * scale, 0.0)
    torch.testing.assert_close(found.double() / scale, expected / scale, rtol=1e-5, atol=1e-5)


def test_steps_over_twenty_decades() -> None:
    layout = Slices((200, 100), (0,))
    weight, moment = tensors(layout, torch.float64)
    moment = 10.0 ** (40.0 * moment - 20.0)
    found, expected = weight.clone(), weight.clone()
    assert act(found, layout, moment, 0.3, 0.0)
    fuse_kernels(False)
    act(expected, layout, moment, 0.3, 0.0)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reach", [1e-6, 3e-6, 1e-5, 1e-2])
@pytest.mark.parametrize("shape", [(200, 500), (1, 140_000)])
@pytest.mark.parametrize("is_fused", [True, False])
def test_short_thresholds_need_no_search(reach: float, shape: tuple[int, int], is_fused: bool) -> None:
    """The root by Taylor's theorem, and just beyond where it is taken, against bisection in 80 bits.

    It shows in a weight whose own threshold is long, and which is too small to weigh in the root.
    """
    fuse_kernels(is_fused)
    reach *= (shape[1] / 500) ** 0.5
    weight, moment = tensors(Slices(shape, (0,)), torch.float64)
    moment += 0.1
    weight[:, 0], moment[:, 0] = 1e-16, 1e-16
    found = weight.clone()
    shrink_groups_in_metric_([found], [Slices(shape, (0,))], [StepSize(1.0, moment)], reach)
    v, tau = weight.numpy().astype(np.longdouble), reach / np.sqrt(moment.numpy().astype(np.longdouble))
    low, high = np.zeros((shape[0], 1), v.dtype), np.sqrt((v * v).sum(1, keepdims=True))
    for _ in range(90):
        middle = (low + high) / 2
        above = ((v / (middle + tau)) ** 2).sum(1, keepdims=True) > 1
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    expected = torch.from_numpy((v * (low / (low + tau))).astype(np.float64))
    torch.testing.assert_close(found, expected, rtol=2e-15, atol=0.0)


@pytest.mark.parametrize(
    "penalty", [GroupLasso(0.1), SparseGroupLasso(0.1), L2Norm(0.1)], ids=lambda p: type(p).__name__
)
def test_penalties_use_them(penalty: GroupLasso | SparseGroupLasso | L2Norm) -> None:
    weight = torch.randn(200, 100)
    step = torch.rand(200, 100) + 0.1
    found = penalty.prox(weight, 0.1, step)
    fuse_kernels(False)
    torch.testing.assert_close(found, penalty.prox(weight, 0.1, step), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_norm_of_each_tensor_is_shared_out_by_tensors(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[list[int]] = []
    share_out = fused.Compiled.share_out

    def noted(self: fused.Compiled, parts: list[Any], numbers: tuple[float, ...]) -> None:
        shares.append([sum(math.prod(row[-3:]) for row in table) for table, _ in parts])
        share_out(self, parts, numbers)

    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(fused, "SHARE", 2**14)
    monkeypatch.setattr(fused.Compiled, "share_out", noted)
    sizes = [20_000, 90_000, 7, 40_000, 50_000, 30_000]  # one is too small for a loop
    weights = [torch.randn(size, dtype=torch.float64) for size in sizes]
    moments = [torch.rand(size, dtype=torch.float64) ** 4 for size in sizes]
    steps = [StepSize(0.5, moment, 1.1, 1e-3) for moment in moments]
    found = [weight.clone() for weight in weights]
    L2Norm(2.0).prox_(found, 2.0, steps)
    assert shares == [{1: [230_000], 2: [120_000, 110_000], 3: [90_000, 70_000, 70_000]}[threads]]
    for weight, step, ours in zip(weights, steps, found, strict=True):
        # stationary in the metric: (w − v)/η + λ w/‖w‖ = 0
        left = (ours - weight) / step.dense() + 2.0 * ours / ours.norm()
        assert float(left.norm()) < 1e-9 if ours.norm() > 0 else float((weight / step.dense()).norm()) <= 2.0


def test_what_other_layouts_there_are_is_left_to_eager_passes() -> None:
    for layout, shape in [
        (Slices((20, 30, 40), (0, 2)), (20, 30, 40)),
        (Labels(torch.arange(20_000) % 7), (20_000,)),
    ]:
        assert not act(torch.randn(shape), layout, torch.rand(shape) + 0.1, 0.1, 0.0)
    assert not act(torch.randn(300, 60).t(), Slices((60, 300), (0,)), None, 0.1, 0.0)


def test_the_shape_with_groups_in_the_middle() -> None:
    found = [_fused_groups._as_middle(layout) for layout in LAYOUTS[2:7]]
    assert found == [(60, 300, 1), (16, 40, 27), (1, 640, 27), (16, 40, 27), (1, 3, 6000)]
