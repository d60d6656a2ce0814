"""One suite over the ways in: in each mode that a host allows, every one of them gives the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer

from lightning_reg import L1, L2, GroupLasso, Linear, Penalty
from tests.hosts.ways import WAYS, Batch, Way, in_every_mode
from tests.support import network, relative

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
each_way = pytest.mark.parametrize("way", WAYS, ids=str)
each_mode = pytest.mark.parametrize(("way", "apply"), in_every_mode(), ids=str)
MATRICES = ["*0.weight", "*2.weight"]


def by_hand(penalty: Penalty, make: Any, steps: int) -> Tensor:
    """Gradient and loss: the term is in the loss that is differentiated."""
    reference = WAYS[2](None, make=make, steps=steps, loss=_with(penalty, steps))
    return reference.weights()


def _with(penalty: Penalty, steps: int) -> Any:
    done = iter(range(steps))

    def loss(net: nn.Module, batch: Batch) -> Tensor:
        term: Tensor = penalty(net, next(done), steps)
        return nn.functional.mse_loss(net(batch[0]), batch[1]) + term

    return loss


def adam(parameters: Any) -> Optimizer:
    return Adam(parameters, lr=0.02)


@pytest.mark.parametrize(
    "penalty",
    [L1(Linear(0.02, 0.2), MATRICES), GroupLasso(Linear(0.1, 0.0), MATRICES, groups="rows")],
    ids=["l1", "rows"],
)
@each_mode
def test_the_weights_are_those_of_the_loop(way: Way, apply: str, penalty: Penalty) -> None:
    got = way(penalty, apply, make=adam, steps=12).weights()
    if apply in ("gradient", "loss"):
        expected = by_hand(penalty, adam, 12)
    else:  # held by tests of their own, tests/apply
        expected = WAYS[2](penalty, apply, make=adam, steps=12).weights()
    assert relative(got, expected) < 1e-12
    assert relative(got, way(None, make=adam, steps=12).weights()) > 1e-3, "the term must matter"


@each_mode
def test_strength_0_changes_no_bit(way: Way, apply: str) -> None:
    assert torch.equal(way(L1(0.0), apply, make=adam).weights(), way(None, make=adam).weights())


@pytest.mark.parametrize("variant", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}])
@each_way
def test_l2_on_sgd_is_weight_decay(way: Way, variant: dict[str, Any]) -> None:
    ours = way(L2(0.1, "all"), make=lambda p: SGD(p, lr=0.02, **variant), steps=20)
    torchs = way(None, make=lambda p: SGD(p, lr=0.02, weight_decay=0.1, **variant), steps=20)
    assert relative(ours.weights(), torchs.weights()) < 1e-13


@pytest.mark.parametrize(
    "variant", [{"foreach": False}, {"foreach": True}, {"fused": True}, {"amsgrad": True}], ids=str
)
@each_way
def test_decoupled_l2_with_adam_is_adamw(way: Way, variant: dict[str, Any]) -> None:
    ours = way(L2(0.5, "all"), "decoupled", make=lambda p: Adam(p, lr=1e-2, **variant), steps=20)
    torchs = way(None, make=lambda p: AdamW(p, lr=1e-2, weight_decay=0.5, **variant), steps=20)
    assert relative(ours.weights(), torchs.weights()) < 1e-13


@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
@pytest.mark.parametrize("optimizer", [SGD, Adam])
@each_mode
def test_a_step_that_the_scaler_leaves_out_changes_nothing(
    way: Way, apply: str, optimizer: Any, fused: bool
) -> None:
    if not way.has_scaler:
        pytest.skip("no scaler on the CPU")
    task = way(
        L1(0.5),
        apply,
        make=lambda p: optimizer(p, lr=0.1, fused=fused),
        net=network(),
        overflows_at=2,
    )
    assert torch.equal(task.seen[2], task.seen[3])
    assert not torch.equal(task.seen[1], task.seen[2])
    assert not torch.equal(task.seen[3], task.seen[4])


# --- which tensors -----------------------------------------------------------------------------------


@each_mode
def test_frozen_weights_are_skipped_and_picked_up_when_thawed(way: Way, apply: str) -> None:
    def thaw(step: int, net: Any, optimizer: Optimizer) -> None:
        if step == 2:
            net[0].weight.requires_grad_(True)

    def run(penalty: Any) -> Any:
        net = network().double()
        net[0].weight.requires_grad_(False)
        return way(penalty, apply, net=net, before=thaw)

    penalized, plain = run(L1(0.5)), run(None)
    first = slice(0, 50)
    assert torch.equal(penalized.seen[2][first], penalized.seen[0][first])
    assert not torch.equal(penalized.weights()[first], plain.weights()[first])
    assert not torch.equal(penalized.weights()[first], penalized.seen[2][first])


@each_mode
def test_a_parameter_group_added_mid_run(way: Way, apply: str) -> None:
    def grow(step: int, net: Any, optimizer: Optimizer) -> None:
        if step == 2:
            new = nn.Linear(10, 1).to(net[0].weight)
            nn.init.ones_(new.weight)
            net.append(new)
            optimizer.add_param_group({"params": list(new.parameters()), "lr": 0.1})

    class Growing(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            first, *new = self
            return first(x) + sum(0.0 * layer(x).mean() for layer in new)

    task = way(L1(1.0), apply, net=Growing(nn.Linear(10, 1)).double(), before=grow, steps=4)
    expected = torch.full((1, 10), 0.8, dtype=torch.float64)  # two steps of 0.1
    torch.testing.assert_close(task.net[1].weight.detach(), expected)  # type: ignore[index]


@each_mode
def test_a_lazy_layer_is_penalized_once_it_has_a_shape(way: Way, apply: str) -> None:
    if not way.takes_lazy:
        pytest.skip("the host counts parameters before the first batch")

    def run(strength: float) -> Tensor:
        net = nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.LazyLinear(1)).double()
        return way(L1(strength), apply, net=net).weights()

    penalized, plain = run(10.0), run(0.0)
    assert not torch.equal(penalized, plain)
    if apply == "proximal":
        assert int((penalized == 0).sum()) == 55


@each_mode
def test_what_no_gradient_reaches_is_left_alone(way: Way, apply: str) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(10, 1).double(), nn.Linear(10, 1).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    net = Half()
    before = net.unused.weight.detach().clone()
    task = way(L1(0.1), apply, net=net, make=lambda p: SGD(p, lr=0.1, weight_decay=0.1))
    assert torch.equal(net.unused.weight, before)
    assert net.unused.weight not in task.optimizer.state  # type: ignore[union-attr]


# --- what it leaves ----------------------------------------------------------------------------------


def left(task: Any) -> dict[str, Any]:
    optimizer = task.optimizer
    return {
        "hooks of the optimizer": [
            len(optimizer._optimizer_step_pre_hooks),
            len(optimizer._optimizer_step_post_hooks),
        ],
        "hooks of parameters": [len(p._post_accumulate_grad_hooks or ()) for p in task.net.parameters()],
        "hooks of modules": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in task.net.modules()],
        "attributes": [sorted(vars(m)) for m in task.net.modules()],
        "names": list(task.net.state_dict()),
        "groups": [sorted(group) for group in optimizer.param_groups],
    }


@each_mode
def test_it_leaves_no_trace(way: Way, apply: str) -> None:
    assert left(way(L1(0.1), apply, make=adam)) == left(way(None, make=adam))


@each_mode
def test_no_autograd_graph_is_made(way: Way, apply: str) -> None:
    def check(step: int, net: nn.Module, optimizer: Optimizer) -> None:
        for parameter in net.parameters():
            assert parameter.is_leaf and parameter.requires_grad
            assert parameter.grad is None or not parameter.grad.requires_grad

    way(L1(0.5), apply, before=check)


@each_mode
def test_lbfgs_is_refused_but_in_the_loss(way: Way, apply: str) -> None:
    if apply == "loss":
        way(L1(0.1), apply, make=LBFGS)
        return
    advice = (
        "use apply='loss'" if "loss" in way.modes else "add penalty\\(model\\) to the loss in your closure"
    )
    with pytest.raises(ValueError, match=f"LBFGS.*{advice}"):
        way(L1(0.1), apply, make=LBFGS)
