"""Group lasso, sparse group lasso and LInf: laws of the prox, in every metric and layout."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_reg import L1, GroupLasso, L2Norm, LInf, SparseGroupLasso, attach
from lightning_reg.groups.layout import Labels, Slices
from lightning_reg.prox.group import shrink_groups_in_metric_
from lightning_reg.prox.group_maxima import lower_maxima_
from lightning_reg.select.parameters import select_parameters
from lightning_reg.tensors.steps import StepSize
from tests.support import at_each

PENALTIES = {
    "group_lasso": GroupLasso(1.0),
    "group_lasso_plain": GroupLasso(1.0, groups="columns", size_weighted=False),
    "sparse_group_lasso": SparseGroupLasso(1.0, l1_ratio=0.3),
    "l_inf": LInf(1.0, groups="rows"),
    "l2_norm": L2Norm(1.0),
}


def _draw(seed, decades=0.0, shape=(4, 3)):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, dtype=torch.float64, generator=generator)
    weight[0] = 0.0  # a group of zeros
    step = 10 ** (torch.rand(shape, dtype=torch.float64, generator=generator) * decades - decades / 2)
    return weight, step


def _objective(penalty, x, weight, strength, step):
    return ((x - weight) ** 2 / (2 * step)).sum() + penalty.value(x, strength)


seeds = st.integers(0, 10**6)
strengths = st.floats(1e-3, 3.0)
decades = st.sampled_from([0.0, 1.0, 6.0])


@pytest.mark.parametrize("name", PENALTIES)
@settings(max_examples=40, deadline=None)
@given(seed=seeds, strength=strengths, decades=decades)
def test_prox_beats_every_other_point(name, seed, strength, decades):
    penalty = PENALTIES[name]
    weight, step = _draw(seed, decades)
    x = penalty.prox(weight, strength, step)
    best = _objective(penalty, x, weight, strength, step)
    generator = torch.Generator().manual_seed(seed + 1)
    others = [weight[None], torch.zeros_like(weight)[None]]
    for scale in (1e-6, 1e-3, 0.1, 1.0):
        others.append(x + scale * torch.randn((10, *x.shape), dtype=x.dtype, generator=generator))
        rows = x.repeat(4, 1, 1)
        rows[range(4), range(4)] *= 1 - scale
        others.append(rows)
    found = at_each(lambda other: _objective(penalty, other, weight, strength, step), torch.cat(others))
    assert best <= found.min() * (1 + 1e-13)


@pytest.mark.parametrize("name", ["group_lasso", "group_lasso_plain", "l2_norm"])
@settings(max_examples=40, deadline=None)
@given(seed=seeds, strength=strengths, decades=decades)
def test_prox_is_stationary_by_autograd(name, seed, strength, decades):
    """½Σ(x−w)²/η + Ω(x) has a gradient of 0 on the groups that stay, and a subgradient 0 on the others."""
    penalty = PENALTIES[name]
    weight, step = _draw(seed, decades)
    x = penalty.prox(weight, strength, step).requires_grad_()
    (gradient,) = torch.autograd.grad(_objective(penalty, x, weight, strength, step), x)
    dim = {"group_lasso": 1, "group_lasso_plain": 0, "l2_norm": None}[name]
    norms = torch.linalg.vector_norm(x.detach(), dim=dim, keepdim=True)
    pull = (weight / step).abs().max()
    assert (gradient * (norms > 0)).abs().max() <= 1e-11 * (pull + strength)
    size = math.sqrt(3) if name == "group_lasso" else 1.0
    outer = torch.linalg.vector_norm(weight / step, dim=dim, keepdim=True)
    assert bool((outer[norms == 0] <= strength * size * (1 + 1e-12)).all())


@settings(max_examples=40, deadline=None)
@given(seed=seeds, strength=strengths, decades=decades)
def test_sparse_group_lasso_prox_is_stationary(seed, strength, decades):
    penalty = PENALTIES["sparse_group_lasso"]
    weight, step = _draw(seed, decades)
    x = penalty.prox(weight, strength, step)
    residual = (weight - x) / step  # must lie in the subdifferential
    norms = x.norm(dim=1, keepdim=True)
    for row in range(4):
        if norms[row] > 0:
            smooth = strength * 0.7 * math.sqrt(3) * x[row] / norms[row]
            rest = residual[row] - smooth
            scale = residual[row].abs().max() + strength
            live = x[row] != 0
            assert torch.allclose(rest[live], strength * 0.3 * x[row][live].sign(), atol=float(1e-12 * scale))
            assert bool((rest[~live].abs() <= strength * 0.3 + 1e-12 * scale).all())
        else:
            soft = (residual[row].abs() - strength * 0.3).clamp(min=0)
            assert soft.norm() <= strength * 0.7 * math.sqrt(3) * (1 + 1e-12)


@pytest.mark.parametrize("name", PENALTIES)
@settings(max_examples=30, deadline=None)
@given(seed=seeds, strength=strengths, decades=decades)
def test_prox_is_firmly_non_expansive_in_its_metric(name, seed, strength, decades):
    weight, step = _draw(seed, decades)
    other, _ = _draw(seed + 1)
    x, y = (PENALTIES[name].prox(w, strength, step) for w in (weight, other))
    left = ((x - y) ** 2 / step).sum()
    right = ((x - y) * (weight - other) / step).sum()
    assert left <= right + 1e-12 * right.abs()


@pytest.mark.parametrize("name", PENALTIES)
@settings(max_examples=20, deadline=None)
@given(seed=seeds, strength=strengths)
def test_gradient_is_autograds(name, seed, strength):
    penalty = PENALTIES[name]
    weight, _ = _draw(seed)
    weight[0] = 0.3 * torch.arange(1, 4)  # away from the kink
    leaf = weight.clone().requires_grad_()
    (want,) = torch.autograd.grad(penalty.value(leaf, strength), leaf)
    torch.testing.assert_close(penalty.gradient(weight, strength), want, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", PENALTIES)
def test_a_diagonal_metric_of_equal_steps_is_the_plain_one(name):
    weight, _ = _draw(3)
    plain = PENALTIES[name].prox(weight, 0.4, 0.7)
    metric = PENALTIES[name].prox(weight, 0.4, torch.full_like(weight, 0.7))
    torch.testing.assert_close(plain, metric, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("step", [0.5, torch.linspace(0.1, 1, 12, dtype=torch.float64).view(4, 3)])
def test_edges(name, step):
    penalty = PENALTIES[name]
    weight, _ = _draw(5)
    assert torch.equal(penalty.prox(weight, 0.0, step), weight)  # strength 0: the identity, zeros included
    enormous = penalty.prox(weight, 1e30, step)
    assert not enormous.any() and not enormous.isnan().any()
    zero = torch.zeros_like(weight)
    assert not penalty.gradient(zero, 1.0).any() and not penalty.prox(zero, 1.0, step).any()
    leaf = zero.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(penalty.value(leaf, 1.0), leaf)
    assert float(penalty.value(zero, 1.0)) == 0.0 and not gradient.isnan().any()
    tiny = penalty.prox(weight * 1e-200, 0.1, step)
    assert not tiny.any()
    huge = penalty.prox(weight * 1e150, 0.1, step)
    torch.testing.assert_close(huge, weight * 1e150)


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("step", [0.5, torch.linspace(0.1, 1, 12, dtype=torch.float64).view(4, 3)])
def test_a_weight_that_is_no_number_ends_no_other_group(name, bad, step):
    penalty = PENALTIES[name]
    weight, _ = _draw(6)
    want = penalty.prox(weight, 0.1, step)
    weight[3, 2] = bad
    got = penalty.prox(weight, 0.1, step)
    assert not got[3, 2].isfinite()
    if name not in ("l2_norm", "group_lasso_plain"):
        torch.testing.assert_close(got[:3], want[:3], rtol=1e-14, atol=0)


@pytest.mark.parametrize("seed", range(20))
def test_the_level_is_that_of_the_sorted_moduli(seed):
    """The largest root of the lines through the k largest moduli, written without Newton's method."""
    torch.manual_seed(seed)
    weight = torch.randn(50, dtype=torch.float64) * 10 ** (2 * torch.rand(50, dtype=torch.float64))
    step = 10 ** (6 * torch.rand(50, dtype=torch.float64) - 3)
    mu = float(10 ** (6 * torch.rand(()) - 3))
    modulus, order = weight.abs().sort(descending=True)
    pull = 1 / step[order]
    level = (((pull * modulus).cumsum(0) - mu) / pull.cumsum(0)).max().clamp(min=0.0)
    got = LInf(1.0, groups="tensor").prox(weight, mu, step)
    torch.testing.assert_close(got, weight.clamp(-level, level), rtol=1e-12, atol=0)


@pytest.mark.parametrize("run", [shrink_groups_in_metric_, lower_maxima_])
def test_coupled_16_bit_tensors_take_steps_below_their_range(run):
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    steps, layouts = [StepSize.of(1e-9), StepSize.of(2e-9)], [Slices((2, 2), (0,))] * 2
    want, got = [weight.clone(), weight.clone()], [weight.half(), weight.half()]
    for tensors in (want, got):
        run(tensors, layouts, steps, 5e8)
    assert not torch.equal(want[0], weight)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=2e-3, atol=0)


def test_a_weight_with_a_step_of_0_does_not_disturb_the_level():
    weight, step = (torch.tensor(t, dtype=torch.float64) for t in ([3.0, 2.9, 0.1], [0.5, 0.5, 0.0]))
    got = LInf(1.0).prox(weight, 0.3, step)
    torch.testing.assert_close(got, torch.tensor([2.875, 2.875, 0.1], dtype=torch.float64))


@pytest.mark.parametrize("penalty", [GroupLasso(1.0), SparseGroupLasso(1.0), LInf(1.0), L2Norm(1.0)])
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (1,), (1, 1)])
@pytest.mark.parametrize("metric", [False, True])
def test_scalar_empty_and_single_weights(penalty, shape, metric):
    weight = torch.full(shape, 2.0, dtype=torch.float64)
    step = torch.full(shape, 0.5, dtype=torch.float64) if metric else 0.5
    assert penalty.value(weight, 1.0).shape == ()
    assert penalty.gradient(weight, 1.0).shape == shape
    # a group of one is L1
    torch.testing.assert_close(penalty.prox(weight, 1.0, step), L1(1.0).prox(weight, 1.0, step))
    assert float(penalty.value(weight, 1.0)) == 2.0 * weight.numel()


def test_groups_of_one_are_l1_and_ratios_are_the_pure_penalties():
    weight, step = _draw(7, 2.0, (5, 1))
    torch.testing.assert_close(GroupLasso(1.0).prox(weight, 0.3, step), L1(1.0).prox(weight, 0.3, step))
    torch.testing.assert_close(
        LInf(1.0, groups="rows").prox(weight, 0.3, step), L1(1.0).prox(weight, 0.3, step)
    )
    weight, step = _draw(8, 2.0)
    torch.testing.assert_close(
        SparseGroupLasso(1.0, l1_ratio=1.0).prox(weight, 0.3, step), L1(1.0).prox(weight, 0.3, step)
    )
    torch.testing.assert_close(
        SparseGroupLasso(1.0, l1_ratio=0.0).prox(weight, 0.3, step), GroupLasso(1.0).prox(weight, 0.3, step)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_weights_are_summed_in_float32(dtype):
    weight = torch.full((2, 100_000), 1.0, dtype=dtype)
    penalty = GroupLasso(1.0, size_weighted=False)
    assert penalty.value(weight, 1.0).dtype == torch.float32
    torch.testing.assert_close(penalty.value(weight, 1.0), torch.tensor(2 * math.sqrt(100_000)))
    want = 1 - 100 / math.sqrt(100_000)
    for step in (100.0, torch.full((2, 100_000), 100.0)):
        got = penalty.prox(weight, 1.0, step)
        assert got.dtype == dtype
        torch.testing.assert_close(got.float(), torch.full_like(weight, want).float(), rtol=1e-2, atol=0)


@pytest.mark.slow
@pytest.mark.xdist_group("numba")
def test_strange_strides_and_pieces_give_the_same():
    torch.manual_seed(0)
    weight = torch.randn(64, 32, 3, 5)
    step = torch.rand_like(weight) + 0.1
    for groups in ("filters", "channels"):
        penalty = GroupLasso(1.0, groups=groups)
        want = penalty.prox(weight.double(), 0.01, step.double())
        for layout in (torch.contiguous_format, torch.channels_last):
            got = penalty.prox(
                weight.contiguous(memory_format=layout), 0.01, step.contiguous(memory_format=layout)
            )
            torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, strength=strengths)
def test_labels_and_slices_agree_in_every_metric(seed, strength):
    weight, step = _draw(seed, 3.0, (6, 4))
    labels = Labels(torch.arange(6)[:, None].expand(6, 4))
    slices = Slices((6, 4), (0,))
    for run in (
        lambda w, layout: shrink_groups_in_metric_([w], [layout], [StepSize.of(step)], strength, soft=0.1),
        lambda w, layout: shrink_groups_in_metric_([w], [layout], [StepSize.of(0.3)], strength, soft=0.1),
        lambda w, layout: lower_maxima_([w], [layout], [StepSize.of(step)], strength),
    ):
        a, b = weight.clone(), weight.clone()
        run(a, slices)
        run(b, labels)
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_weights_in_no_group_are_left_alone():
    torch.manual_seed(0)
    linear = nn.Linear(6, 1, bias=False)
    labels = torch.tensor([[0, 0, 1, 1, -1, -1]])
    penalty = GroupLasso(100.0, groups=lambda *_: labels)
    before = linear.weight.detach().clone()
    optimizer = torch.optim.Adam(linear.parameters(), lr=1e-30)
    attach(linear, optimizer, penalty, apply="proximal")
    linear(torch.ones(1, 6)).backward()
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert not linear.weight[0, :4].any()
    assert torch.allclose(linear.weight[0, 4:], before[0, 4:] - 0.1)


def test_called_on_a_module_it_reads_each_layers_groups():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ConvTranspose2d(4, 2, 3), nn.LSTM(3, 5))
    want = sum(
        w.shape.numel() ** 0.5 / n**0.5 * w.transpose(0, 1).reshape(n, -1).norm(dim=1).sum()
        for w, n in [
            (net[0].weight.transpose(0, 1), 4),
            (net[1].weight, 2),
            (net[2].weight_ih_l0.view(4, 5, 3), 5),
            (net[2].weight_hh_l0.view(4, 5, 5), 5),
        ]
    )
    torch.testing.assert_close(GroupLasso(0.1)(net), 0.1 * want)
    with pytest.raises(ValueError, match="groups='filters' is for convolutions"):
        GroupLasso(0.1, groups="filters")(net)


def test_bad_arguments():
    with pytest.raises(ValueError, match="outside"):
        SparseGroupLasso(1.0, l1_ratio=1.5)
    with pytest.raises(ValueError, match="unknown"):
        GroupLasso(1.0, groups="row")
    with pytest.raises(ValueError, match="out of range"):
        GroupLasso(-1.0)


def test_metric_prox_agrees_with_a_general_solver():
    """Against scipy's bounded scalar search on ‖x‖, which we did not write."""
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(0)
    for _ in range(20):
        v, eta = rng.normal(size=7), 10 ** rng.uniform(-3, 1, size=7)
        mu = 0.3 * np.linalg.norm(v / eta)
        root = optimize.brentq(
            lambda t, v=v, e=eta, m=mu: ((v / (t + m * e)) ** 2).sum() - 1, 0, 1e3, xtol=1e-15
        )
        want = v * root / (root + mu * eta)
        penalty = GroupLasso(1.0, size_weighted=False)
        got = penalty.prox(torch.tensor(v)[None], mu, torch.tensor(eta)[None])
        np.testing.assert_allclose(got[0].numpy(), want, rtol=1e-11, atol=1e-14)


def test_sizes_are_those_of_groups_with_weights():
    """A label that no weight has, and -1, are no groups of which a share could be zero."""
    model = nn.Linear(4, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 4.0, 2.0, 9.0]]))
    penalty = GroupLasso(1.0, groups=lambda *_: torch.tensor([[0, 0, 2, -1]]))
    bound = penalty.bind(penalty.choose(select_parameters(model, "weights")))
    assert bound.sizes([model.weight]).tolist() == pytest.approx([5.0 / 2**0.5, 2.0])
