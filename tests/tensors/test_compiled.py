"""The fused passes against the eager ones, and what happens where nothing can be compiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_reg import L1, L2, ElasticNet, Penalty
from lightning_reg.tensors import compiled
from lightning_reg.tensors.compiled import compile_kernels
from lightning_reg.tensors.steps import StepSize


@pytest.fixture(autouse=True)
def _off_afterwards() -> Iterator[None]:
    yield
    compile_kernels(False)
    compiled._compiled.cache_clear()


def tensors(dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(130, 131), (130, 131), (2**14 + 1,), (2, 3, 4)] + [(150 + i, 120) for i in range(8)]
    made = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    made[0][:7] = 0.0
    return [*made, torch.randn(140, 150, generator=generator).to(dtype).t()]


@pytest.mark.slow
@pytest.mark.xdist_group("inductor")
@pytest.mark.filterwarnings("default")  # what inductor imports warns
@pytest.mark.parametrize(
    "penalty, dtype",
    [
        (L1(0.1), torch.float32),
        (L2(0.1), torch.float32),
        (ElasticNet(0.1, l1_ratio=0.3), torch.float32),
        (ElasticNet(0.1, l1_ratio=0.3), torch.float64),
    ],
    ids=str,
)
def test_fused_passes_do_what_eager_ones_do(penalty: Penalty, dtype: torch.dtype) -> None:
    """On more tensors than one call takes, with a small one and one of other strides among them."""
    weights, targets, moments = (tensors(dtype, seed) for seed in range(3))
    steps = [StepSize(0.5, moment.square(), 1.1, 1e-8) for moment in moments]
    expected = [t + 0.7 * penalty.gradient(w, 0.1) for t, w in zip(targets, weights, strict=True)]
    shrunk = [penalty.prox(w, 0.1, step.dense()) for w, step in zip(weights, steps, strict=True)]
    done = []
    run = compiled._run

    compile_kernels()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "_run", lambda *args: done.append(run(*args)) or done[-1])
        penalty.add_gradient_(targets, weights, 0.1, alpha=0.7)
        penalty.prox_(weights, 0.1, steps)

    assert done == [11] * (1 if isinstance(penalty, L2) else 2)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close(targets, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(weights, shrunk, rtol=tolerance, atol=tolerance)
    for weight, right in zip(weights, shrunk, strict=True):
        assert torch.equal(weight == 0, right == 0)
    assert isinstance(penalty, L2) or bool((weights[0] == 0).any())


@pytest.mark.slow
@pytest.mark.xdist_group("inductor")
@pytest.mark.filterwarnings("default")  # what inductor imports warns
def test_one_graph_serves_schedules_and_any_shapes() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("eager")
    compile_kernels()
    real = torch.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda f, dynamic: real(f, dynamic=dynamic, backend=counter))
        for i in range(12):
            shared = torch.randn(3, 200 + i, 100)  # weights that are views of one tensor
            weights = [*shared, torch.randn(150, 150 + i), torch.randn(20_000 + i)][: 1 + i % 5]
            targets = [torch.zeros_like(weight) for weight in weights]
            L1(0.1).add_gradient_(targets, weights, 0.01 * i)
            torch.testing.assert_close(targets, [0.01 * i * torch.sgn(weight) for weight in weights])
    assert counter.frame_count == 1


def test_without_a_compiler_one_line_says_so_and_eager_passes_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*args: Any, **kwargs: Any) -> Any:
        def fails(*args: Any) -> None:
            raise RuntimeError("no g++")

        return fails

    monkeypatch.setattr(torch, "compile", no_compiler)
    weight, target = tensors(torch.float32)[:2]
    expected = target + L1(0.1).gradient(weight, 0.1)
    compile_kernels()
    with pytest.warns(UserWarning, match="no way to compile"):
        L1(0.1).add_gradient_([target], [weight], 0.1)
    L1(0.1).add_gradient_([torch.zeros_like(weight)], [weight], 0.1)  # and says it once
    torch.testing.assert_close(target, expected)


def test_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_run", lambda *args: pytest.fail("compiled"))
    weight, target = tensors(torch.float32)[:2]
    L1(0.1).add_gradient_([target], [weight], 0.1)
