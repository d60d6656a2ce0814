"""torch.compile of the LightningModule: no graph, break or recompilation more than without a penalty."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from lightning_reg import L1, Cosine, GroupLasso, Penalty
from lightning_reg.callbacks import PenaltyCallback
from tests.support import Net, fit, weights
from tests.turns import everyday

PENALTIES = [L1(Cosine(0.0, 0.05), "all"), GroupLasso(Cosine(0.0, 0.02), groups="columns")]


class Called(Net):
    """Through ``__call__``, which ``module.compile()`` compiles."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self(batch[0]), batch[1])


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@cache
def run(how: str, *made: tuple[Penalty, Any]) -> tuple[Tensor, dict[str, int]]:
    """Train, and count the graphs and the breaks between them; a recompilation makes another graph."""
    torch._dynamo.reset()
    counters.clear()
    callbacks = []
    if "after" not in how:
        callbacks = [PenaltyCallback(penalty, apply) for penalty, apply in made]
    module = Called(lambda parameters: torch.optim.Adam(parameters, lr=1e-2))
    counter = CompileCounter()
    compiled: Any = module
    if "torch.compile" in how:
        compiled = torch.compile(module, backend=counter)
    elif "module.compile" in how:
        module.compile(backend=counter)
    if "after" in how:
        callbacks = [PenaltyCallback(penalty, apply) for penalty, apply in made]
    fit(compiled, *callbacks, steps=16, max_epochs=2, log_every_n_steps=1)
    return weights(module), {
        "graphs": counter.frame_count,
        "operations": counter.op_count,
        "breaks": sum(counters["graph_break"].values()),
        "frames": counters["frames"]["total"],
        "unique graphs": counters["stats"]["unique_graphs"],
    }


@pytest.mark.parametrize(
    ("how", "apply"),
    everyday(
        2,
        [
            ("torch.compile", "proximal"),
            ("module.compile", "gradient"),
            ("torch.compile", "gradient"),
            ("torch.compile", "loss"),
            ("torch.compile", "decoupled"),
            ("module.compile", "loss"),
            ("module.compile", "decoupled"),
            ("module.compile", "proximal"),
        ],
        parts=3,
    ),
)
def test_a_penalty_adds_nothing_to_compile(how: str, apply: Any) -> None:
    made = [(penalty, apply) for penalty in PENALTIES]
    eager, _ = run("eager", *made)
    plain, expected = run(how)
    assert expected["graphs"] > 0, "else nothing was compiled"
    for order in ("before", "after"):
        result, found = run(f"{how} {order}", *made)
        assert found == expected
        assert torch.equal(result, eager)
    assert not torch.allclose(plain, eager), "the penalties must matter"


@pytest.mark.xdist_group("inductor")
@pytest.mark.slow  # the C++ compiler takes its time
@pytest.mark.parametrize("apply", ["gradient", "loss", "decoupled", "proximal"])
def test_inductor_trains_as_eager_does(apply: Any) -> None:
    callbacks = [PenaltyCallback(penalty, apply) for penalty in PENALTIES]
    eager, compiled = Called(), Called()
    fit(eager, *callbacks, steps=16, max_epochs=2)
    fit(torch.compile(compiled), *callbacks, steps=16, max_epochs=2)
    torch.testing.assert_close(weights(compiled), weights(eager))
