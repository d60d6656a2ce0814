"""The fused passes against the eager ones, and what happens where nothing can be compiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_reg import L1, L2, ElasticNet, Penalty, compiled
from lightning_reg.compiled import compile_kernels
from lightning_reg.step_size import StepSize

PENALTIES = [L1(0.1), L2(0.1), ElasticNet(0.1, l1_ratio=0.3)]


@pytest.fixture(autouse=True)
def _small_tensors_too_and_off_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(compiled, "LARGE_SIGN", 2**14)
    monkeypatch.setattr(compiled, "LARGE_METRIC", 2**14)
    yield
    compile_kernels(False)
    compiled._compiled.cache_clear()


def tensors(dtype: torch.dtype, count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(130, 131, generator=generator, dtype=torch.float64) for _ in range(count)]
    made[0][:7] = 0.0
    return [tensor.to(dtype) for tensor in made]


@pytest.mark.slow
@pytest.mark.xdist_group("inductor")
@pytest.mark.filterwarnings("default")  # what inductor imports warns
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: type(p).__name__)
def test_fused_passes_do_what_eager_ones_do(penalty: Penalty, dtype: torch.dtype) -> None:
    weight, target, moment, _ = tensors(dtype)
    step = StepSize(0.5, moment.square(), 1.1, 1e-8)
    expected = target + 0.7 * penalty.gradient(weight, 0.1)
    shrunk = penalty.prox(weight, 0.1, step.dense())
    calls = []
    run = compiled._run

    compile_kernels()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "_run", lambda *args: calls.append(run(*args)) or calls[-1])
        penalty.add_gradient_([target], [weight], 0.1, alpha=0.7)
        penalty.prox_([weight], 0.1, [step])

    assert calls == [True] * (1 if isinstance(penalty, L2) else 2)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close(target, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(weight, shrunk, rtol=tolerance, atol=tolerance)
    assert torch.equal(weight == 0, shrunk == 0) and bool((weight == 0).any())


@pytest.mark.slow
@pytest.mark.xdist_group("inductor")
@pytest.mark.filterwarnings("default")  # what inductor imports warns
def test_a_schedule_takes_one_graph() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("eager")
    compile_kernels()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "_compiled", lambda f: torch.compile(f, dynamic=True, backend=counter))
        for i in range(12):
            weight, target = torch.randn(200 + i, 100), torch.zeros(200 + i, 100)
            L1(0.1).add_gradient_([target], [weight], 0.01 * i)
    assert counter.frame_count == 1


def test_without_a_compiler_one_line_says_so_and_eager_passes_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*args: Any, **kwargs: Any) -> Any:
        def fails(*args: Any) -> None:
            raise RuntimeError("no g++")

        return fails

    monkeypatch.setattr(torch, "compile", no_compiler)
    weight, target, *_ = tensors(torch.float32)
    expected = target + L1(0.1).gradient(weight, 0.1)
    compile_kernels()
    with pytest.warns(UserWarning, match="no way to compile"):
        L1(0.1).add_gradient_([target], [weight], 0.1)
    L1(0.1).add_gradient_([torch.zeros_like(weight)], [weight], 0.1)  # and says it once
    torch.testing.assert_close(target, expected)


def test_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_run", lambda *args: pytest.fail("compiled"))
    weight, target, *_ = tensors(torch.float32)
    L1(0.1).add_gradient_([target], [weight], 0.1)
