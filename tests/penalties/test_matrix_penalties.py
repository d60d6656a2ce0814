"""Hoyer, nuclear and spectral norm, orthogonality, L2-SP: formulas by autograd, state across rebinding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_reg import (
    L2,
    L2SP,
    Hoyer,
    HoyerSquare,
    LInf,
    NuclearNorm,
    Orthogonality,
    SpectralNorm,
    attach,
)
from lightning_reg.apply import Term
from lightning_reg.select.parameters import select_parameters

PENALTIES = {
    "hoyer": Hoyer(1.0),
    "hoyer_square": HoyerSquare(1.0),
    "nuclear": NuclearNorm(1.0),
    "spectral": SpectralNorm(1.0),
    "soft": Orthogonality(1.0),
    "double": Orthogonality(1.0, form="double"),
    "srip": Orthogonality(1.0, form="srip"),
}
WITH_PROX = ["nuclear", "spectral"]


def _weight(seed, shape=(4, 3)):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("shape", [(4, 3), (3, 5), (3, 2, 2, 2), (4,)])
def test_gradient_is_autograds(name, shape):
    weight = _weight(1, shape)
    leaf = weight.clone().requires_grad_()
    (want,) = torch.autograd.grad(PENALTIES[name].value(leaf, 0.7), leaf)
    torch.testing.assert_close(PENALTIES[name].gradient(weight, 0.7), want, rtol=1e-10, atol=1e-12)


def test_values_are_the_formulas_written_out():
    weight = _weight(2)
    eye3, eye4 = torch.eye(3, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    inner, outer = weight.T @ weight - eye3, weight @ weight.T - eye4
    ratio = weight.abs().sum() / weight.square().sum().sqrt()
    want = {
        "hoyer": ratio,
        "hoyer_square": ratio**2,
        "nuclear": torch.linalg.matrix_norm(weight, "nuc"),
        "spectral": torch.linalg.matrix_norm(weight, 2),
        "soft": inner.square().sum(),
        "double": inner.square().sum() + outer.square().sum(),
        "srip": torch.linalg.matrix_norm(inner, 2),
    }
    for name, penalty in PENALTIES.items():
        torch.testing.assert_close(penalty.value(weight, 2.0), 2.0 * want[name])


@pytest.mark.parametrize("name", WITH_PROX)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), strength=st.floats(0.01, 3.0), step=st.floats(0.1, 2.0))
def test_prox_beats_every_other_point_and_is_firmly_non_expansive(name, seed, strength, step):
    penalty, weight, other = PENALTIES[name], _weight(seed), _weight(seed + 1)

    def objective(x):
        return (x - weight).square().sum() / (2 * step) + penalty.value(x, strength)

    x, y = penalty.prox(weight, strength, step), penalty.prox(other, strength, step)
    best = objective(x)
    for k, scale in enumerate((1e-6, 1e-3, 0.1, 1.0)):
        assert best <= objective(x + scale * _weight(seed + k)) * (1 + 1e-12)
    assert best <= objective(weight) * (1 + 1e-12) and best <= objective(0 * weight) * (1 + 1e-12)
    assert (x - y).square().sum() <= ((x - y) * (weight - other)).sum() * (1 + 1e-10)


def test_prox_of_a_diagonal_is_that_of_its_entries():
    entries = torch.tensor([3.0, -1.0, 0.4], dtype=torch.float64)
    after = NuclearNorm(1.0).prox(entries.diag(), 0.5, 1.0)
    torch.testing.assert_close(after, torch.tensor([2.5, -0.5, 0.0], dtype=torch.float64).diag())
    after = SpectralNorm(1.0).prox(entries.diag(), 2.5, 1.0)
    torch.testing.assert_close(after.diag(), LInf(1.0).prox(entries, 2.5, 1.0))


@pytest.mark.parametrize("name", PENALTIES)
def test_edges(name):
    penalty = PENALTIES[name]
    zero = torch.zeros(4, 3, dtype=torch.float64)
    assert penalty.value(zero, 1.0).isfinite() and not penalty.gradient(zero, 1.0).isnan().any()
    if name not in ("soft", "double", "srip"):
        assert float(penalty.value(zero, 1.0)) == 0.0 and not penalty.gradient(zero, 1.0).any()
    if name in ("hoyer", "hoyer_square"):
        leaf = zero.clone().requires_grad_()
        assert not torch.autograd.grad(penalty.value(leaf, 1.0), leaf)[0].isnan().any()
    for shape in [(), (1,), (0,), (0, 3), (3, 0)]:
        some = torch.full(shape, 2.0, dtype=torch.float64)
        assert penalty.value(some, 1.0).isfinite() and penalty.gradient(some, 1.0).shape == shape
        if name in WITH_PROX:
            assert penalty.prox(some, 1.0, 1.0).shape == shape
    if name in WITH_PROX:
        weight = _weight(3)
        assert torch.equal(penalty.prox(weight, 0.0, 1.0), weight)
        assert penalty.prox(weight, 1e30, 1.0).abs().max() == 0.0
    half = torch.full((4, 30_000), 3.0, dtype=torch.float16)
    assert penalty.value(half, 1.0).isfinite() and penalty.value(half, 1.0).dtype == torch.float32


def test_nuclear_norm_lowers_ranks_under_sgd_and_is_refused_under_adam():
    torch.manual_seed(0)
    model = nn.Linear(6, 6, bias=False)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, sgd, NuclearNorm(0.3), apply="proximal")
    x = torch.randn(100, 6)
    y = x @ torch.outer(torch.randn(6), torch.randn(6))
    for _ in range(200):
        sgd.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        sgd.step()
    assert torch.linalg.matrix_rank(model.weight) == 1
    with pytest.raises(ValueError, match="use SGD"):
        attach(model, torch.optim.Adam(model.parameters()), NuclearNorm(0.3), apply="proximal")


@pytest.mark.parametrize("penalty", [SpectralNorm(1.0), Orthogonality(1.0, form="srip")])
def test_power_iteration_finds_the_exact_value_and_gradient(penalty):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8, bias=False), nn.Conv2d(2, 3, 3, bias=False)).double()
    term = Term(penalty, model)
    weights = [s.parameter for s in term.selected]
    for _ in range(300):
        gradients = [term.bound.gradient(w, 1.0) for w in weights]
    exact = sum(penalty.value(w.detach(), 1.0) for w in weights)
    torch.testing.assert_close(term.value(1.0).detach(), exact, rtol=1e-10, atol=0)
    for weight, gradient in zip(weights, gradients, strict=True):
        torch.testing.assert_close(gradient, penalty.gradient(weight.detach(), 1.0), rtol=1e-8, atol=1e-8)
    by_autograd = torch.autograd.grad(term.value(1.0), weights)
    for a, b in zip(by_autograd, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_power_iterations_go_on_from_their_state_and_a_log_does_not_move_them():
    torch.manual_seed(0)
    model = nn.Linear(30, 20, bias=False)
    first, second = Term(SpectralNorm(1.0), model), Term(SpectralNorm(1.0), model)
    for _ in range(3):
        first.bound.gradient(model.weight, 1.0)
    second.bound.load_state_dict(first.bound.state_dict())
    with torch.no_grad():
        first.value(1.0)
    assert torch.equal(first.bound.gradient(model.weight, 1.0), second.bound.gradient(model.weight, 1.0))
    assert not Term(Orthogonality(1.0), model).bound.state_dict()


def test_spectral_norm_bounds_the_largest_singular_value():
    torch.manual_seed(0)
    model = nn.Linear(10, 10, bias=False)
    before = torch.linalg.matrix_norm(model.weight, 2).item()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    attach(model, optimizer, SpectralNorm(1.0))
    for _ in range(40):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
    after = torch.linalg.matrix_norm(model.weight, 2).item()
    assert after < 0.6 * before


def test_l2_sp_draws_to_the_start_and_new_layers_to_zero():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)).double()
    start = {k: v.clone() for k, v in model.state_dict().items()}
    penalty = L2SP(1.0, new="1.*", new_ratio=0.5)
    term = Term(penalty, model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3)
    want = 0.5 * (0.3**2) * 9 + 0.25 * model[1].weight.square().sum()
    torch.testing.assert_close(term.value(1.0), want)
    (a, b) = torch.autograd.grad(term.value(2.0), [model[0].weight, model[1].weight])
    torch.testing.assert_close(term.bound.gradient(model[0].weight, 2.0), a)
    torch.testing.assert_close(term.bound.gradient(model[1].weight, 2.0), b)
    given_start = L2SP(1.0, reference={"0.weight": start["0.weight"]}, new_ratio=0.5)
    torch.testing.assert_close(given_start(model), want)
    other = Term(penalty, model)
    assert other.value(1.0) < want
    other.bound.load_state_dict(term.bound.state_dict())
    torch.testing.assert_close(other.value(1.0), want)


@pytest.mark.parametrize("metric", ["sgd", "adam"])
def test_l2_sp_prox_is_that_of_l2_around_the_start(metric):
    torch.manual_seed(0)
    model, shifted = (nn.Linear(3, 2, bias=False).double() for _ in range(2))
    start = model.weight.detach().clone()
    shifted.weight.data.zero_()
    for net, penalty in ((model, L2SP(0.5)), (shifted, L2(0.5))):
        make = torch.optim.SGD if metric == "sgd" else torch.optim.Adam
        optimizer = make(net.parameters(), lr=0.1)
        attach(net, optimizer, penalty, apply="proximal")
        for _ in range(5):
            net.weight.grad = torch.arange(6.0, dtype=torch.float64).view(2, 3)
            optimizer.step()
    torch.testing.assert_close(model.weight - start, shifted.weight.detach() * 1.0)


def test_l2_sp_says_what_it_lacks():
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="does not know where training started"):
        L2SP(1.0)(model)
    with pytest.raises(ValueError, match="holds none of weight"):
        L2SP(1.0, reference={"other": torch.zeros(2)})(model)
    with pytest.raises(ValueError, match="new_ratio"):
        L2SP(1.0, new_ratio=-1)
    with pytest.raises(ValueError, match="form='hard'"):
        Orthogonality(1.0, form="hard")
    with pytest.raises(ValueError, match="iterations=0"):
        SpectralNorm(1.0, iterations=0)
    assert select_parameters(model, "weights")


@pytest.mark.parametrize("penalty", [NuclearNorm(1.0), SpectralNorm(1.0)])
def test_a_weight_that_is_not_finite_is_said_in_a_sentence(penalty) -> None:
    weight = torch.full((3, 4), float("nan"))
    with pytest.raises(torch.linalg.LinAlgError, match=r"shape \(3, 4\) holds NaN or infinity"):
        penalty.prox(weight, 1.0, 0.1)


@pytest.mark.parametrize("shape", [(3, 6), (6, 3)])
def test_power_iteration_goes_on_where_the_matrix_is_orthogonal(shape) -> None:
    penalty = Orthogonality(1.0, form="srip")
    vector = torch.nn.functional.normalize(torch.ones(3), dim=0)
    matrix = torch.eye(*shape)  # nothing deviates
    assert torch.equal(penalty.iterate(matrix, vector), vector)
    assert float(penalty.value_at(matrix, vector, 1.0)) == 0.0
    matrix[0, 0] = 2.0
    assert float(penalty.iterate(matrix, vector).norm()) == pytest.approx(1.0)
