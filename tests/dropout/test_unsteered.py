"""Whatever drops without being steered is named, and numbers that only some steps use are found."""

import functools
import gc
from argparse import Namespace
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_reg import schedule_dropout


class Rates(NamedTuple):
    hidden: float = 0.5


@dataclass(frozen=True)
class Frozen:
    drop_rate: float = 0.5


class Slots:
    __slots__ = ("hidden_drop",)

    def __init__(self):
        self.hidden_drop = 0.5


class Net(nn.Module):
    """Drops as ``drop`` does, beside a dropout that is known."""

    inherited = 0.5

    def __init__(self, drop, **held):
        super().__init__()
        self.first, self.body = nn.Dropout(0.1), nn.Linear(8, 64)
        self.drop, self.steps = drop, 0
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x):
        self.steps += 1
        return self.drop(self, self.body(self.first(x)))


def train(net, rate=0.9, steps=12):
    torch.manual_seed(0)
    handle = schedule_dropout(net, rate)
    shares = []
    for _ in range(steps):
        shares.append(float((net(torch.ones(16, 8)) == 0).float().mean()))
        handle.step()
    return shares, handle.report(), handle


def plain(read):
    return lambda net, x: F.dropout(x, read(net), net.training)


def mask(read):
    return lambda net, x: x * (torch.rand_like(x) >= read(net))


def keep_some(net, x):
    kept = torch.randperm(64)[: int(64 * (1 - net.drop_rate))]
    return x * torch.zeros(64).index_fill(0, kept, 1.0)


NAMED = {
    "a tuple": (plain(lambda net: net.rates[1]), {"rates": (0.2, 0.5)}, "rates.1"),
    "a named tuple": (plain(lambda net: net.rates.hidden), {"rates": Rates()}, "rates.hidden"),
    "a proxy": (plain(lambda net: net.cfg["p"]), {"cfg": MappingProxyType({"p": 0.5})}, "cfg.p"),
    "a class": (plain(lambda net: net.inherited), {}, "inherited"),
    "a text": (plain(lambda net: float(net.drop_rate)), {"drop_rate": "0.5"}, "drop_rate"),
    "an array": (plain(lambda net: float(net.drops[0])), {"drops": np.array([0.5])}, "drops"),
    "a tensor": (plain(lambda net: float(net.drop_rate)), {"drop_rate": torch.tensor(0.5)}, "drop_rate (a t"),
    "a tensor's number": (plain(lambda net: net.p_drop.item()), {"p_drop": torch.tensor(0.5)}, "p_drop (a t"),
    "a tensor in a mask": (mask(lambda net: net.p_drop), {"p_drop": torch.tensor([0.5])}, "p_drop (a tensor"),
    "a tensor in a draw": (
        lambda net, x: x * torch.empty_like(x).bernoulli_(1 - net.drop_rate),
        {"drop_rate": nn.Parameter(torch.tensor(0.5), requires_grad=False)},
        "drop_rate (a tensor",
    ),
    "a tensor of keeping": (
        lambda net, x: x * (torch.rand_like(x) < net.keep_prob),
        {"keep_prob": torch.tensor(0.5)},
        "keep_prob (a tensor",
    ),
    "a vector": (mask(lambda net: net.drops[1]), {"drops": torch.tensor([0.2, 0.5])}, "drops (a tensor"),
    "a tensor in a dictionary": (
        mask(lambda net: net.cfg["drop"]),
        {"cfg": {"drop": torch.tensor(0.5)}},
        "cfg.drop (a tensor",
    ),
    "a frozen dataclass": (
        plain(lambda net: net.cfg.drop_rate),
        {"cfg": Frozen()},
        "cfg.drop_rate (its owner takes no other number; make it a number of the module)",
    ),
    "a list of modules": (lambda net, x: net.later[0](x), {"later": [nn.Dropout(0.5)]}, "later.0"),
    "another name": (lambda net, x: x * (torch.rand_like(x) > net.amount), {"amount": 0.5}, "amount"),
    "draws by numpy": (
        lambda net, x: x * torch.from_numpy(np.random.binomial(1, 1 - net.drop_rate, x.shape)),
        {"drop_rate": 0.5},
        "drop_rate",
    ),
    "a number of things": (keep_some, {"drop_rate": 0.5}, "drop_rate"),
    "a learned rate": (
        lambda net, x: x * (torch.rand_like(x) > torch.sigmoid(net.drop_logit)),
        {"drop_logit": nn.Parameter(torch.zeros(()))},
        "drop_logit",
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_is_not_steered_is_named(name):
    drop, held, expected = NAMED[name]
    shares, report, handle = train(Net(drop, **held), steps=3)
    assert shares[-1] == pytest.approx(0.5, abs=0.1)
    assert not report.complete and expected in str(report)
    handle.remove()


def by_weights(net, x):
    return x * torch.bernoulli(torch.ones_like(x) * (1 - net.drop_rate))


STEERED = {
    "a partial": (
        lambda net, x: net.act(x, training=net.training),
        {"act": functools.partial(F.dropout, p=0.5)},
    ),
    "a tuple": (plain(lambda net: net.drops[1]), {"drops": (0.2, 0.5)}),
    "ones times a rate": (by_weights, {"drop_rate": 0.5}),
    "slots": (plain(lambda net: net.cfg.hidden_drop), {"cfg": Slots()}),
    "a single float": (plain(lambda net: float(net.drop_rate)), {"drop_rate": np.float32(0.5)}),
    "a single float in a mask": (mask(lambda net: net.drop_rate), {"drop_rate": np.float32(0.5)}),
    "a half float": (plain(lambda net: net.drop_rate.item()), {"drop_rate": np.float16(0.5)}),
    "a double's number": (plain(lambda net: net.drop_rate.item()), {"drop_rate": np.float64(0.5)}),
    "a single float on a namespace": (
        plain(lambda net: net.cfg.drop_rate.item()),
        {"cfg": Namespace(drop_rate=np.float32(0.5))},
    ),
    "a private namespace": (plain(lambda net: net._opts.drop), {"_opts": Namespace(drop=0.5)}),
    "a private list": (plain(lambda net: net._drops[1]), {"_drops": [0.2, 0.5]}),
    "an integer": (plain(lambda net: net.drop_rate), {"drop_rate": 1}),
    "uniform in place": (
        lambda net, x: x * torch.empty_like(x).uniform_(1 - net.drop_rate, 2 - net.drop_rate).floor(),
        {"drop_rate": 0.5},
    ),
    "ranks": (
        lambda net, x: x * (torch.rand_like(x).argsort(-1).argsort(-1) >= 64 * net.drop_rate),
        {"drop_rate": 0.5},
    ),
    "rounded": (plain(lambda net: round(net.drop_rate, 2)), {"drop_rate": 0.5}),
    "kept": (plain(lambda net: 1 - net.keep_prob), {"keep_prob": 0.5}),
    "kept, by a mask": (lambda net, x: x * (torch.rand_like(x) < net.drop_keep), {"drop_keep": 0.5}),
    "numpy's view": (
        lambda net, x: x * torch.from_numpy(torch.rand(x.shape).numpy() > net.drop_rate),
        {"drop_rate": 0.5},
    ),
    "another branch": (
        lambda net, x: F.dropout(x, net.odd_drop) if net.steps % 2 == 0 else x,
        {"odd_drop": 0.5},
    ),
    "a late branch": (lambda net, x: F.dropout(x, net.late_drop) if net.steps > 5 else x, {"late_drop": 0.5}),
}


@pytest.mark.parametrize("name", STEERED)
def test_what_is_steered_drops_at_the_rate_wanted_and_is_put_back(name):
    drop, held = STEERED[name]
    net = Net(drop, **held)
    before = {n: (type(v), v) for n, v in vars(net).items() if isinstance(v, (int, float, np.floating))}
    before.pop("steps")
    inner = vars(held["cfg"]).copy() if isinstance(held.get("cfg"), Namespace) else None
    shares, report, handle = train(net)
    assert shares[-1] == pytest.approx(0.9, abs=0.05) and report.complete, report
    handle.remove()
    assert net.__dict__.get("drops", (0.2, 0.5)) == (0.2, 0.5)
    assert {n: (type(v), v) for n, v in vars(net).items() if n in before} == before
    assert inner is None or vars(held["cfg"]) == inner
    assert not isinstance(held.get("cfg"), Slots) or held["cfg"].hidden_drop == 0.5


def test_modules_that_come_during_the_run_are_steered_and_those_that_go_are_let_go():
    hooks = nn.modules.module._global_module_registration_hooks
    others = list(hooks)
    net = Net(lambda net, x: net.late(x) if hasattr(net, "late") else x)
    handle = schedule_dropout(net, 0.9)
    assert list(hooks) != others
    first = net.first
    net.late = nn.Dropout(0.5)
    net.first = nn.Identity()
    handle.step()
    assert net.late.p == 0.9 and (first.p, type(first)) == (0.1, nn.Dropout)
    handle.remove()
    assert (net.late.p, type(net.late)) == (0.5, nn.Dropout)
    net.later = nn.Dropout(0.2)  # nothing listens any more
    assert list(hooks) == others


def test_a_handle_that_is_forgotten_with_its_model_leaves_nothing_with_torch():
    gc.collect()
    hooks = nn.modules.module._global_module_registration_hooks
    others = list(hooks)
    schedule_dropout(nn.Sequential(nn.Dropout(0.5)), 0.9)
    gc.collect()
    assert list(hooks) == others


def test_script_modules_are_named():
    with pytest.warns(DeprecationWarning):
        inner = torch.jit.script(nn.Sequential(nn.Dropout(0.5)))
    net = Net(lambda net, x: net.inner(x), inner=inner)
    _, report, handle = train(net, steps=2)
    assert "script module" in report.named["inner"]
    handle.remove()


def test_a_list_that_is_made_anew_each_step_is_named():
    def drop(net, x):
        net.drops = [0.5]
        return F.dropout(x, net.drops[0])

    net = Net(drop, drops=[0.5])
    handle = schedule_dropout(net, 0.9)
    for _ in range(3):
        net(torch.ones(2, 8))
        handle.step()
    assert "drops.0" in str(handle.report()) and not handle.report().complete
    handle.remove()


@pytest.mark.parametrize("kind", ["element", "channel", "depth", "locked", "block", "weight"])
def test_what_a_callback_injects_is_not_named(kind):
    from lightning_reg.dropout.inject import after_of
    from lightning_reg.dropout.rules import Rates
    from lightning_reg.dropout.steering import RATE_AFTER, release, steer
    from lightning_reg.dropout.watch import Watch

    net = nn.Sequential(nn.Dropout(0.1), nn.Conv1d(8, 8, 1))
    steer(net[1], RATE_AFTER, "test", after=after_of(kind, 2), rates=Rates(torch.device("cpu"), 1).rows[0])
    net[1].__dict__[RATE_AFTER] = 0.3
    watch = Watch(net)
    with watch.step():
        net(torch.ones(2, 8, 6))
    assert watch.unsteered == []
    release(net[1], RATE_AFTER, "test")
