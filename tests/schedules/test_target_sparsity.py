"""A strength that finds itself, against a simulated network: sizes that answer a strength as weights do."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_reg import (
    L1,
    L2,
    L2SP,
    Coupled,
    ElasticNet,
    GroupLasso,
    KeepLargest,
    L2Norm,
    LInf,
    NuclearNorm,
    RegularizedModule,
    SparseGroupLasso,
    SpectralNorm,
    TargetSparsity,
    TotalVariation,
    Units,
    attach,
)
from lightning_reg.apply.check import check_apply
from lightning_reg.penalties.bound import SAMPLE, Bound
from lightning_reg.schedules.target_sparsity import Controller
from lightning_reg.select.parameters import select_parameters
from lightning_reg.tensors.steps import StepSize


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double()


class Weights:
    """Weights of a loss ``½ Σ c (w − w*)²``, of which a proximal step of η cuts λ: half gone at some λ."""

    def __init__(self, count: int = 400, rate: float = 0.05, scale: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(0)
        self.goal = scale * torch.rand(count, generator=generator, dtype=torch.float64) + 0.01 * scale
        self.now = self.goal.clone()
        self.rate = rate

    def step(self, strength: float) -> None:
        self.now = self.now - self.rate * (self.now - self.goal) - self.rate * strength
        self.now = self.now.clamp(min=0.0)

    @property
    def share(self) -> float:
        return float((self.now == 0).double().mean())


def run(
    target: TargetSparsity, weights: Weights, steps: int, watch: Callable[[int, float], None] | None = None
):
    control = Controller(target, lambda: weights.now)
    shares = []
    for step in range(steps):
        strength = control.strength(step, steps)
        weights.step(strength)
        control.observe()
        shares.append(weights.share)
        if watch is not None:
            watch(step, strength)
    return shares


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("initial", [1e-7, 1e-4, 1e-2])
@pytest.mark.parametrize("scale", [1e-2, 1.0])
def test_the_wanted_share_is_reached_at_until_and_held(share: float, initial: float, scale: float) -> None:
    shares = run(TargetSparsity(share, initial=initial), Weights(scale=scale), 1000)
    assert all(abs(one - share) <= 0.02 for one in shares[760:])
    assert shares[300] < share  # and not long before


def test_half_way_the_last_one_to_be_cut_has_half_its_size() -> None:
    weights, edges = Weights(), []
    rank = 200
    first = float(weights.now.kthvalue(rank).values)
    run(TargetSparsity(0.5), weights, 1000, lambda *_: edges.append(float(weights.now.kthvalue(rank).values)))
    for progress in (0.4, 0.6, 0.7):  # it arrives at 0.8 of the way, and the share by its end
        assert edges[int(700 * progress)] / first == pytest.approx(1.0 - progress / 0.8, abs=0.25)


@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_a_regression_in_batches_has_its_share_at_until(rate: float) -> None:
    """34 of 40 weights are useless: the data alone shrink them, and the strength must not sleep meanwhile."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(800, 40, generator=generator)
    goal = torch.cat([torch.linspace(0.4, 1.2, 6), torch.zeros(34)])
    targets = inputs @ goal + torch.randn(800, generator=generator)
    torch.manual_seed(0)
    layer, steps, shares = nn.Linear(40, 1, bias=False), 1600, []
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate)
    attach(layer, optimizer, L1(TargetSparsity(0.5, until=0.7)), apply="proximal", total_steps=steps)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 2 points are less than one weight of 40
        for _ in range(steps // 50):
            for chosen in torch.randperm(800).split(16):
                optimizer.zero_grad()
                (layer(inputs[chosen])[:, 0] - targets[chosen]).square().mean().div(2).backward()
                optimizer.step()
                decay.step()
                shares.append(float((layer.weight == 0).float().mean()))
    assert abs(shares[int(0.7 * steps)] - 0.5) <= 0.15
    assert abs(shares[int(0.8 * steps)] - 0.5) <= 0.1 and abs(shares[-1] - 0.5) <= 0.05


def looks(target: TargetSparsity, sizes: list[Tensor], steps: list[int], total: int) -> list[float]:
    """log λ after each look, at given steps, at given sizes."""
    shown = iter(sizes)
    control = Controller(target, lambda: next(shown))
    found = []
    for step in steps:
        control.strength(step, total)
        control.observe()
        found.append(float(control.state_dict()["target_sparsity"][0]))
    return found


def test_a_look_moves_the_strength_by_its_formula() -> None:
    """Each gain by a look that tells it from any other: where the share is exceeded, and before ``until``."""
    start = math.log(1e-4)
    target = TargetSparsity(0.5, until=1.0, gain=10.0, every=1)
    sizes = torch.arange(1.0, 101.0)
    slower = sizes - 0.9  # the 50th is at 49.1 of 50, and was to be at (1 - 0.01/0.8) · 50
    found = looks(target, [sizes, slower], [0, 1], 100)
    assert found[0] == pytest.approx(start)
    speed = (49.1 - 50.0) / 50.0 / 0.01
    error = 8.0 * (49.1 / 50.0 - (1.0 - 0.01 / 0.8)) + (0.8 * speed + 1.0)
    assert -1.0 < error < 1.0
    assert found[1] - start == pytest.approx(10.0 * 0.01 * error, rel=1e-4)
    exceeded = torch.cat([torch.zeros(52), torch.arange(1.0, 49.0)])
    found = looks(target, [sizes, exceeded], [0, 1], 100)
    assert found[1] - start == pytest.approx(-10.0 * 0.01)  # long before: as fast as it can
    found = looks(target, [sizes, exceeded], [0, 78], 100)
    assert found[1] - start == pytest.approx(10.0 * 0.78 * 10.0 * (0.5 - 0.52))
    gone = torch.zeros(100)
    assert looks(target, [sizes, gone], [0, 1], 100)[1] - start == pytest.approx(-10.0 * 0.01)


def test_where_the_data_shrink_weights_the_way_goes_on_from_there() -> None:
    """A size far below its line starts a line of its own, of which it is four fifths."""
    target = TargetSparsity(0.5, until=1.0, gain=10.0, every=1)
    sizes = torch.arange(1.0, 101.0)
    _, second, third = looks(target, [sizes, 0.1 * sizes, 0.1 * sizes], [0, 40, 44], 100)
    scale = 0.1 * 50.0 / 0.8 / 0.5  # at 40 of 100 steps the line to 80 is at its half
    error = 8.0 * (5.0 / scale - 0.45) + 1.0
    assert third - second == pytest.approx(10.0 * 0.04 * error, rel=1e-4)


def test_a_ramp_is_as_short_as_one_step() -> None:
    """At its half, which is a step of no run, the second look asks for half of the size."""
    target = TargetSparsity(0.5, until=0.01, gain=0.1, every=1)  # of 100 steps
    sizes = torch.arange(1.0, 101.0)
    before, after = looks(target, [sizes, sizes], [0, 1], 100)  # at its end: all of 0.5 is missing
    assert after - before == pytest.approx(0.1 * 1.0)
    before, after = looks(target, [sizes, 0.5 * sizes], [0, 1], 100)
    assert after - before == pytest.approx(0.1 * 1.0)


def test_weights_that_are_all_zero_from_the_first_on_are_no_error() -> None:
    gone, back = torch.zeros(10), torch.cat([torch.zeros(2), torch.ones(8)])
    before, after = looks(TargetSparsity(0.5, until=1.0, every=1), [gone, back], [0, 1], 100)
    assert math.isfinite(after) and after > before


def test_after_until_the_share_itself_is_steered() -> None:
    target = TargetSparsity(0.5, until=10, gain=10.0, every=1)
    sizes = torch.arange(1.0, 101.0)
    missed = torch.cat([torch.zeros(49), torch.arange(1.0, 52.0)])
    found = looks(target, [sizes, missed], [0, 10], 100)
    assert found[1] - found[0] == pytest.approx(10.0 * 1.0 * 10.0 * 0.01)


def test_it_looks_every_few_steps() -> None:
    looked: list[int] = []
    often, at_times = list(range(20)), [0, 3, 6, 9, 12, 15, 18]
    for every, length, expected in (
        (5, 400, [0, 5, 10, 15]),
        (1, 400, often),
        (7, 400, [0, 7, 14]),
        (7, 100, at_times),  # 20 looks between 0 and 70
        (5, 20, often),
    ):
        looked.clear()
        now = 0

        def measure() -> Tensor:
            looked.append(now)  # noqa: B023 - called in this turn of the loop
            return torch.ones(10)

        control = Controller(TargetSparsity(0.5, every=every), measure)
        for now in range(20):
            control.strength(now, length)
            control.observe()
        assert looked == expected


def test_it_begins_at_begin() -> None:
    control = Controller(TargetSparsity(0.5, begin=10, until=50), lambda: torch.ones(10))
    assert control.strength(9, 100) == 0.0
    assert control.strength(10, 100) == pytest.approx(1e-4)
    control = Controller(TargetSparsity(0.5, begin=0.25, until=0.5), lambda: torch.ones(10))
    assert control.strength(24, 100) == 0.0
    assert control.strength(25, 100) == pytest.approx(1e-4)


def test_the_sizes_of_groups_are_by_the_root_of_how_many_weights_they_have() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    penalty = GroupLasso(1.0, groups="rows")
    chosen = select_parameters(model, "weights")
    with torch.no_grad():
        for s in chosen:
            s.parameter.fill_(2.0)
    sizes = penalty.bind(chosen).sizes([s.parameter for s in chosen])
    torch.testing.assert_close(sizes, torch.full((4,), 2.0))


@pytest.mark.parametrize("extra", [1, SAMPLE - 1])
def test_many_weights_are_sampled_each_tensor_by_its_part(extra: int) -> None:
    small, large = torch.ones(3), torch.full((SAMPLE + extra - 3,), 2.0)
    sizes = Bound.sizes(L1(1.0), [small, large])
    assert (sizes == 1.0).sum() == math.ceil(3 * SAMPLE / (SAMPLE + extra))
    assert (sizes == 2.0).sum() == math.ceil(large.numel() * SAMPLE / (SAMPLE + extra))


def test_a_share_that_is_missed_at_until_is_said_once_with_its_layers() -> None:
    sizes = torch.cat([torch.zeros(30), torch.ones(70)])
    control = Controller(
        TargetSparsity(0.5, until=10, every=1),
        lambda: sizes,
        lambda: [("0.weight", sizes[:60]), ("2.weight", sizes[60:])],
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(20):
            control.strength(step, 20)
            control.observe()
    assert len(said) == 1
    assert "at a share of 0.300 after until=10 (of each layer: 0.weight 0.50, 2.weight 0.00)" in str(
        said[0].message
    )


@pytest.mark.parametrize(("zeros", "of"), [(48, 100), (52, 100), (2, 5), (3, 5)])
def test_a_share_within_two_points_or_one_group_is_not_said(zeros: int, of: int) -> None:
    sizes = torch.cat([torch.zeros(zeros), torch.ones(of - zeros)])
    control = Controller(TargetSparsity(0.5, until=10, every=1), lambda: sizes, lambda: [("0", sizes)])
    for step in range(12):
        control.strength(step, 20)
        control.observe()


# --- floors, and what is no group --------------------------------------------------------------------


def _step(model: nn.Module, penalty: GroupLasso) -> None:
    """One proximal step that would take everything."""
    bound = penalty.bind(penalty.choose(select_parameters(model, "all")))
    weights = list(model.parameters())
    bound.prox_(weights, 1e6, [StepSize.of(1.0)] * len(weights))


@pytest.mark.parametrize(
    ("share", "floor", "left"),
    [
        (0.8, 1, [1, 1]),
        (0.3, None, [3, 4]),
        (0.6, 2, [2, 2]),
        (0.5, 0.5, [3, 2]),
        (0.9, 0, [0, 1]),
        (0.3, 1, [3, 4]),
    ],
)
def test_the_strongest_units_of_a_layer_stay(share: float, floor: float | None, left: list[int]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 4, bias=False))
    before = [layer.weight.detach().clone() for layer in (model[0], model[2])]
    _step(model, GroupLasso(TargetSparsity(share, floor=floor), groups="rows"))
    for layer, was, count in zip((model[0], model[2]), before, left, strict=True):
        alive = layer.weight.any(1).nonzero().flatten().tolist()
        assert sorted(alive) == sorted(was.norm(dim=1).topk(count).indices.tolist())
        assert torch.equal(layer.weight[alive], was[alive])  # as they were, not shrunk


def test_without_a_floor_each_layer_keeps_half_of_what_an_even_cut_would_leave() -> None:
    """However much weaker one layer is: else it would be a bottleneck, and the share met all the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 20, bias=False), nn.ReLU(), nn.Linear(20, 12, bias=False))
    with torch.no_grad():
        model[2].weight.mul_(1e-3)
    for share, left in ((0.5, 3), (0.9, 1)):
        bound = GroupLasso(TargetSparsity(share), groups="rows").bind(select_parameters(model, "weights"))
        weights = [model[2].weight.detach().clone()]
        twin = bound.standing_in([model[2].weight], weights)
        twin.prox_(weights, 1e3, [StepSize.of(1.0)])
        assert int(weights[0].any(1).sum()) == left
        # what the floor has kept cannot go, and what the share has kept could
        seen = twin.pressed_sizes(weights)
        assert int(seen.isinf().sum()) == left
        assert int((seen == 0).sum()) == len(weights[0]) - left


@pytest.mark.parametrize("averaged", [True, False])
def test_a_floors_units_are_not_shrunk(averaged: bool) -> None:
    """Kept from zero alone, they would end below the ε of a normalization, and the layer with them."""
    torch.manual_seed(0)
    model = nn.Linear(4, 8, bias=False)
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    penalty = GroupLasso(TargetSparsity(0.5, initial=1e-2, gain=1e-9, floor=3), groups="rows")
    options = {} if averaged else {"dual_averaging": False}
    attach(model, optimizer, penalty, apply="proximal", total_steps=100, **options)
    model.weight.grad = torch.zeros_like(model.weight)
    for _ in range(20):
        optimizer.step()
    floor = before.norm(dim=1).topk(3).indices
    assert torch.equal(model.weight[floor], before[floor])
    others = before.norm(dim=1).topk(5, largest=False).indices
    assert (model.weight[others].norm(dim=1) < 0.97 * before[others].norm(dim=1)).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is at a share of")  # a hundredfold strength is found a little late
def test_where_a_floor_keeps_some_others_go_for_them() -> None:
    """The weak layer stops at its floor, and the strength rises until the share is met elsewhere."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20, bias=False), nn.Linear(20, 20, bias=False))
    with torch.no_grad():
        model[1].weight.mul_(0.01)
    goal = [layer.weight.detach().clone() for layer in model]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    attach(
        model, optimizer, GroupLasso(TargetSparsity(0.5), groups="rows"), apply="proximal", total_steps=400
    )
    for _ in range(400):
        optimizer.zero_grad()
        sum(0.5 * (m.weight - g).square().sum() for m, g in zip(model, goal, strict=True)).backward()
        optimizer.step()
    dead = [int((layer.weight == 0).all(1).sum()) for layer in model]
    assert dead == [5, 15]


def test_coupled_units_stay_whole() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
    groups = Coupled([{"0.weight": "rows", "0.bias": "rows", "2.weight": "columns"}])
    _step(model, GroupLasso(TargetSparsity(0.8), groups=groups))
    alive = model[0].weight.any(1)
    assert alive.sum() == 1
    assert torch.equal(alive, model[0].bias != 0) and torch.equal(alive, model[2].weight.any(0))


def _conv_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2))


@pytest.mark.parametrize(
    ("strength", "options", "says"),
    [
        (TargetSparsity(0.5), {"select": "0.weight"}, "the BatchNorm2d behind undoes their shrinking"),
        (
            TargetSparsity(0.5),
            {"select": ["4.weight", "0.bias"]},
            r"each weight of 0\.bias as a group of its own",
        ),
        (TargetSparsity(0.9, floor=100), {"select": "4.weight", "groups": "columns"}, "at most 188 of 288"),
        (TargetSparsity(0.1, floor=300), {"select": "4.weight", "groups": "columns"}, "at most 0 of 288"),
        (TargetSparsity(0.9, floor=0.5), {"select": "4.weight", "groups": "columns"}, "at most 144 of 288"),
    ],
)
def test_what_a_share_cannot_be_is_refused_before_training(strength: Any, options: Any, says: str) -> None:
    model = _conv_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=says):
        attach(model, optimizer, GroupLasso(strength, **options), apply="proximal", total_steps=10)


@pytest.mark.parametrize(
    "penalty",
    [
        GroupLasso(0.1, "0.weight"),  # of a strength that is given a warning is said in training
        GroupLasso(TargetSparsity(0.5), "0.weight", groups="tensor"),
        GroupLasso(TargetSparsity(0.5), "1.weight"),  # network slimming
        GroupLasso(TargetSparsity(0.5), "4.weight", groups="columns"),
        GroupLasso(
            TargetSparsity(0.5),
            groups=Coupled([{"0.weight": "rows", "1.weight": "rows", "1.bias": "rows"}]),
        ),
    ],
)
def test_what_is_right_is_not_refused(penalty: GroupLasso) -> None:
    model = _conv_net()
    penalty.bind(select_parameters(model, penalty.select))


@pytest.mark.parametrize("kind", [GroupLasso, SparseGroupLasso, LInf])
def test_filters_without_their_norm_are_refused_or_warned_of(kind: type[GroupLasso]) -> None:
    """Whatever the norm is called and wherever it is defined."""
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 2)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    says = r"filters of 0\.weight alone: the BatchNorm2d behind undoes .* use groups='units'"
    steered, given = kind(TargetSparsity(0.5), groups="rows"), kind(0.1, groups="rows")
    with pytest.raises(ValueError, match=says):
        attach(model, optimizer, steered, apply="proximal", total_steps=10)
    with pytest.warns(UserWarning, match=says):
        attach(model, optimizer, given, apply="proximal").remove()
    attach(model, optimizer, given, apply="gradient").remove()  # no zeros are asked for
    for groups in (
        Units(torch.zeros(2, 1, 8, 8)),
        Coupled([{"0.weight": "rows", "2.weight": "rows", "2.bias": "rows"}]),
    ):
        attach(model, optimizer, kind(0.1, groups=groups), apply="proximal").remove()
    model[2] = nn.BatchNorm2d(8, affine=False)
    with pytest.raises(ValueError, match=r"give it a scale \(affine=True\)"):
        units = kind(TargetSparsity(0.5), groups=Units(torch.zeros(2, 1, 8, 8)))
        attach(model, optimizer, units, apply="proximal", total_steps=10)


def test_a_controller_goes_on_from_its_state():
    def train(steps, model, optimizer, handle, seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            optimizer.zero_grad()
            x = torch.randn(8, 3, dtype=torch.float64, generator=generator)
            nn.functional.mse_loss(model(x), x[:, :2]).backward()
            optimizer.step()

    def make():
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        penalty = L1(TargetSparsity(0.5, every=3, until=200))
        return model, optimizer, attach(model, optimizer, penalty, apply="proximal")

    whole = make()
    train(40, *whole, 1)
    half = make()
    train(40, *half, 1)
    other = make()
    other[0].load_state_dict(half[0].state_dict())
    other[1].load_state_dict(half[1].state_dict())
    other[2].load_state_dict(half[2].state_dict())
    train(40, *whole, 2)
    train(40, *other, 2)
    for a, b in zip(whole[0].parameters(), other[0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_target_needs_zeros_and_a_run():
    penalty = L1(TargetSparsity(0.5))
    for apply in ("gradient", "loss", "decoupled"):
        with pytest.raises(ValueError, match="steers by exact zeros"):
            check_apply(penalty, apply)
    for without in (L2, partial(ElasticNet, l1_ratio=0.0), L2SP, TotalVariation, NuclearNorm, SpectralNorm):
        with pytest.raises(ValueError, match=r"steers by exact zeros, and \w+ makes none; use L1"):
            check_apply(without(TargetSparsity(0.5)), "proximal")
    with pytest.raises(ValueError, match="found in training"):
        penalty(net())
    with pytest.raises(ValueError, match="steers by exact zeros"):
        RegularizedModule([penalty])
    model = net()
    with pytest.raises(ValueError, match="total_steps"):
        attach(model, torch.optim.SGD(model.parameters(), lr=0.1), penalty, apply="proximal")
    for bad in ({"share": 1.0}, {"share": 0.5, "initial": 0.0}, {"share": 0.5, "begin": 0.8, "until": 0.5}):
        with pytest.raises(ValueError, match="TargetSparsity"):
            TargetSparsity(**bad)


@pytest.mark.parametrize(("floor", "left"), [(1, 1), (3, 3), (0.2, 3), (0, 0)])
@pytest.mark.parametrize("averaged", [True, False])
def test_no_tensor_loses_all_of_its_weights(floor: float, left: int, averaged: bool) -> None:
    """The largest stay as they were, whether the share is met or not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 4, bias=False))
    before = model[0].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    strength = TargetSparsity(0.3, initial=1e3, floor=floor)
    penalty = L1(strength, select="*.weight", factors={"2.weight": 0.0})
    attach(model, optimizer, penalty, apply="proximal", total_steps=10, dual_averaging=averaged)
    (0.0 * model(torch.zeros(1, 3)).sum()).backward()
    optimizer.step()
    alive = model[0].weight.flatten().nonzero().flatten().tolist()
    assert sorted(alive) == sorted(before.flatten().abs().topk(left).indices.tolist())
    assert torch.equal(model[0].weight.flatten()[alive], before.flatten()[alive])
    assert model[2].weight.all()


def test_a_share_of_weights_that_the_floor_forbids_is_refused() -> None:
    model = nn.Linear(3, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(ValueError, match=r"with floor=0\.5 at most 7 of 15 weights may be zero"):
        attach(model, optimizer, L1(TargetSparsity(0.9, floor=0.5)), apply="proximal", total_steps=10)


def test_a_share_that_factors_of_0_forbid_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    free = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0])
    for penalty, most in (
        (L1(TargetSparsity(0.5), factors={"2.weight": 0.0}), "and 20 factors of 0 at most 14 of 35 weights"),
        (L1(TargetSparsity(0.9), factors={"0.weight": free[:, None]}), "at most 25 of 35 weights"),
        (GroupLasso(TargetSparsity(0.7), factors={"0.weight": free}), "at most 5 of 9 groups"),
    ):
        with pytest.raises(ValueError, match=most):
            attach(model, optimizer, penalty, apply="proximal", total_steps=10)


def test_whole_layers_go_only_where_that_is_allowed() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    proximal: dict[str, Any] = {"apply": "proximal", "total_steps": 10}
    none = r"at most 0 of 2 groups may be zero.*at 0 whole layers may die"
    with pytest.raises(ValueError, match=none):
        attach(model, optimizer, GroupLasso(TargetSparsity(0.5), groups="tensor"), **proximal)
    for scope in ("all", "tensor"):
        with pytest.raises(ValueError, match=none):
            attach(
                model, optimizer, KeepLargest(0.5, of="groups", groups="tensor", scope=scope), total_steps=10
            )
    with pytest.raises(ValueError, match=r"L2Norm.*allow it by floor=0"):
        L2Norm(TargetSparsity(0.5))
    allowed = TargetSparsity(0.5, floor=0)
    for penalty in (L2Norm(allowed), GroupLasso(allowed, groups="tensor")):
        attach(model, optimizer, penalty, **proximal)


@pytest.mark.parametrize("share", [-0.5, 0.0, 1.0, 1.5])
def test_a_share_of_nothing_or_of_all_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        TargetSparsity(share)


@pytest.mark.parametrize(
    "how",
    [{"initial": 0.0}, {"initial": -1.0}, {"initial": math.inf}, {"gain": 0.0}, {"gain": -1.0}, {"every": 0}],
)
def test_numbers_of_the_controller_are_above_zero(how: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give numbers above 0"):
        TargetSparsity(0.5, **how)


@pytest.mark.parametrize("floor", [-1, -0.5, 1.0, 1.5])
def test_a_floor_is_a_number_of_groups_or_a_share(floor: float) -> None:
    with pytest.raises(ValueError, match=r"is out of range; give a number of groups, 0 or more"):
        TargetSparsity(0.5, floor=floor)


def test_the_strength_stays_within_eighty_powers_of_e() -> None:
    sizes, gone = torch.arange(1.0, 101.0), torch.zeros(100)
    hard = TargetSparsity(0.5, until=10, gain=1e4, every=1)
    assert looks(hard, [sizes, sizes], [0, 10], 100)[1] == 80.0
    assert looks(hard, [sizes, gone], [0, 10], 100)[1] == -80.0


def test_twelve_layers_at_most_are_named() -> None:
    sizes = torch.ones(26)
    layers = [(f"{i}.weight", sizes[2 * i : 2 * i + 2]) for i in range(13)]
    control = Controller(TargetSparsity(0.5, until=10, every=1), lambda: sizes, lambda: layers)
    with pytest.warns(UserWarning, match=r"11\.weight 0\.00\)"):
        for step in range(20):
            control.strength(step, 20)
            control.observe()


@pytest.mark.filterwarnings("ignore:.* after until=:UserWarning")  # 2 points
@pytest.mark.parametrize("steps", [32, 64])
@pytest.mark.parametrize(
    "make", [partial(torch.optim.Adam, lr=1e-2), partial(torch.optim.SGD, lr=0.05, momentum=0.9)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_of_a_few_steps_does_not_swing(make: Any, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    x = torch.randn(256, 20, generator=generator)
    y = x[:, :6].sum(1, keepdim=True) + 0.1 * torch.randn(256, 1, generator=generator)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = make(model.parameters())
    attach(model, optimizer, L1(TargetSparsity(0.5, until=0.7)), apply="proximal", total_steps=steps)
    shares = []
    for _ in range(steps):
        some = torch.randint(256, (32,), generator=generator)
        optimizer.zero_grad()
        (model(x[some]) - y[some]).square().mean().backward()
        optimizer.step()
        weights = torch.cat([model[i].weight.detach().flatten() for i in (0, 2)])
        shares.append(float((weights == 0).float().mean()))
    assert shares[-1] == pytest.approx(0.5, abs=0.06)
    assert max(shares[int(0.8 * steps) :]) - min(shares[int(0.8 * steps) :]) <= 0.2
