"""Single weights, not convex: proximal operators against a grid, values against quadrature and skglm."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_reg import L0, L1, MCP, SCAD, LHalf, LogSum, attach
from lightning_reg.apply import check_apply
from lightning_reg.penalties.elementwise import ElementwisePenalty
from lightning_reg.tensors.steps import StepSize
from tests.penalties.cases import CASES
from tests.turns import everyday

#: Those of the table, and some steeper and flatter.
PENALTIES = {
    **{
        str(case): case.penalty
        for case in CASES
        if isinstance(case.penalty, ElementwisePenalty) and not case.convex
    },
    "MCP, steep": MCP(1.0, gamma=0.2),
    "SCAD, steep": SCAD(1.0, a=2.1),
    "LogSum, flat": LogSum(1.0, eps=2.5),
}
#: The step that a longer one counts as.
LONGEST = {"MCP": 3.0, "MCP, steep": 0.2, "SCAD": 2.7, "SCAD, steep": 1.1}
GRID = torch.linspace(-6, 6, 24_001, dtype=torch.float64)


def _cost(penalty, x, weight, strength, step):
    return (x - weight) ** 2 / (2 * step) + penalty.value(x, strength)


@pytest.mark.parametrize("name", PENALTIES)
@settings(max_examples=40, deadline=None)
@given(
    weight=st.floats(-5, 5),
    strength=st.floats(0.05, 2.0),
    step=st.floats(0.05, 8.0),
)
def test_prox_is_the_lowest_point_of_a_grid(name, weight, strength, step):
    penalty = PENALTIES[name]
    step = min(step, LONGEST.get(name, 8.0) * 0.999)
    point = penalty.prox(torch.tensor([weight], dtype=torch.float64), strength, step)
    got = _cost(penalty, point, weight, strength, step).item()
    on_grid = (GRID - weight) ** 2 / (2 * step) + penalty.each(GRID, strength)
    assert got <= on_grid.min().item() + 1e-12


@pytest.mark.parametrize("name", PENALTIES)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), strength=st.floats(0.05, 2.0))
def test_a_step_for_each_weight_is_that_step_alone(name, seed, strength):
    generator = torch.Generator().manual_seed(seed)
    weight = 3 * torch.randn(8, dtype=torch.float64, generator=generator)
    step = 10 ** (4 * torch.rand(8, dtype=torch.float64, generator=generator) - 2)
    together = PENALTIES[name].prox(weight, strength, step)
    alone = [PENALTIES[name].prox(w[None], strength, float(s)) for w, s in zip(weight, step, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", [name for name in PENALTIES if name != "L0"])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), strength=st.floats(0.05, 2.0))
def test_gradient_is_autograds(name, seed, strength):
    generator = torch.Generator().manual_seed(seed)
    weight = 3 * torch.randn(3, 4, dtype=torch.float64, generator=generator)
    weight[0, 0] = 0.0
    leaf = weight.clone().requires_grad_()
    (want,) = torch.autograd.grad(PENALTIES[name].value(leaf, strength), leaf)
    torch.testing.assert_close(PENALTIES[name].gradient(weight, strength), want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("step", [0.5, 50.0, torch.logspace(-3, 2, 12, dtype=torch.float64).view(3, 4)])
def test_edges(name, step):
    penalty = PENALTIES[name]
    weight = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight[0] = 0.0
    assert torch.equal(penalty.prox(weight, 0.0, step), weight)
    enormous = penalty.prox(weight, 1e30, step)
    assert not enormous.any() and not enormous.isnan().any()
    zero = torch.zeros_like(weight)
    assert float(penalty.value(zero, 1.0)) == 0.0 and not penalty.gradient(zero, 1.0).any()
    assert not penalty.prox(zero, 1.0, step).any()
    leaf = zero.clone().requires_grad_()
    value = penalty.value(leaf, 1.0)
    if value.requires_grad:
        assert not torch.autograd.grad(value, leaf)[0].isnan().any()
    for shape in [(), (0,), (0, 3), (1,)]:
        some = torch.full(shape, 9.0, dtype=torch.float64)
        assert penalty.prox(some, 0.1, 0.5).shape == shape and penalty.value(some, 1.0).shape == ()


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits(name, dtype):
    weight = torch.full((100_000,), 2.0, dtype=dtype)
    value = PENALTIES[name].value(weight, 1.0)
    assert value.dtype == torch.float32 and value.isfinite()
    torch.testing.assert_close(value, PENALTIES[name].value(weight.float(), 1.0))
    after = weight.clone()
    PENALTIES[name].prox_([after], 0.3, [StepSize.of(torch.full((100_000,), 0.1))])
    want = PENALTIES[name].prox(weight.float(), 0.3, 0.1)
    assert torch.equal(after, want.to(dtype))


@pytest.mark.parametrize("name", PENALTIES)
def test_pieces_and_strange_strides_give_the_same(name):
    torch.manual_seed(0)
    weight = torch.randn(300, 1000).t()
    step = torch.rand(300, 1000).t()
    want = PENALTIES[name].prox(weight, 0.3, step)
    got = weight.clone(memory_format=torch.preserve_format)
    PENALTIES[name].prox_([got], 0.3, [StepSize(1.0, step.reciprocal().square())])
    torch.testing.assert_close(got, want)
    target = torch.zeros_like(weight)
    PENALTIES[name].add_gradient_([target], [weight], 0.3, alpha=2.0)
    torch.testing.assert_close(target, 2 * PENALTIES[name].gradient(weight, 0.3))


def test_large_gamma_is_the_lasso():
    weight = torch.randn(20, dtype=torch.float64)
    want = L1(1.0).prox(weight, 0.3, 0.5)
    torch.testing.assert_close(MCP(1.0, gamma=1e12).prox(weight, 0.3, 0.5), want, rtol=1e-10, atol=0)
    torch.testing.assert_close(SCAD(1.0, a=1e12).prox(weight, 0.3, 0.5), want, rtol=1e-10, atol=0)


@pytest.mark.slow  # numba compiles for 15 seconds
@pytest.mark.xdist_group("numba")
def test_values_and_proxes_are_skglms():
    penalties = pytest.importorskip("skglm.penalties")
    rng = np.random.default_rng(0)
    w = 2 * rng.normal(size=50)
    weight = torch.from_numpy(w)
    pairs = [
        (MCP(0.7, gamma=3.0), penalties.MCPenalty(0.7, 3.0)),
        (SCAD(0.7, a=3.7), penalties.SCAD(0.7, 3.7)),
        (LHalf(0.7), penalties.L0_5(0.7)),
        (LogSum(0.7, eps=0.4), penalties.LogSumPenalty(0.7, 0.4)),
        (L1(0.7), penalties.L1(0.7)),
    ]
    for ours, theirs in pairs:
        np.testing.assert_allclose(float(ours.value(weight, 0.7)), theirs.value(w), rtol=1e-13)
        prox = [theirs.prox_1d(x, 0.8, 0) for x in w]
        np.testing.assert_allclose(ours.prox(weight, 0.7, 0.8).numpy(), prox, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("penalty", [L0(0.1), LHalf(0.1)])
@pytest.mark.parametrize("apply", ["gradient", "loss", "decoupled"])
def test_no_gradient_to_follow_is_refused(penalty, apply):
    with pytest.raises(ValueError, match=r"has no gradient that apply=.* could follow; use apply='proximal'"):
        check_apply(penalty, apply)


@pytest.mark.parametrize("name", LONGEST)
def test_a_step_beyond_the_bend_counts_as_the_longest(name):
    weight = torch.linspace(-5, 5, 101, dtype=torch.float64) + 0.01
    longest, penalty = LONGEST[name], PENALTIES[name]
    flat = {"MCP": 3.0, "MCP, steep": 0.2, "SCAD": 3.7, "SCAD, steep": 2.1}[name]
    for step in (longest, 2 * longest, 1e8):
        after = penalty.prox(weight, 1.0, step)
        torch.testing.assert_close(
            after, penalty.prox(weight, 1.0, longest * (1 - 1e-12)), rtol=1e-6, atol=1e-6
        )
        assert torch.equal(after[weight.abs() > flat], weight[weight.abs() > flat])  # never cut off


def test_l0_is_refused_in_adams_metric_and_works_in_the_plain_one():
    model = nn.Linear(4, 1, bias=False)
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    with pytest.raises(ValueError, match="use SGD"):
        attach(model, adam, L0(0.1), apply="proximal")
    attach(model, adam, L0(50.0), apply="proximal", metric="euclidean")
    model(torch.ones(1, 4)).backward()
    adam.step()
    assert not model.weight.detach().any()


@pytest.mark.parametrize("penalty", everyday(1, [MCP(0.1), SCAD(0.1), LHalf(0.05), LogSum(0.05)]))
def test_zeros_under_adam(penalty):
    torch.manual_seed(0)
    model = nn.Linear(20, 1, bias=False)
    x = torch.randn(100, 20)
    y = x[:, :1] * 2
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    attach(model, optimizer, penalty, apply="proximal")
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    assert model.weight.detach().count_nonzero() == 1


def test_bad_arguments():
    with pytest.raises(ValueError, match="gamma=0"):
        MCP(0.1, gamma=0)
    with pytest.raises(ValueError, match="above 2"):
        SCAD(0.1, a=2.0)
    with pytest.raises(ValueError, match="eps=0"):
        LogSum(0.1, eps=0)


def test_the_jump_of_the_log_sum_is_where_both_valleys_are_equally_deep():
    for amount in (1.05, 4.0, 1e6):
        penalty = LogSum(1.0, eps=0.5)
        edge = penalty.threshold(amount, 1.0)
        weight = torch.tensor([edge * (1 - 1e-12), edge * (1 + 1e-12)], dtype=torch.float64)
        below, above = penalty.prox(weight, amount, 1.0)
        assert below == 0.0 and above > 0.5
        assert _cost(penalty, above, edge, amount, 1.0) == pytest.approx(edge**2 / 2, rel=1e-10)


def test_the_jump_of_l_half_is_where_both_valleys_are_equally_deep():
    for amount in (1.0, 0.3):
        edge = 1.5 * amount ** (2 / 3)
        below, above = (
            LHalf(1.0)
            .prox(torch.tensor([edge - 1e-9, edge + 1e-9], dtype=torch.float64), amount, 1.0)
            .tolist()
        )
        assert below == 0.0 and above == pytest.approx(edge * 2 / 3, rel=1e-6)
