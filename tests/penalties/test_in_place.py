"""The in-place list forms, which the engine calls, against the one-tensor forms, which the laws hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import lightning_reg.tensors.chunks
from lightning_reg import OverlappingGroupLasso
from lightning_reg.prox import group as prox_group
from lightning_reg.tensors import kernels, packs
from lightning_reg.tensors.precision import wide
from lightning_reg.tensors.steps import StepSize
from tests.penalties.cases import CASES, Case

every_case = pytest.mark.parametrize("case", CASES, ids=str)
prox_case = pytest.mark.parametrize("case", [c for c in CASES if c.has_prox], ids=str)
metric_case = pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, marks=pytest.mark.slow if isinstance(c.penalty, OverlappingGroupLasso) else ())
        for c in CASES
        if c.prox_in_metric
    ],  # overlapping groups take some hundred passes in a metric
    ids=str,
)
compiled = pytest.mark.xdist_group("numba")  # large tensors: one worker compiles, once

Like = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def _pieces_of_middling_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a tensor of many pieces need not be a large one."""
    monkeypatch.setattr(lightning_reg.tensors.chunks, "PIECE", 2**14)
    monkeypatch.setattr(packs, "SMALL", 2**12)
    monkeypatch.setattr(prox_group, "NORM_PIECE", 2**12)


@pytest.fixture(params=["as-is", "small-pieces"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once more with pieces and batches so small that every tensor below is cut into many."""
    if request.param == "small-pieces":
        monkeypatch.setattr(lightning_reg.tensors.chunks, "PIECE", 7)
        monkeypatch.setattr(packs, "SMALL", 2)
        monkeypatch.setattr(kernels, "BATCH", 20)
        monkeypatch.setattr(prox_group, "NORM_PIECE", 7)


def a_model(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Tensors of every layout: contiguous, empty, 0-d, channels-last, transposed, with gaps, all zero."""
    generator = torch.Generator().manual_seed(1)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    tensors = [
        randn(6, 5),
        randn(0, 4),
        randn(),
        randn(1),
        randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last),
        randn(9, 4).t(),
        randn(8, 10)[:, ::2],
        torch.zeros(3, 5, dtype=dtype),
        randn(50, 3),
    ]
    tensors[0][0, :3] = 0  # kinks in the middle of things
    return tensors


def big(layout: str) -> Tensor:
    """A tensor of several pieces and a rest."""
    shape = (8, 16, 15, 17) if layout == "channels-last" else (3, lightning_reg.tensors.chunks.PIECE - 11)
    tensor = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert (
        tensor.numel() > lightning_reg.tensors.chunks.PIECE
        and tensor.numel() % lightning_reg.tensors.chunks.PIECE
    )
    if layout == "channels-last":
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor.t() if layout == "transposed" else tensor


def randn_like(tensor: Tensor) -> Tensor:
    return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3)).to(tensor)


def close(dtype: torch.dtype) -> dict[str, float]:
    # a 16-bit result is rounded once or twice on the way, and so may be a unit or two off
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
    return {"rtol": tolerance[dtype], "atol": tolerance[dtype]}


def moments_like(weight: Tensor, dense: bool) -> tuple[Tensor, Tensor]:
    """A second moment and a mean, laid out as the weight is, or plainly where ``dense``."""
    noise = randn_like(weight).abs() + 0.2
    moments = noise, 0.3 * noise
    if dense:
        return moments[0].square().contiguous(), moments[1].contiguous()
    like = torch.empty_like(weight), torch.empty_like(weight)
    return like[0].copy_(moments[0].square()), like[1].copy_(moments[1])


# --- gradients ---------------------------------------------------------------------------------------


@every_case
@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_add_gradient_adds_the_gradient(case: Case, dtype: torch.dtype) -> None:
    weights = [w for w in a_model(dtype) if w.dim() or () in case.shapes]
    targets = [torch.empty_like(w).copy_(randn_like(w)) for w in weights]
    expected = [t + 3.0 * case.penalty.gradient(w, 0.7) for t, w in zip(targets, weights, strict=True)]
    before = [w.clone() for w in weights]

    case.penalty.add_gradient_(targets, weights, 0.7, alpha=3.0)

    for target, should, weight, was in zip(targets, expected, weights, before, strict=True):
        torch.testing.assert_close(target, should, **close(dtype))
        assert torch.equal(weight, was)


@compiled
@every_case
@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "transposed"])
@pytest.mark.parametrize("target_layout", ["same", "contiguous"])
def test_add_gradient_on_a_tensor_of_many_pieces(case: Case, layout: str, target_layout: str) -> None:
    weight = big(layout)
    target = torch.zeros_like(weight)
    if target_layout == "contiguous":
        target = torch.zeros(weight.shape, dtype=weight.dtype)
    case.penalty.add_gradient_([target], [weight], 0.7, alpha=-2.0)
    torch.testing.assert_close(target, -2.0 * case.penalty.gradient(weight, 0.7), rtol=1e-14, atol=1e-14)


@every_case
@pytest.mark.usefixtures("pieces")
def test_add_gradient_to_the_weights_themselves(case: Case) -> None:
    weights = a_model()
    expected = [w - 0.1 * case.penalty.gradient(w, 0.7) for w in weights]
    case.penalty.add_gradient_(weights, weights, 0.7, alpha=-0.1)
    for weight, should in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight, should, rtol=1e-14, atol=1e-15)


@compiled
@every_case
def test_add_gradient_to_a_big_weight_itself(case: Case) -> None:
    weight = big("contiguous")
    expected = weight - 0.1 * case.penalty.gradient(weight, 0.7)
    case.penalty.add_gradient_([weight], [weight], 0.7, alpha=-0.1)
    torch.testing.assert_close(weight, expected, rtol=1e-14, atol=1e-15)


@every_case
@pytest.mark.usefixtures("pieces")
def test_add_gradient_of_mixed_dtypes(case: Case) -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.float32]
    weights = [randn_like(torch.empty(6, 5 + i, dtype=dtype)) for i, dtype in enumerate(dtypes)]
    if case.takes_complex:
        weights.insert(2, torch.randn(4, 3, dtype=torch.complex64))
        weights.append(torch.zeros(2, 2, dtype=torch.complex128))
    targets = [torch.zeros_like(w) for w in weights]
    case.penalty.add_gradient_(targets, weights, 0.7, alpha=0.5)
    for target, weight in zip(targets, weights, strict=True):
        real = weight.real.dtype if weight.is_complex() else weight.dtype
        torch.testing.assert_close(target, 0.5 * case.penalty.gradient(weight, 0.7), **close(real))


@every_case
def test_add_gradient_of_half_weights_to_wider_gradients(case: Case) -> None:
    weight = randn_like(torch.empty(30, 2, dtype=torch.bfloat16))
    target = torch.zeros(30, 2)
    case.penalty.add_gradient_([target], [weight], 0.7)
    torch.testing.assert_close(target, case.penalty.gradient(weight, 0.7).float(), **close(torch.bfloat16))


# --- proximal operators ------------------------------------------------------------------------------


@prox_case
@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_prox_with_one_step_a_tensor(case: Case, dtype: torch.dtype) -> None:
    weights = [w for w in a_model(dtype) if w.dim() or () in case.shapes]
    sizes = [0.3 + 0.1 * i for i in range(len(weights))]
    expected = [case.penalty.prox(w, 0.7, size) for w, size in zip(weights, sizes, strict=True)]
    case.penalty.prox_(weights, 0.7, [StepSize(size) for size in sizes])
    for weight, should in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight, should, **close(dtype))
        if dtype == torch.float64:
            assert torch.equal(weight == 0, should == 0)


@prox_case
def test_prox_of_complex_weights(case: Case) -> None:
    if not case.takes_complex:
        pytest.skip("not defined on complex weights")
    weight = torch.randn(5, 4, dtype=torch.complex128)
    weight[0, 0] = 0
    expected = case.penalty.prox(weight, 0.7, 0.5)
    case.penalty.prox_([weight], 0.7, [StepSize(0.5)])
    torch.testing.assert_close(weight, expected, rtol=1e-14, atol=1e-15)


@metric_case
@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("dense", [False, True], ids=["moments-as-weights", "moments-contiguous"])
@pytest.mark.parametrize("centred", [False, True], ids=["moment", "centred"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_prox_with_a_step_for_each_weight(case: Case, dtype: torch.dtype, centred: bool, dense: bool) -> None:
    weights = a_model(dtype)
    steps = []
    for i, weight in enumerate(weights):
        second, mean = moments_like(weight, dense)
        steps.append(StepSize(0.1 + 0.1 * i, second, 1.1, 1e-3, mean if centred else None))
    # from steps in 16 bits too a wide prox is asked for: where it jumps, a step rounded first falls elsewhere
    expected = [
        case.penalty.prox(wide(w), 0.7, step.wide().dense()).to(dtype)
        for w, step in zip(weights, steps, strict=True)
    ]
    before = [[t.clone() for t in step.tensors] for step in steps]

    case.penalty.prox_(weights, 0.7, steps)

    for weight, should in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight, should, **close(dtype))
        if dtype == torch.float64:
            assert torch.equal(weight == 0, should == 0)
    for step, was in zip(steps, before, strict=True):  # the optimizer's state is not ours to write
        assert all(torch.equal(now, then) for now, then in zip(step.tensors, was, strict=True))


@compiled
@metric_case
@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "transposed"])
@pytest.mark.parametrize("dense", [False, True], ids=["moments-as-weights", "moments-contiguous"])
def test_prox_on_a_tensor_of_many_pieces(case: Case, layout: str, dense: bool) -> None:
    weight = big(layout)
    second, _ = moments_like(weight, dense)
    step = StepSize(0.5, second, eps=1e-8)
    expected = case.penalty.prox(weight, 0.7, step.dense())
    case.penalty.prox_([weight], 0.7, [step])
    torch.testing.assert_close(weight, expected, rtol=1e-14, atol=1e-15)


@metric_case
def test_prox_where_the_second_moment_is_zero(case: Case) -> None:
    # an embedding's row that no batch has named: without ε its step is infinite
    for eps in (0.0, 1e-8):
        weight = torch.ones(3, 2)
        case.penalty.prox_([weight], 0.7, [StepSize(1e-3, torch.zeros(3, 2), eps=eps)])
        assert torch.isfinite(weight).all() and float(weight.max()) < 1e-4


@metric_case
@pytest.mark.parametrize("metric", [False, True], ids=["one-step", "metric"])
def test_prox_does_not_hide_a_nan(case: Case, metric: bool) -> None:
    weight = torch.tensor([1.0, float("nan"), 0.1])
    step = StepSize(0.5, torch.ones(3)) if metric else StepSize(0.5)
    expected = case.penalty.prox(weight, 0.7, 0.5)
    case.penalty.prox_([weight], 0.7, [step])
    torch.testing.assert_close(weight, expected, equal_nan=True)
    assert weight[1].isnan()


# --- StepSize ----------------------------------------------------------------------------------------


def test_step_size_in_parts_is_its_formula() -> None:
    second, mean = torch.rand(4, 3, dtype=torch.float64) + 1.0, torch.rand(4, 3, dtype=torch.float64)
    plain = StepSize(0.3, second, root_scale=1.7, eps=1e-2)
    torch.testing.assert_close(plain.dense(), 0.3 / (1.7 * second.sqrt() + 1e-2), rtol=1e-15, atol=0)
    centred = StepSize(0.3, second, root_scale=1.7, eps=1e-2, mean=mean)
    expected = 0.3 / (1.7 * (second - mean**2).sqrt() + 1e-2)
    torch.testing.assert_close(centred.dense(), expected, rtol=1e-14, atol=0)
    assert StepSize(0.3).dense() == 0.3


def test_step_size_of_pieces_is_the_whole_in_pieces() -> None:
    step = StepSize(0.3, torch.rand(5, 4) + 0.1, 1.7, 1e-2, mean=torch.rand(5, 4) * 0.1)
    whole = step.dense()
    for row in range(5):
        buffer = torch.empty(4)
        assert step.on([part[row] for part in step.tensors], out=buffer) is buffer
        assert torch.equal(buffer, whole[row])


def test_a_centred_moment_rounded_below_zero_counts_as_zero() -> None:
    step = StepSize(0.3, torch.tensor([1.0]), eps=0.1, mean=torch.tensor([1.0 + 1e-6]))
    assert float(step.dense()) == pytest.approx(3.0)


# --- what the passes cost ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in CASES if c.in_pieces], ids=str)
def test_no_pass_makes_a_tensor_of_the_models_size(case: Case) -> None:
    weight = torch.randn(16, lightning_reg.tensors.chunks.PIECE)
    target, moment = torch.zeros_like(weight), torch.ones_like(weight)
    with torch.profiler.profile(profile_memory=True) as profile:
        case.penalty.add_gradient_([target], [weight], 0.7)
        case.penalty.prox_([weight], 0.7, [StepSize(0.5, moment)])
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
    assert allocated < weight.nbytes / 4
