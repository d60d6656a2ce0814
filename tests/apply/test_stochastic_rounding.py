"""16-bit weights: unbiased, without state, and no step lost."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_reg import L1, L2, GroupLasso, attach
from lightning_reg.apply import Term, decay_, prox_
from lightning_reg.apply.stochastic_rounding import generator_at, round_
from lightning_reg.callbacks import PenaltyCallback
from lightning_reg.tensors import chunks as pieces
from tests.penalties.cases import CASES, Case
from tests.support import QUIET, Net, batches, weights
from tests.turns import everyday

DTYPES = [torch.bfloat16, torch.float16]
narrow = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the law -----------------------------------------------------------------------------------------


@narrow
@given(x=st.floats(-60_000.0, 60_000.0, width=32) | st.floats(-(2**-13), 2**-13, width=32))
def test_the_mean_is_the_number_and_the_result_a_neighbour(dtype: torch.dtype, x: float) -> None:
    count = 2**14
    rounded = round_(torch.full((count,), x), dtype, generator())
    assert torch.equal(rounded, rounded.to(dtype).float()), "the format has every result"
    low, high = rounded.aminmax()
    nearest = torch.tensor(x).to(dtype)
    spacing = float((nearest.view(torch.int16) + 1).view(dtype).float().sub(nearest.float()).abs())
    # beside a number of the format one of the neighbours may not come up
    assert high - low <= spacing and low > x - spacing - 2**-38 and high < x + spacing + 2**-38
    deviation = spacing / 2 / count**0.5  # at most
    assert abs(float(rounded.double().mean()) - x) <= 6 * deviation + 2**-38


@narrow
def test_what_the_format_has_stays(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    for seed in range(3):
        rounded = round_(every.float(), dtype, generator(seed)).to(dtype)
        torch.testing.assert_close(rounded, every, rtol=0, atol=0, equal_nan=True)
    strange = torch.tensor([0x7FFFFFFF, -1, 0x7F800001], dtype=torch.int32).view(torch.float32)
    assert round_(strange, dtype, generator()).isnan().all()


def test_bits_are_a_function_of_step_and_place_alone() -> None:
    def bits(step: int, place: str) -> Tensor:
        return torch.rand(2000, generator=generator_at(step, place, torch.device("cpu")))

    before = torch.get_rng_state()
    first = bits(7, "l1 net.0.weight ()")
    assert torch.equal(first, bits(7, "l1 net.0.weight ()"))
    for step, place in [(8, "l1 net.0.weight ()"), (7, "l1 net.2.weight ()"), (7, "l2 net.0.weight ()")]:
        assert abs(float(torch.corrcoef(torch.stack([first, bits(step, place)]))[0, 1])) < 0.15
    assert torch.equal(torch.get_rng_state(), before)


# --- each penalty ------------------------------------------------------------------------------------


def model(dtype: torch.dtype, width: int = 4) -> nn.Module:
    torch.manual_seed(3)
    linear = nn.Linear(width, 3).to(torch.bfloat16).to(dtype)  # the same numbers in every format
    linear.weight.grad = torch.zeros_like(linear.weight)
    return linear


def acted(case: Case, apply: str, dtype: torch.dtype, steps: int) -> Tensor:
    """What one act makes of the weights, from the same start at each of ``steps``."""
    module = model(dtype)
    weight = module.get_parameter("weight")
    start = weight.detach().clone()
    term, optimizer = Term(case.penalty, module), torch.optim.SGD(module.parameters(), lr=0.01)
    if isinstance(term.bound.state_dict().get("weight"), Tensor) and weight.shape == start.shape:
        term.bound.load_state_dict({"weight": start * 0.5})  # of L2SP, away from the weights
    results = []
    for step in range(steps):
        weight.data.copy_(start)
        act = decay_ if apply == "decoupled" else prox_
        act(term, optimizer, 0.05, lambda step=step: step)
        results.append(weight.detach().double())
    return torch.stack(results)


@pytest.mark.parametrize("apply", ["decoupled", "proximal"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_mean_over_steps_is_the_float32_result(case: Case, apply: str) -> None:
    if not (case.has_prox if apply == "proximal" else case.penalty.has_gradient):
        pytest.skip("check_apply refuses it")
    exact = acted(case, apply, torch.float32, 1)[0]
    rounded = acted(case, apply, torch.bfloat16, 144)
    start = model(torch.float64).get_parameter("weight").detach()
    spacing = 2.0 ** (torch.maximum(exact.abs(), start.abs()).log2().floor() - 7)
    assert ((rounded - exact).abs() <= spacing).all()
    bias = (rounded.mean(0) - exact).abs()
    assert (bias <= 6 * spacing / 2 / 144**0.5).all()  # nearest rounding's is up to half the spacing


@pytest.mark.parametrize("penalty", [L1(1.0), L2(1.0), GroupLasso(1.0)], ids=lambda p: p.log_name)
def test_in_adams_metric_the_mean_is_the_float32_result(penalty: Any) -> None:
    def thresholded(dtype: torch.dtype, steps: int) -> Tensor:
        module = model(dtype)
        weight = module.get_parameter("weight")
        start = weight.detach().clone()
        weight.grad = start.clone()
        optimizer = torch.optim.Adam([weight], lr=0.01)
        optimizer.step()
        term, total = Term(penalty, module), torch.zeros(weight.shape, dtype=torch.float64)
        for step in range(steps):
            weight.data.copy_(start)
            prox_(term, optimizer, 0.05, lambda step=step: step)
            total += weight.detach()
        return total / steps

    exact, mean = thresholded(torch.float32, 1), thresholded(torch.bfloat16, 100)
    start = model(torch.float64).get_parameter("weight").detach()
    # the moments have 8 bits, an error of 2⁻⁸ of what is taken off
    tolerance = (start - exact).abs() * 2**-7 + 2.0 ** (start.abs().log2().floor() - 7) * 3 / 100**0.5
    assert ((mean - exact).abs() <= tolerance).all()
    assert (exact != start).all()


# --- whole runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("apply", ["decoupled", "proximal"])
@narrow
def test_a_decay_of_a_thousandth_is_followed(apply: Any, dtype: torch.dtype) -> None:
    steps, delta = 400, 1e-3
    weight = torch.linspace(0.5, 2.0, 10_000).to(dtype)
    module = nn.ParameterList([nn.Parameter(weight.clone().view(100, 100))])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    attach(module, optimizer, L2(delta / 0.1, "all"), apply=apply)
    module[0].grad = torch.zeros_like(module[0])
    for _ in range(steps):
        optimizer.step()
    factor = (1 - delta) ** steps if apply == "decoupled" else (1 + delta) ** -steps
    ratio = module[0].detach().double().flatten() / (weight.double() * factor)
    # a step of δ·w between numbers s·w apart has variance below δ·s·w²; s is at most 2⁻⁷ or 2⁻¹⁰
    deviation = (steps * delta * (2**-7 if dtype == torch.bfloat16 else 2**-10)) ** 0.5
    assert float((ratio - 1).square().mean().sqrt()) < deviation
    assert abs(float(ratio.mean()) - 1) < 4 * deviation / 100
    if dtype == torch.bfloat16:
        stuck = weight.clone()
        for _ in range(10):
            stuck.mul_(1 - delta)
        assert torch.equal(stuck, weight), "nearest rounding would lose every step"


@pytest.mark.parametrize("make", everyday(1, [torch.optim.SGD, torch.optim.Adam]))
def test_thresholds_below_the_spacing_reach_zero_and_zeros_stay(make: Any) -> None:
    weight = torch.tensor([[1.0, -1.0, 0.5, 0.0, 0.0]]).repeat(200, 1)
    module = nn.ParameterList([nn.Parameter(weight.to(torch.bfloat16))])
    optimizer = make(module.parameters(), lr=1.0)
    module[0].grad = torch.zeros_like(module[0])
    # Adam's first moments are 0, and lr/ε is its step
    attach(module, optimizer, L1(2**-10 if make is torch.optim.SGD else 2**-10 * 1e-8), apply="proximal")
    middle = None
    for step in range(1024 + 256):
        optimizer.step()
        assert (module[0][:, 3:] == 0).all()
        if step == 511:
            middle = module[0].detach().float().mean(0)
    assert middle is not None
    torch.testing.assert_close(middle, torch.tensor([0.5, -0.5, 0.0, 0.0, 0.0]), rtol=0, atol=0.02)
    assert float((module[0] == 0).float().mean()) > 0.98


@pytest.mark.filterwarnings("ignore:.*a second time:UserWarning")
def test_two_terms_on_a_tensor_round_apart() -> None:
    module = nn.ParameterList([nn.Parameter(torch.ones(100, 1000, dtype=torch.bfloat16))])
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    for _ in range(2):
        attach(module, optimizer, L2(2**-9), apply="decoupled")
    module[0].grad = torch.zeros_like(module[0])
    optimizer.step()
    # down by one number or not, each time with a half; the same bits twice would go down by two, or by none
    once = float((module[0] == 1 - 2**-8).float().mean())
    assert once == pytest.approx(0.5, abs=0.02)


class Largest(TorchDispatchMode):
    """The entries of the largest tensor that is made."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype != torch.bfloat16:
            self.largest = max(self.largest, result.numel())
        return result


def test_no_tensor_of_the_weights_size_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", 2**14)
    weight = nn.Parameter(torch.randn(16, pieces.PIECE).to(torch.bfloat16))
    module = nn.ParameterList([weight])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    weight.grad = torch.zeros_like(weight)
    term = Term(L1(1.0), module)
    with Largest() as made:
        decay_(term, optimizer, 0.1, int)
        prox_(term, optimizer, 0.1, int)
    assert pieces.PIECE <= made.largest <= 2 * pieces.PIECE


def narrow_run(apply: Any, folder: Path, epochs: int, ckpt: Path | None = None) -> Tensor:
    module = Net(lambda p: torch.optim.Adam(p, lr=1e-2))
    penalties = [PenaltyCallback(penalty, apply=apply) for penalty in (L1(0.02, "all"), GroupLasso(0.02))]
    options = {**QUIET, "enable_checkpointing": True, "precision": "bf16-true", "max_epochs": epochs}
    saver = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    trainer = pl.Trainer(callbacks=[*penalties, saver], **options)
    trainer.fit(module, batches(dtype=torch.bfloat16), ckpt_path=ckpt)
    return weights(module)


@pytest.mark.parametrize("apply", ["decoupled", "proximal"])
def test_a_resumed_run_rounds_as_the_uninterrupted_one(apply: Any, tmp_path: Path) -> None:
    whole = narrow_run(apply, tmp_path, 3)
    torch.manual_seed(99)
    resumed = narrow_run(apply, tmp_path, 3, tmp_path / "epoch=1.ckpt")
    assert whole.dtype == torch.bfloat16
    assert torch.equal(whole, resumed)


def test_a_copy_rounds_alike_and_float32_is_not_rounded() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        module = model(dtype)
        twins = [module, copy.deepcopy(module)]
        for twin in twins:
            twin.get_parameter("weight").grad = torch.zeros(3, 4, dtype=dtype)
            decay_(Term(L1(1.0), twin), torch.optim.SGD(twin.parameters(), lr=0.1), 0.01, lambda: 5)
        first, second = (twin.get_parameter("weight") for twin in twins)
        assert torch.equal(first, second)
        if dtype == torch.float32:
            start = model(dtype).get_parameter("weight")
            assert torch.equal(first, start.add(start.sign(), alpha=-0.001))
