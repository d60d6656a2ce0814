"""The passes over lists against the formula on each tensor, where sizes, layouts and dtypes mix."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lightning_reg.prox.elementwise import soft_threshold
from lightning_reg.tensors import packs as packing
from lightning_reg.tensors.fused import fuse_kernels
from lightning_reg.tensors.kernels import add_sign_, soft_threshold_in_metric_
from lightning_reg.tensors.steps import StepSize

#: Around the sizes where packs and pieces begin, empty and scalar ones too.
SHAPES = [(), (0,), (1,), (3, 3), (5,), (2, 3, 4), (2**14,), (2**14 + 1,), (130, 131), (2**19 + 3,)]


@pytest.fixture(autouse=True)
def _eager_passes() -> Iterator[None]:
    fuse_kernels(False)
    yield
    fuse_kernels()


def tensors(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]
    made[3][0] = 0.0
    made[-1][:5] = 0.0
    made.append(torch.randn(8, 4, 3, 3, generator=generator).to(dtype, memory_format=torch.channels_last))
    made.append(torch.randn(7, 5, generator=generator, dtype=dtype).t())
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("scaled", [0.0, 0.3])
def test_signs_are_added(dtype: torch.dtype, scaled: float) -> None:
    targets, weights = tensors(dtype, 1), tensors(dtype, 2)
    expected = [
        t.add(w, alpha=scaled).add(torch.sgn(w), alpha=-0.7) for t, w in zip(targets, weights, strict=True)
    ]
    add_sign_(targets, weights, -0.7, scaled)
    for target, right in zip(targets, expected, strict=True):
        torch.testing.assert_close(target, right, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("alpha", [1e-30, 1.0, 3.9, 4.1, 1e30], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_sign_is_exact_for_every_normal_number(dtype: torch.dtype, alpha: float) -> None:
    finfo = torch.finfo(dtype)
    values = [finfo.tiny, finfo.max, math.inf, 1.0, 1e-3]
    weight = torch.tensor(values + [-v for v in values] + [0.0, -0.0], dtype=dtype).repeat(2000)
    target = torch.zeros_like(weight)
    add_sign_([target], [weight], alpha)
    assert torch.equal(target, torch.sgn(weight) * torch.tensor(alpha, dtype=dtype))


def test_a_subnormal_weight_is_pulled_towards_zero_no_further_than_a_normal_one() -> None:
    weight = torch.full((2**15,), 2.0**-140)
    target = torch.zeros_like(weight)
    add_sign_([target], [weight], 0.5)
    assert bool((target >= 0.0).all()) and bool((target <= 0.5).all())


@pytest.mark.parametrize("threshold, shrink", [(0.4, 0.0), (0.0, 0.4), (0.3, 0.2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_thresholds_in_a_metric(dtype: torch.dtype, threshold: float, shrink: float) -> None:
    weights = tensors(dtype)
    moments = [m.abs() for m in tensors(dtype, 3)]
    kinds = [(0.5, 1.0, 0.1), (0.9, 1.2, 0.05)]  # two parameter groups
    steps = [StepSize(n, m, a, e) for m, (n, a, e) in zip(moments, kinds * len(moments), strict=False)]
    expected = []
    for weight, step in zip(weights, steps, strict=True):
        assert step.second_moment is not None
        eta = step.numerator / (step.root_scale * step.second_moment.sqrt() + step.eps)
        expected.append(soft_threshold(weight, eta * threshold) / (1.0 + eta * shrink))
    for _ in range(2):  # the second time through packs that are there already
        again = [weight.clone() for weight in weights]
        soft_threshold_in_metric_(again, steps, threshold, shrink)
        for weight, right in zip(again, expected, strict=True):
            torch.testing.assert_close(weight, right)
            assert not threshold or torch.equal(weight == 0, right == 0)


def test_packs_are_few_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = packing._Scratch()
    monkeypatch.setattr(packing, "scratch", scratch)
    for width in range(1, 40):
        weights = [torch.full((width, 3), 0.5) for _ in range(70)]
        steps = [StepSize(1.0, torch.ones(width, 3))] * 70
        soft_threshold_in_metric_(weights, steps, 0.1)
        assert all(torch.equal(weight, torch.full((width, 3), 0.4)) for weight in weights)
        assert len(scratch._packs) <= packing.PACKS
        assert all(v.numel() <= packing.PACK for vectors, _ in scratch._packs.values() for v in vectors)


def test_many_tensors_go_in_several_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "PACK", 50)
    weights = [torch.full((4, 3), 0.5 + i) for i in range(30)] + [torch.full((60,), 7.0)]
    steps = [StepSize(1.0, torch.ones_like(weight)) for weight in weights]
    expected = [weight - 0.1 for weight in weights]
    soft_threshold_in_metric_(weights, steps, 0.1)
    for weight, right in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight, right)


def test_a_step_in_inference_mode_leaves_buffers_that_training_can_use() -> None:
    def act() -> Tensor:
        weights = [torch.ones(11, 13), torch.ones(2**15)]
        soft_threshold_in_metric_(weights, [StepSize(1.0, torch.ones_like(w)) for w in weights], 0.25)
        return weights[0]

    with torch.inference_mode():
        act()
    assert torch.equal(act(), torch.full((11, 13), 0.75))
