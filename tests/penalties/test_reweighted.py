"""Factors that follow the weights: against a run in two parts, and a lasso of rescaled columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn import linear_model
from torch import Tensor, nn

from lightning_reg import L1, GroupLasso, Reweighted, attach


def _problem() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 8, dtype=torch.float64, generator=generator)
    y = x[:, :3] @ torch.tensor([1.0, -2.0, 0.3], dtype=torch.float64)
    return x, y + 0.3 * torch.randn(60, dtype=torch.float64, generator=generator)


def _run(model: nn.Linear, steps: int, optimizer: torch.optim.Optimizer) -> None:
    x, y = _problem()
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (model(x)[:, 0] - y).square().mean()).backward()
        optimizer.step()


def _model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(8, 1, bias=False).double()


PAIRS: list[tuple[Any, Callable[[Tensor], Tensor]]] = [
    (L1, lambda w: w.abs()),
    (lambda *a, **k: GroupLasso(*a, groups="columns", **k), lambda w: w[0].abs()),
    (
        lambda *a, **k: GroupLasso(*a, groups=lambda *_: torch.arange(8)[None] // 2, **k),
        lambda w: w.view(4, 2).square().mean(1).sqrt(),
    ),
]


@pytest.mark.parametrize(("penalty", "size"), PAIRS, ids=["L1", "columns", "pairs"])
@pytest.mark.parametrize("times", [(0,), (5,), (3, 6)], ids=str)
def test_it_is_a_run_in_parts_with_factors_of_the_weights_between(
    penalty: Any, size: Any, times: tuple[int, ...]
) -> None:
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    attach(model, optimizer, penalty(0.3, factors=Reweighted(0.2, at=times)))
    _run(model, 10, optimizer)

    other = _model()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.5)
    handle = attach(other, optimizer, penalty(0.3))
    for begin, end in zip((0, *times), (*times, 10), strict=True):
        if begin or times[0] == 0:
            handle.remove()
            factors = 0.2 / (size(other.weight.detach()) + 0.2)
            handle = attach(other, optimizer, penalty(0.3, factors=factors))
        _run(other, end - begin, optimizer)
    torch.testing.assert_close(model.weight, other.weight, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("averaged", [True, False])
def test_under_adam_it_ends_at_the_lasso_of_rescaled_columns(averaged: bool) -> None:
    x, y = _problem()
    model = _model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.5, 0.9))
    penalty = L1(0.1, factors=Reweighted(0.1, at=[100]))
    handle = attach(model, optimizer, penalty, apply="proximal", dual_averaging=averaged)
    _run(model, 100, optimizer)
    assert "penalty" not in handle.state_dict()
    for rate in 0.1 * 0.97 ** torch.arange(300.0):
        optimizer.param_groups[0]["lr"] = float(rate)
        _run(model, 1, optimizer)
    factors = handle.state_dict()["penalty"]["weight factors"][0]
    assert 0.02 < float(factors.min()) < 0.2 and float(factors.max()) == 1.0
    lasso = linear_model.Lasso(alpha=0.1, fit_intercept=False, tol=1e-14, max_iter=100_000)
    wanted = torch.tensor(lasso.fit((x / factors).numpy(), y.numpy()).coef_) / factors
    torch.testing.assert_close(model.weight.detach()[0], wanted, rtol=0, atol=1e-6)
    assert torch.equal(model.weight[0] == 0, wanted == 0) and 0 < int((wanted == 0).sum()) < 8


@pytest.mark.parametrize("penalty", [L1, GroupLasso])
def test_the_factors_go_on_from_a_checkpoint(penalty: Any) -> None:
    whole = _model()
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1)
    handle = attach(whole, optimizer, penalty(0.3, factors=Reweighted(0.2, at=(4,))))
    _run(whole, 6, optimizer)
    state, weight = handle.state_dict(), whole.weight.detach().clone()
    _run(whole, 4, optimizer)

    resumed = _model()
    with torch.no_grad():
        resumed.weight.copy_(weight)
    optimizer = torch.optim.SGD(resumed.parameters(), lr=0.1)
    attach(resumed, optimizer, penalty(0.3, factors=Reweighted(0.2, at=(4,)))).load_state_dict(state)
    _run(resumed, 4, optimizer)
    assert torch.equal(whole.weight, resumed.weight)


@pytest.mark.parametrize("at", [(), (3, 3), (5, 2), (-1,), (0.5,), 5])
def test_times_that_are_none_are_refused(at: Any) -> None:
    with pytest.raises(ValueError, match="no rising steps"):
        Reweighted(0.1, at=at)
    with pytest.raises(ValueError, match="eps=0"):
        Reweighted(0.0, at=(1,))
