"""What makes a penalty's value, gradient and proximal operator right, whatever the penalty."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import lightning_reg
from lightning_reg import L1, L2, ElasticNet, L2Norm, Penalty, attach
from tests.penalties.cases import CASES, Case
from tests.support import at_each

law = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],  # a busy machine is no failure
)
every_case = pytest.mark.parametrize("case", CASES, ids=str)
smooth_case = pytest.mark.parametrize("case", [c for c in CASES if c.smooth], ids=str)
convex_case = pytest.mark.parametrize("case", [c for c in CASES if c.convex], ids=str)
prox_case = pytest.mark.parametrize("case", [c for c in CASES if c.has_prox], ids=str)
convex_prox_case = pytest.mark.parametrize("case", [c for c in CASES if c.has_prox and c.convex], ids=str)
metric_case = pytest.mark.parametrize("case", [c for c in CASES if c.prox_in_metric], ids=str)
complex_case = pytest.mark.parametrize("case", [c for c in CASES if c.takes_complex], ids=str)

# hundredths up to 4: exact zeros (a third), ties and kinks come up often, and no square underflows
hundredths = st.integers(-600, 600)
strengths = st.integers(0, 300).map(lambda k: k / 100)


def draw_tensor(data: st.DataObject, shape: tuple[int, ...]) -> Tensor:
    size = int(np.prod(shape, dtype=int))
    numbers = data.draw(st.lists(hundredths, min_size=size, max_size=size))
    # the draw is most of a law's time, so it is of plain numbers
    return torch.tensor([k / 100 if abs(k) <= 400 else 0.0 for k in numbers], dtype=torch.float64).reshape(
        shape
    )


def draw_weight(data: st.DataObject, case: Case) -> Tensor:
    return draw_tensor(data, data.draw(st.sampled_from(case.shapes)))


def draw_step(data: st.DataObject, case: Case, weight: Tensor) -> float | Tensor:
    """One step for all the weights or, where the penalty takes it, one for each."""
    tenths = st.floats(0.01, case.max_step, allow_nan=False)
    if not (case.prox_in_metric and data.draw(st.booleans())):
        return data.draw(tenths)
    steps = data.draw(st.lists(tenths, min_size=weight.numel(), max_size=weight.numel()))
    return torch.tensor(steps, dtype=torch.float64).reshape(weight.shape)


def objective(case: Case, x: Tensor, weight: Tensor, strength: float, step: float | Tensor) -> Tensor:
    """½ Σ|x − w|²/η + Ω(x), what the prox minimises."""
    return (0.5 * (x - weight).abs().square() / step).sum() + case.penalty.value(x, strength)


def rivals(point: Tensor, weight: Tensor) -> Tensor:
    """Points that would beat a wrong prox: near it, on the way from 0 to the weight, and anywhere."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(12, *point.shape, generator=generator, dtype=torch.float64)
    if point.is_complex():
        noise = torch.complex(noise, noise.flip(0))
    near = [point + scale * noise for scale in (1e-4, 1e-2, 1.0)]
    between = torch.stack([weight * t for t in np.linspace(-0.5, 1.5, 41)])
    one_moved = []
    for index in range(min(point.numel(), 4)):
        for value in (0.0, *np.linspace(-2.0, 2.0, 9)):
            moved = point.clone()
            moved.view(-1)[index] = value
            one_moved.append(moved)
    return torch.cat([*near, between, torch.stack([*one_moved, point * 0.999, point * 1.001])])


def test_every_public_penalty_has_a_row() -> None:
    def concrete(cls: type[Penalty]) -> set[type[Penalty]]:
        below = {found for child in cls.__subclasses__() for found in concrete(child)}
        ours = cls.__module__.startswith("lightning_reg.") and not inspect.isabstract(cls)
        return below | ({cls} if ours else set())

    public = {getattr(lightning_reg, name) for name in lightning_reg.__all__ if name != "RegularizedModule"}
    penalties = {p for p in public if inspect.isclass(p) and issubclass(p, Penalty) and p is not Penalty}
    assert penalties
    without = (penalties | concrete(Penalty)) ^ {type(case.penalty) for case in CASES}
    assert not without, "give each a row in CASES, tests/penalties/cases.py"


@every_case
def test_the_table_tells_what_the_penalty_tells(case: Case) -> None:
    assert case.penalty.has_prox == case.has_prox
    assert case.penalty.prox_in_metric == case.prox_in_metric
    if not case.has_prox:
        with pytest.raises(NotImplementedError, match=type(case.penalty).__name__):
            case.penalty.prox(torch.ones(2, 2), 1.0, 1.0)


@prox_case
def test_a_penalty_tells_whether_its_operator_makes_zeros(case: Case) -> None:
    """Some, and not all at once, of three tensors at a strength; singular values are no weights."""
    generator = torch.Generator().manual_seed(0)
    shapes = [max(case.shapes, key=len)] * 3
    ones = [
        torch.randn(shape, generator=generator, dtype=torch.float64) * 3**i for i, shape in enumerate(shapes)
    ]
    shares = set()
    for strength in torch.logspace(-3, 3, 60).tolist():
        found = torch.cat([case.penalty.prox(w, strength, 0.05).flatten() for w in ones])
        shares.add(float((found == 0).double().mean()))
    some = bool(shares - {0.0, 1.0}) and case.penalty.kind != "spectrum"
    assert case.penalty.makes_zeros == some


# --- the value ---------------------------------------------------------------------------------------


@every_case
@law
@given(data=st.data())
def test_value_is_the_formula(case: Case, data: st.DataObject) -> None:
    weight, strength = draw_weight(data, case), data.draw(strengths)
    value = case.penalty.value(weight, strength)
    assert value.shape == () and value.dtype == torch.float64
    assert float(value) == pytest.approx(case.formula(weight.numpy(), strength), rel=1e-13, abs=1e-300)


@complex_case
def test_value_of_complex_weights_is_the_formula_of_their_moduli(case: Case) -> None:
    weight = torch.randn(4, 3, dtype=torch.complex128)
    value = case.penalty.value(weight, 0.7)
    assert value.dtype == torch.float64
    assert float(value) == pytest.approx(case.formula(weight.numpy(), 0.7), rel=1e-13)


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("shape", "entry"), [((1000, 100), 1.0), ((1, 10), 256.0)])
def test_value_of_16_bit_weights_is_accumulated_in_32(
    case: Case, dtype: torch.dtype, shape: tuple[int, int], entry: float
) -> None:
    weight = torch.full(shape, entry, dtype=dtype)  # 1e5 ones, and 256², overflow float16
    value = case.penalty.value(weight, 0.5)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(case.formula(weight.double().numpy(), 0.5), rel=1e-5)


@convex_case
@law
@given(data=st.data())
def test_value_is_convex(case: Case, data: st.DataObject) -> None:
    a = draw_weight(data, case)
    b, strength = draw_tensor(data, tuple(a.shape)), data.draw(strengths)
    middle = case.penalty.value((a + b) / 2, strength)
    chord = (case.penalty.value(a, strength) + case.penalty.value(b, strength)) / 2
    assert float(middle) <= float(chord) * (1 + 1e-12)


# --- the gradient ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in CASES if c.penalty.has_gradient], ids=str)
@law
@given(data=st.data())
def test_gradient_is_autograds(case: Case, data: st.DataObject) -> None:
    # at kinks too: the closed form takes the subgradient that adding the term to the loss would take
    weight, strength = draw_weight(data, case).requires_grad_(), data.draw(strengths)
    (expected,) = torch.autograd.grad(case.penalty.value(weight, strength), weight)
    gradient = case.penalty.gradient(weight.detach(), strength)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


@complex_case
def test_gradient_of_complex_weights_is_autograds(case: Case) -> None:
    weight = torch.randn(4, 3, dtype=torch.complex128)
    weight[0, 0] = 0
    weight.requires_grad_()
    (expected,) = torch.autograd.grad(case.penalty.value(weight, 0.7), weight)
    torch.testing.assert_close(case.penalty.gradient(weight.detach(), 0.7), expected, rtol=1e-12, atol=0)


@smooth_case
def test_gradient_of_a_smooth_penalty_is_its_difference_quotient(case: Case) -> None:
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: case.penalty.value(w, 0.7), (weight,))


@convex_case
@law
@given(data=st.data())
def test_gradient_supports_the_value_from_below(case: Case, data: st.DataObject) -> None:
    weight, strength = draw_weight(data, case), data.draw(strengths)
    gradient, value = case.penalty.gradient(weight, strength), case.penalty.value(weight, strength)
    others = rivals(weight, weight)
    bounds = at_each(lambda other: value + (gradient * (other - weight)).sum(), others)
    assert bool((at_each(lambda other: case.penalty.value(other, strength), others) >= bounds - 1e-10).all())


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gradient_and_prox_keep_dtype_and_shape(case: Case, dtype: torch.dtype) -> None:
    weight = torch.ones(3, 2, dtype=dtype)
    assert case.penalty.gradient(weight, 0.1).dtype == dtype
    if case.has_prox:
        point = case.penalty.prox(weight, 0.1, 0.5)
        assert (point.dtype, point.shape) == (dtype, weight.shape)


# --- the proximal operator ---------------------------------------------------------------------------


@prox_case
@law
@given(data=st.data())
def test_prox_beats_random_and_grid_points(case: Case, data: st.DataObject) -> None:
    weight, strength = draw_weight(data, case), data.draw(strengths)
    step = draw_step(data, case, weight)
    point = case.penalty.prox(weight, strength, step)
    best = float(objective(case, point, weight, strength, step))

    def more(rival: Tensor) -> Tensor:
        # of a convex penalty the objective is 1/η-strongly convex: it must rise that fast, which says at once
        # that what the prox takes away is a subgradient
        rise = (0.5 * (rival - point).square() / step).sum() if case.convex else 0.0
        return objective(case, rival, weight, strength, step) - rise

    assert float(at_each(more, rivals(point, weight)).min()) >= best * (1 - 1e-12) - 1e-12


@pytest.mark.parametrize("case", [c for c in CASES if c.has_prox and c.kinks_at_zero], ids=str)
@law
@given(data=st.data())
def test_prox_is_stationary(case: Case, data: st.DataObject) -> None:
    weight, strength = draw_weight(data, case), data.draw(strengths)
    step = draw_step(data, case, weight)
    point = case.penalty.prox(weight, strength, step).requires_grad_()
    (slope,) = torch.autograd.grad(objective(case, point, weight, strength, step), point)
    # at 0 a penalty with a kink has no gradient: the subgradient law below is for that
    where = torch.ones_like(point, dtype=torch.bool) if case.smooth else point.detach() != 0
    scale = 1.0 + float((weight.abs() / step).sum())
    assert float(slope[where].abs().sum()) <= 1e-10 * scale


@convex_prox_case
@law
@given(data=st.data())
def test_prox_is_firmly_non_expansive(case: Case, data: st.DataObject) -> None:
    a = draw_weight(data, case)
    b, strength = draw_tensor(data, tuple(a.shape)), data.draw(strengths)
    step = draw_step(data, case, a)
    moved = case.penalty.prox(a, strength, step) - case.penalty.prox(b, strength, step)
    inner = (moved * (a - b) / step).sum()
    assert float((moved.square() / step).sum()) <= float(inner) * (1 + 1e-12) + 1e-12


@prox_case
@law
@given(data=st.data())
def test_prox_at_strength_0_is_the_identity(case: Case, data: st.DataObject) -> None:
    weight = draw_weight(data, case)
    assert torch.equal(case.penalty.prox(weight, 0.0, draw_step(data, case, weight)), weight)


@pytest.mark.parametrize("case", [c for c in CASES if not c.penalty.takes_complex], ids=str)
def test_complex_weights_are_refused_where_the_formula_is_for_real_ones(case: Case) -> None:
    module = torch.nn.Linear(3, 2, dtype=torch.complex64)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    apply: Any = "gradient" if case.penalty.has_gradient else "proximal"
    for use in (lambda: case.penalty(module), lambda: attach(module, optimizer, case.penalty, apply=apply)):
        with pytest.raises(ValueError, match=r"is for real weights, and weight is complex"):
            use()


@prox_case
def test_prox_with_a_step_of_0_is_the_identity(case: Case) -> None:
    """As in the first step of a learning rate that warms up from 0; also through what optimizers tell."""
    for shape in case.shapes:
        weight = torch.randn(shape, dtype=torch.float64)
        steps = [0.0, torch.zeros(shape, dtype=torch.float64)] if case.prox_in_metric else [0.0]
        for step in steps:
            got = case.penalty.prox(weight, 0.3, step)
            torch.testing.assert_close(got, weight, rtol=1e-12, atol=0)
        if case.prox_in_metric:
            still = torch.rand(shape) < 0.5
            got = case.penalty.prox(weight, 0.3, torch.where(still, 0.0, 0.5).double())
            torch.testing.assert_close(got[still], weight[still], rtol=1e-12, atol=0)


@metric_case
@law
@given(data=st.data())
def test_prox_with_equal_steps_is_prox_with_one(case: Case, data: st.DataObject) -> None:
    weight, strength = draw_weight(data, case), data.draw(strengths)
    step = data.draw(st.floats(0.01, case.max_step))
    torch.testing.assert_close(
        case.penalty.prox(weight, strength, torch.full_like(weight, step)),
        case.penalty.prox(weight, strength, step),
        rtol=1e-13,
        atol=1e-14,
    )


@pytest.mark.parametrize("case", [c for c in CASES if c.has_prox and c.takes_complex], ids=str)
def test_prox_of_complex_weights_beats_random_points(case: Case) -> None:
    weight = torch.complex(*torch.randn(2, 4, 3, dtype=torch.float64))
    weight[0] *= 0.1  # inside the threshold
    weight[1, 0] = 0
    point = case.penalty.prox(weight, 0.7, 0.5)
    best = float(objective(case, point, weight, 0.7, 0.5))
    others = at_each(lambda rival: objective(case, rival, weight, 0.7, 0.5), rivals(point, weight))
    assert float(others.min()) >= best - 1e-12


# --- equivalences ------------------------------------------------------------------------------------


@law
@given(data=st.data())
@pytest.mark.parametrize(("l1_ratio", "equal"), [(1.0, L1(1.0)), (0.0, L2(1.0))], ids=["L1", "L2"])
def test_elastic_net_at_its_ends(l1_ratio: float, equal: Penalty, data: st.DataObject) -> None:
    net = ElasticNet(1.0, l1_ratio=l1_ratio)
    weight, strength = draw_tensor(data, (2, 3)), data.draw(strengths)
    assert torch.equal(net.value(weight, strength), equal.value(weight, strength))
    assert torch.equal(net.gradient(weight, strength), equal.gradient(weight, strength))
    assert torch.equal(net.prox(weight, strength, 0.5), equal.prox(weight, strength, 0.5))


@law
@given(data=st.data())
def test_l2_is_half_the_squared_norm(data: st.DataObject) -> None:
    weight = draw_tensor(data, (3, 2))
    norm = float(L2Norm(1.0).value(weight, 1.0))
    assert float(L2(1.0).value(weight, 0.6)) == pytest.approx(0.6 / 2 * norm**2, rel=1e-13)


def test_l2norm_is_l1_on_single_weights() -> None:
    for number in (-2.0, -0.1, 0.0, 0.3):
        weight = torch.tensor([number], dtype=torch.float64)
        torch.testing.assert_close(L2Norm(1.0).prox(weight, 0.5, 0.5), L1(1.0).prox(weight, 0.5, 0.5))
        assert torch.equal(L2Norm(1.0).gradient(weight, 0.5), L1(1.0).gradient(weight, 0.5))
