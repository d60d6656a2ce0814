"""The loops compiled by numba against the eager passes, which are the reference."""

from __future__ import annotations

import builtins
import math
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_reg import L1, L2, MCP, SCAD, ElasticNet, LHalf
from lightning_reg.penalties.bound import Bound, Held
from lightning_reg.tensors import fused, packs
from lightning_reg.tensors.fused import fuse_kernels
from lightning_reg.tensors.steps import StepSize

pytest.importorskip("numba")
pytestmark = pytest.mark.xdist_group("numba")  # one worker compiles, once

SHAPES = [(), (0,), (1,), (3, 3), (2, 3, 4), (130, 131), (2**14 + 1,), (7, 0, 2)]
PENALTIES: list[Bound] = [L1(0.1), L2(0.1), ElasticNet(0.1, l1_ratio=0.3), MCP(0.1), SCAD(0.1), LHalf(0.1)]


@pytest.fixture(autouse=True)
def _on_afterwards() -> Iterator[None]:
    yield
    fuse_kernels()


def odd_values(dtype: torch.dtype) -> Tensor:
    """What a formula goes wrong on."""
    finfo = torch.finfo(dtype)
    values = [0.0, finfo.tiny, finfo.eps, 0.1, 1.0, finfo.max, math.inf, math.nan]
    return torch.tensor([*values, *(-v for v in values)], dtype=dtype)


def tensors(dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]
    made[3][0] = 0.0
    made.append(torch.randn(32, 16, 3, 3, generator=generator).to(dtype, memory_format=torch.channels_last))
    made.append(torch.randn(7, 5, generator=generator).to(dtype).t())
    odd = odd_values(dtype)
    # weights and moments walk through all pairs
    made.append(odd.repeat(len(odd)) if seed % 2 else odd.repeat_interleave(len(odd)))
    return made


def steps_of(dtype: torch.dtype, kind: str) -> list[StepSize]:
    if kind == "sgd":
        return [StepSize(0.5) for _ in tensors(dtype)]
    groups = [(0.5, 1.0, 0.1), (0.9, 1.2, 0.0)]  # two parameter groups
    return [
        StepSize(groups[i % 2][0], moment.square(), *groups[i % 2][1:])
        for i, moment in enumerate(tensors(dtype, 1))
    ]


def close(found: list[Tensor], expected: list[Tensor], before: list[Tensor], ulp: int = 2) -> None:
    """To units in the last place of the larger number in float32, to 1e-12 in float64; zeros alike."""
    assert len(found) == len(expected)
    for one, other, old in zip(found, expected, before, strict=True):
        tolerance = ulp * torch.finfo(one.dtype).eps if one.dtype == torch.float32 else 1e-12
        finite = [t.abs().nan_to_num(nan=0.0, posinf=0.0) for t in (old, other)]
        scale = torch.maximum(*finite).clamp(min=1.0)
        torch.testing.assert_close(one / scale, other / scale, rtol=0.0, atol=tolerance, equal_nan=True)
        assert torch.equal(one == 0, other == 0)


def both_ways(act: Callable[[], list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """What the loops make, and what the eager passes make; sure that the loops did their part."""
    ran: list[int] = []
    call = fused.Compiled.run

    def counted(self: Any, table: Any, *args: Any) -> None:
        ran.append(len(table))
        call(self, table, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused.Compiled, "run", counted)
        found = act()
        assert ran, "no loop took anything"
        taken = len(ran)
        fuse_kernels(False)
        expected = act()
        assert len(ran) == taken
    fuse_kernels()
    return found, expected


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_a_proximal_step(
    penalty: Bound, dtype: torch.dtype, kind: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "SHARE", 2**10)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)

    def act() -> list[Tensor]:
        weights = tensors(dtype)
        penalty.prox_(weights, 0.3, steps_of(dtype, kind))
        return weights

    found, expected = both_ways(act)
    # SCAD divides by what may be a small difference; LHalf takes a root, where torch is off by an ulp
    # if MKL does it on an AMD processor, and multiplies such an error at its jump
    ulp = {SCAD: 16, LHalf: 6}.get(type(penalty), 2)
    close(found, expected, tensors(dtype), ulp)
    if not isinstance(penalty, L2):
        assert any(bool((weight == 0).any()) for weight in found[4:])


@pytest.mark.parametrize("where", ["gradient", "itself"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("penalty", [L1(0.1), ElasticNet(0.1, l1_ratio=0.3)], ids=str)
def test_a_gradient(penalty: Bound, dtype: torch.dtype, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(fused, "SHARE", 2**10)

    def act() -> list[Tensor]:
        weights = [weight.nan_to_num(nan=1.0) for weight in tensors(dtype)]
        targets = weights if where == "itself" else tensors(dtype, 1)
        penalty.add_gradient_(targets, weights, 0.1, alpha=-0.7)
        return targets

    found, expected = both_ways(act)
    close(found, expected, tensors(dtype, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_gradient_at_nan_zero_and_below_the_smallest_normal_number(dtype: torch.dtype) -> None:
    """Where eager passes differ by size: NaN must not be lost, and a sign is whole."""
    tiny = torch.finfo(dtype).smallest_normal
    weight = torch.tensor([math.nan, 0.0, -0.0, tiny / 8, -tiny / 8], dtype=dtype).repeat(2**12)
    target = torch.ones_like(weight)
    L1(1.0).add_gradient_([target], [weight], 0.25)
    expected = torch.tensor([math.nan, 1.0, 1.0, 1.25, 0.75], dtype=dtype)
    torch.testing.assert_close(target[:5], expected, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(2**15, dtype=torch.bfloat16),
        lambda: torch.randn(2**15, dtype=torch.complex64),
        lambda: torch.randn(2**16)[::2],
        lambda: torch.randn(2**7, 2**8).t(),
        lambda: torch.randn(2**13),
    ],
    ids=["bfloat16", "complex", "strided", "transposed", "small"],
)
def test_other_tensors_are_left_to_eager_passes(
    make: Callable[[], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused.Compiled, "run", lambda *_: pytest.fail("taken"))
    weight = make()
    before = weight.clone()
    L1(1.0).prox_([weight], 0.25, [StepSize(1.0)])
    torch.testing.assert_close(weight, L1(1.0).prox(before, 0.25, 1.0))


def test_tensors_of_a_class_of_their_own_are_left_to_eager_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(Tensor):
        pass

    monkeypatch.setattr(fused.Compiled, "run", lambda *_: pytest.fail("taken"))
    weight = torch.ones(2**15).as_subclass(Other)
    L1(1.0).prox_([weight], 0.25, [StepSize(1.0)])
    assert bool((weight == 0.75).all())


def test_autograd_sees_that_a_weight_has_changed() -> None:
    weight = nn.Parameter(torch.ones(2**15))
    out = weight.square().sum()
    with torch.no_grad():
        L1(1.0).prox_([weight], 0.25, [StepSize(1.0)])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_in_inference_mode() -> None:
    with torch.inference_mode():
        weight = torch.ones(2**15)
        L1(1.0).prox_([weight], 0.25, [StepSize(1.0)])
    assert bool((weight == 0.75).all())


def test_without_numba_eager_passes_do_all(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuses(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "numba" or name.startswith("numba."):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "lightning_reg.tensors.loops", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuses)
    fused._compiled.cache_clear()
    weight = torch.ones(2**15)
    L1(1.0).prox_([weight], 0.25, [StepSize(1.0)])
    assert bool((weight == 0.75).all())
    assert not any(fused._compiled(*where) for where in [("tensors.loops", "soft_threshold", "float32")])
    fused._compiled.cache_clear()


def _twice(value: float) -> float:
    return 2.0 * value


def test_code_of_an_earlier_release_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """What numba keeps depends on every file that a loop takes functions from."""
    from lightning_reg.tensors import loops

    kept = []
    for sources in (random.getrandbits(32), random.getrandbits(32)):
        monkeypatch.setattr(loops, "_SOURCES", sources)
        for _ in range(2):
            compiled: Any = loops.jit(_twice)
            assert compiled(1.5) == 3.0
            kept.append(sum(compiled.stats.cache_hits.values()))
    assert kept == [0, 1, 0, 1]
    assert loops._sources() == loops._sources() != 0


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("share", [1.0, 0.7, 0.25, 1e-3])
@pytest.mark.parametrize("penalty", [p for p in PENALTIES if not isinstance(p, L2)], ids=str)
def test_averages_hold_zeros_in_the_same_pass(
    penalty: Bound, dtype: torch.dtype, kind: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the eager passes do, weights and averages alike."""
    weights, steps = tensors(dtype), steps_of(dtype, kind)
    averages = [weight.nan_to_num(nan=0.0).clamp(-1.0, 1.0) for weight in tensors(dtype, 2)]
    others, kept = [weight.clone() for weight in weights], [average.clone() for average in averages]

    shares = [share] * len(weights)
    left = penalty.hold_zeros_(Held(weights, averages, steps, shares), 0.3)
    assert left == []  # the transposed one is small, and packed
    fuse_kernels(False)
    monkeypatch.setattr(packs, "SMALL", -1)
    plain = [weight.clone() for weight in others]
    left = penalty.hold_zeros_(Held(others, kept, steps, shares), 0.3)
    at_once = isinstance(penalty, L1 | ElasticNet)
    assert [*left] == ([] if at_once else [*range(len(others))])
    penalty.prox_([others[i] for i in left], 0.3, [steps[i] for i in left])
    penalty.prox_(plain, 0.3, steps)
    for other, average, step in zip(others, kept, plain, strict=True):  # to the last bit, what lives
        living = (average.abs() == 1) & step.isfinite()
        assert torch.equal(other[living], step[living])

    done = range(len(weights))
    # a ratio at the border is rounded in another order
    ulp = 16
    close([averages[i] for i in done], [kept[i] for i in done], [kept[i] for i in done], ulp)
    zeros = [i for i in done if not torch.equal(weights[i] == 0, others[i] == 0)]
    assert not zeros
    close([weights[i] for i in done], [others[i] for i in done], [others[i] for i in done], ulp)


def test_a_weight_at_its_border_is_not_cut_off_by_rounding() -> None:
    """At a share of 1 the average is what the plain proximal step looks at."""
    generator = torch.Generator().manual_seed(0)
    step = StepSize(0.5, torch.rand(2**15, generator=generator), 1.1, 1e-3)
    eta = step.dense()
    assert isinstance(eta, Tensor)
    weight = eta * 0.1 * (1.0 + 1e-6)
    average = torch.rand(2**15, generator=generator)
    assert L1(0.1).hold_zeros_(Held([weight], [average], [step], [1.0]), 0.1) == []
    assert bool((weight > 0).all()) and bool((average == 1.0).all())
