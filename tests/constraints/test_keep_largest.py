"""The smallest weights are cut on a cubic ramp, and then held."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from lightning_reg import L2, KeepLargest, Units, attach
from lightning_reg.apply import Term
from tests import support
from tests.support import network


def cut(module: nn.Module, constraint: KeepLargest, share: float | None = None) -> list[torch.Tensor]:
    """Project once, on the ramp; return the weights."""
    term = Term(constraint, module)
    weights = [s.parameter for s in term.selected]
    term.bound.prox_(weights, constraint.share if share is None else share, ())
    return [w.detach() for w in weights]


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    inputs, targets = support.data()[:]
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(inputs), targets).backward()
        optimizer.step()


def share_of(*tensors: torch.Tensor) -> float:
    return float(torch.cat([t.detach().flatten() for t in tensors]).eq(0).double().mean())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.62, 0.98])
@pytest.mark.parametrize("scope", ["tensor", "all"])
def test_it_cuts_what_torch_prunes(share: float, scope: Any) -> None:
    ours, theirs = network(), network()
    layers = [theirs[0], theirs[2]]
    got = cut(ours, KeepLargest(share, scope=scope))
    if scope == "all":
        prune.global_unstructured([(m, "weight") for m in layers], prune.L1Unstructured, amount=share)
    for layer, weight in zip(layers, got, strict=True):
        if scope == "tensor":
            count = min(round(share * layer.weight.numel()), layer.weight.numel() - 1)
            prune.l1_unstructured(layer, "weight", amount=count)
        assert torch.equal(weight, layer.weight)


def test_groups_are_cut_as_torch_prunes_them() -> None:
    ours, theirs = network(), network()
    (weight,) = cut(ours, KeepLargest(0.4, of="groups", select="0.weight"))
    prune.ln_structured(theirs[0], "weight", amount=0.4, n=2, dim=0)
    assert torch.equal(weight, theirs[0].weight)
    ours, theirs = network(), network()
    (weight,) = cut(ours, KeepLargest(0.5, of="groups", groups="columns", select="0.weight"))
    prune.ln_structured(theirs[0], "weight", amount=0.5, n=2, dim=1)
    assert torch.equal(weight, theirs[0].weight)


def test_groups_of_all_tensors_are_compared_by_their_mean_square() -> None:
    net = nn.Sequential(nn.Linear(16, 2, bias=False), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.3], [0.5]]).expand(2, 16))  # norms 1.2 and 2
        net[1].weight.copy_(torch.tensor([[0.4], [0.6]]).expand(2, 4))  # norms 0.8 and 1.2
    first, second = cut(net, KeepLargest(0.5, of="groups", scope="all"))
    assert [bool(row.any()) for row in (*first, *second)] == [False, True, False, True]


def test_a_weight_in_no_group_stays() -> None:
    net = nn.Linear(2, 3, bias=False)
    labels = torch.tensor([[0, 0], [-1, -1], [1, 1]])
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 1.0], [0.1, 0.1], [2.0, 2.0]]))
    (weight,) = cut(net, KeepLargest(0.5, of="groups", groups=lambda name, parameter, owner: labels))
    assert torch.equal(weight, torch.tensor([[0.0, 0.0], [0.1, 0.1], [2.0, 2.0]]))


@pytest.mark.parametrize("scope", ["tensor", "all"])
def test_of_equal_weights_the_first_are_kept(scope: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False))
    for layer in net:
        nn.init.constant_(layer.weight, -0.5)
    first, second = cut(net, KeepLargest(0.75, scope=scope))
    kept = (4, 0) if scope == "all" else (2, 2)
    for weight, count in zip((first, second), kept, strict=True):
        assert [*map(bool, weight.flatten())] == [*count * [True], *(8 - count) * [False]]
    net[0].weight.data = torch.tensor([[1.0, 2.0, -1.0, 1.0], [1.0, 3.0, 1.0, -1.0]])
    (weight,) = cut(net, KeepLargest(0.5, select="0.weight"))
    assert weight.tolist() == [[1.0, 2.0, -1.0, 0.0], [0.0, 3.0, 0.0, 0.0]]


@pytest.mark.parametrize("scope", ["tensor", "all"])
def test_at_least_one_weight_stays_and_what_is_no_number_shows(scope: Any) -> None:
    net = nn.Linear(3, 1, bias=False)
    (weight,) = cut(net, KeepLargest(0.99, scope=scope))
    assert int((weight != 0).sum()) == 1
    net.weight.data = torch.tensor([[torch.nan, 1.0, torch.nan]])
    assert bool(cut(net, KeepLargest(0.9))[0].isnan().any())


def test_the_share_follows_the_cubic_ramp() -> None:
    net = nn.Linear(10, 40, bias=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = attach(net, optimizer, KeepLargest(0.8, begin=0.2, until=0.7), total_steps=20)
    for step in range(20):
        progress = min(max((step - 4) / 10, 0.0), 1.0)
        wanted = 0.8 - 0.8 * (1 - progress) ** 3
        assert handle.strength == pytest.approx(wanted)
        optimizer.zero_grad()
        net(torch.randn(8, 10)).square().mean().backward()
        optimizer.step()
        assert share_of(net.weight) == pytest.approx(wanted, abs=0.5 / 400 + 1e-9)


def test_a_weight_comes_back_on_the_ramp_and_not_after_it() -> None:
    net = nn.Linear(2, 1, bias=False)
    net.weight.data = torch.tensor([[0.1, 1.0]])
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    attach(net, optimizer, KeepLargest(0.9, begin=0, until=4))  # one of two from the second step on
    found = []
    for gradient in ([0, 0], [0, 0], [-2, 0], [0, 0], [0, -5], [0, -5]):
        net.weight.grad = torch.tensor([gradient], dtype=torch.float32)
        optimizer.step()
        found.append([*map(bool, net.weight.detach()[0])])
    assert found == [[True, True], [False, True], *4 * [[True, False]]]


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.01),
    ],
    ids=["SGD", "AdamW"],
)
@pytest.mark.parametrize("of", ["weights", "groups"])
def test_after_the_ramp_nothing_revives_a_weight(make: Any, of: Any) -> None:
    net = network()
    optimizer = make(net.parameters())
    attach(net, optimizer, KeepLargest(0.6, of=of, select="0.weight", begin=2, until=6))
    attach(net, optimizer, L2(0.01))
    train(net, optimizer, 7)
    zeros = net[0].weight == 0
    before = net[0].weight.detach().clone()
    assert float(zeros.double().mean()) == 0.6
    train(net, optimizer, 10)
    assert torch.equal(net[0].weight == 0, zeros)
    assert bool((net[0].weight.detach() != before)[~zeros].all())


def test_two_optimizers_count_together_and_frozen_weights_do_not() -> None:
    net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    with torch.no_grad():
        net[0].weight.mul_(0.01)
        net[2].weight.mul_(0.001)
    net[2].weight.requires_grad_(False)
    optimizers = [torch.optim.SGD(net[i].parameters(), lr=1e-4) for i in (0, 1)]
    for optimizer in optimizers:
        attach(net, optimizer, KeepLargest(0.5, scope="all", begin=0, until=1))
    for _ in range(4):
        net(torch.randn(4, 8)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
    assert share_of(net[0].weight) == 1.0 and share_of(net[1].weight, net[2].weight) == 0.0


def test_in_a_trainer_and_resumed_from_a_checkpoint(tmp_path: Any) -> None:
    from lightning.pytorch import Trainer

    from lightning_reg.callbacks import KeepLargest as Callback

    def fit(epochs: int, **how: Any) -> tuple[support.Net, Trainer]:
        net = support.Net(lambda p: torch.optim.Adam(p, 0.01))
        callback = Callback(0.7, scope="all", begin=4, until=12)
        trainer = Trainer(max_epochs=epochs, callbacks=[callback], **support.QUIET)
        trainer.fit(net, support.batches(), **how)
        return net, trainer

    whole, _ = fit(4)
    assert share_of(whole.net[0].weight, whole.net[2].weight) == pytest.approx(0.7, abs=0.01)
    for epochs in (1, 2):  # on the ramp, and after it
        _, trainer = fit(epochs)
        trainer.save_checkpoint(tmp_path / "half.ckpt")
        resumed, _ = fit(4, ckpt_path=tmp_path / "half.ckpt")
        for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(a, b)


def test_on_one_process_of_a_mesh_it_is_the_same(tmp_path: Any) -> None:
    import torch.distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for of in ("weights", "groups"):
            plain, sharded = network(), network()
            for layer in (sharded[0], sharded[2]):
                layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Shard(0)]))
            constraint = KeepLargest(0.4, of=of, scope="all")
            wanted, got = cut(plain, constraint), cut(sharded, constraint)
            assert share_of(*wanted) > 0
            for a, b in zip(wanted, got, strict=True):
                assert torch.equal(a, b.full_tensor())
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    "how",
    [
        {"share": 1.0},
        {"share": 0.0},
        {"of": "rows"},
        {"scope": "layer"},
        {"begin": 1.5},
        {"until": -1},
        {"begin": 0.5, "until": 0.5},
        {"groups": "row"},
    ],
    ids=str,
)
def test_what_it_cannot_do_is_refused(how: Any) -> None:
    with pytest.raises(ValueError, match=r"KeepLargest|groups="):
        KeepLargest(**{"share": 0.5, **how})


def test_a_run_of_unknown_length_needs_steps() -> None:
    net = network()
    with pytest.raises(ValueError, match="total_steps"):
        attach(net, torch.optim.SGD(net.parameters(), lr=0.1), KeepLargest(0.5))


def test_units_are_cut_whole_in_each_layer_or_over_all() -> None:
    """The size of a unit is the root mean square of all that belongs to it."""
    torch.manual_seed(0)
    for scope in ("tensor", "all"):
        net = nn.Sequential(
            nn.Conv2d(1, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 4, 3),
            nn.Flatten(),
            nn.Linear(64, 2),
        )
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.normal_()
        sets = [[*net[0].parameters(), *net[1].parameters()], list(net[3].parameters())]
        sizes = [
            torch.cat([p.detach().flatten(1) if p.dim() > 1 else p.detach()[:, None] for p in one], 1)
            .square()
            .mean(1)
            for one in sets
        ]
        compared = sizes if scope == "tensor" else [torch.cat(sizes)]
        edges = [one.sort().values[len(one) // 2] for one in compared]
        cut(net, KeepLargest(0.5, of="groups", scope=scope, groups=Units(torch.zeros(2, 1, 8, 8))))
        for one, size, edge in zip(sets, sizes, edges * 2, strict=False):
            for parameter in one:
                alive = parameter.detach().flatten(1).any(1) if parameter.dim() > 1 else parameter != 0
                assert torch.equal(alive, size >= edge)
        assert net[5].bias.all()


def test_groups_that_are_no_units_are_refused_or_warned_of() -> None:
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(216, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"0\.weight alone: the BatchNorm2d behind makes a constant"):
        attach(net, optimizer, KeepLargest(0.5, of="groups", until=1), total_steps=10)
    with pytest.raises(ValueError, match=r"each weight of 0\.bias as a group of its own"):
        attach(net, optimizer, KeepLargest(0.5, of="groups", until=1, select="0.bias"), total_steps=10)


def test_no_layer_dies_whole_however_small_its_groups_are() -> None:
    net = network()
    with torch.no_grad():
        net[0].weight.mul_(1e-6)
    first, second = cut(net, KeepLargest(0.6, of="groups", scope="all"))
    assert (first.norm(dim=1) > 0).sum() == 1
    assert second.any()


@pytest.mark.parametrize(
    ("of", "floor", "left"),
    [("groups", None, 2), ("groups", 3, 3), ("groups", 0.5, 5), ("weights", 7, 7), ("weights", None, 0)],
)
def test_a_floor_keeps_the_largest_of_a_layer(of, floor, left):
    """Where groups have none of their own, it is half of an even cut: 0.5 / 2 of 10."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 10, bias=False), nn.Linear(10, 40, bias=False))
    with torch.no_grad():
        net[0].weight.mul_(1e-6)
    before = net[0].weight.detach().clone()
    first, second = cut(net, KeepLargest(0.5, of=of, scope="all", floor=floor))
    zeros = [(tensor if of == "weights" else tensor.norm(dim=1)) == 0 for tensor in (first, second)]
    size = before.abs().flatten() if of == "weights" else before.norm(dim=1)
    assert torch.equal((~zeros[0]).flatten().nonzero().flatten(), size.topk(left).indices.sort().values)
    assert sum(int(zero.sum()) for zero in zeros) == sum(zero.numel() for zero in zeros) // 2


@pytest.mark.parametrize("of", ["weights", "groups"])
@pytest.mark.parametrize("scope", ["tensor", "all"])
def test_a_layer_of_one_output_stays(of, scope) -> None:
    """And a share that rounding keeps small layers from is no reason to refuse."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1 if of == "groups" else 4))
    with torch.no_grad():
        net[2].weight.fill_(3.0)
    *_, last = cut(net, KeepLargest(0.9, of=of, scope=scope))
    assert last.any()


def test_a_share_that_the_floor_forbids_is_refused() -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"with floor=0\.5 at most \d+ of \d+ groups may be zero"):
        attach(net, optimizer, KeepLargest(0.9, of="groups", floor=0.5), total_steps=10)
    with pytest.raises(ValueError, match=r"KeepLargest\(floor=1\.5\) is out of range"):
        KeepLargest(0.9, of="groups", floor=1.5)


@pytest.mark.parametrize(("begin", "until"), [(5, 3), (3, 3), (0.5, 0.2)])
def test_a_ramp_that_ends_before_it_begins_is_refused(begin, until):
    with pytest.raises(ValueError, match="until"):
        KeepLargest(0.5, begin=begin, until=until)
