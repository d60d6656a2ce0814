import argparse
import random
from collections import UserDict
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_reg.dropout import find_sites
from lightning_reg.dropout.running import is_written
from lightning_reg.dropout.watch import Watch


def watch(net, call):
    watched = Watch(net)
    with watched.step():
        call()
    return watched


def seen(watched):
    return {site.name: watched.seen[site.key].kind for site in watched.sites if site.key in watched.seen}


class Own(nn.Module):
    """Drops as ``drop`` does, by one of two numbers."""

    def __init__(self, drop, value=0.2):
        super().__init__()
        self.drop = drop
        self.drop_prob = value
        self.drop_other = value

    def forward(self, x):
        return self.drop(x, self.drop_prob)


def layer_by(draw):
    return lambda x, p: x if draw() < p else 2 * x


def script(function):
    with pytest.warns(DeprecationWarning):
        return torch.jit.script(function)


@script
def scripted(x: torch.Tensor, rate: float) -> torch.Tensor:
    return torch.nn.functional.dropout(x, rate, True)


@script
def scaled(x: torch.Tensor, by: float) -> torch.Tensor:
    return x * by


@script
def drops_a_tenth(x: torch.Tensor, by: float) -> torch.Tensor:
    return torch.nn.functional.dropout(x * by, 0.1, True)


@script
def scripted_mask(x: torch.Tensor, rate: float) -> torch.Tensor:
    return x * (torch.rand_like(x) + (1.0 - rate)).floor()


def attend(x, **settings):
    return nn.functional.scaled_dot_product_attention(x[None], x[None], x[None], **settings)[0]


ONE, DATA = torch.ones(()), torch.ones(2, 2)
GENERATOR = np.random.default_rng(1)
RATES = {
    "bernoulli_": lambda x, p: x * x.new_empty(2, 1).bernoulli_(1 - p).div_(1 - p),
    "floor": lambda x, p: x / (1 - p) * (torch.rand(2, 1) + (1 - p)).floor_(),
    "compared": lambda x, p: x * (torch.rand_like(x) > p),
    "in place": lambda x, p: x * torch.rand_like(x).ge_(p),
    "full_like": lambda x, p: x * torch.bernoulli(torch.full_like(x, 1 - p)),
    "converted": lambda x, p: x * torch.empty_like(x).bernoulli_(1 - float(p * 4) / 3.0),
    "distribution": lambda x, p: x * torch.distributions.Bernoulli(1 - p).sample((2, 2)),
    "script": scripted,
    "script with a mask": scripted_mask,
    "torch": layer_by(lambda: torch.rand([])),
    "item": layer_by(lambda: torch.rand(3).tolist()[1]),
    "python": layer_by(random.random),
    "numpy": layer_by(np.random.random),
    "numpy's numbers": layer_by(lambda: np.random.random(3)[1]),
    "scaled by a tensor": lambda x, p: x * (torch.rand_like(x) >= p * ONE),
    "swapped": lambda x, p: x if p > random.random() else 2 * x,
    "of one": lambda x, p: x if random.random() >= 1 - p else 2 * x,
}
CONSTANTS = {
    "subtracted": lambda x, p: x - p,
    "scales noise": lambda x, p: x + p * torch.randn_like(x),
    "threshold": lambda x, p: x if p > 0.3 else 2 * x,
    "threshold of the data": lambda x, p: x * (x > p),
    "after a draw": lambda x, p: (random.random(), x if p > 0.3 else 2 * x)[1],
    "after a dropout": lambda x, p: nn.functional.dropout(x, 0.5) - p,
    "an index": lambda x, p: x[int(p)],
    "script": scaled,
    "script beside a dropout": lambda x, p: drops_a_tenth(x, p),
    # numbers that reach a draw, or what was drawn, and are no probability
    "a logit": lambda x, p: x * (torch.rand_like(x) > torch.sigmoid(torch.tensor(p))),
    "a spread": lambda x, p: x + torch.normal(0.0, p, x.shape),
    "a spread in place": lambda x, p: x + torch.empty_like(x).normal_(0.0, p),
    "a width": lambda x, p: x + torch.empty_like(x).uniform_(0.0, p),
    "a mean": lambda x, p: x + torch.poisson(torch.full_like(x, p)),
    "a rate of decay": lambda x, p: x + torch.empty_like(x).exponential_(p),
    "a temperature": lambda x, p: nn.functional.gumbel_softmax(x, tau=p),
    "a slope": lambda x, p: nn.functional.rrelu(x, 0.1, p, True),
    "a scale of attention": lambda x, p: attend(x, scale=p),
    "a bias of attention": lambda x, p: attend(x, attn_mask=torch.full((2, 2), p)),
    "what is dropped from": lambda x, p: nn.functional.dropout(torch.full_like(x, p), 0.1),
    "a least value by a tensor": lambda x, p: x * (torch.rand_like(x).clamp(min=p * ONE) > 0.7),
    "of the data": lambda x, p: x * (torch.rand_like(x) > p * DATA),
    "an amplitude": lambda x, p: x * (torch.rand_like(x) * p > 0.1),
    "a least value": lambda x, p: x * (torch.rand_like(x).clamp(min=p) > 0.7),
    "a threshold of normal noise": lambda x, p: x * (torch.randn_like(x).abs() > p),
    "a threshold of a mean": lambda x, p: x * (torch.rand(4).mean() > p),
    "a gain, made a number": lambda x, p: x * torch.empty_like(x).bernoulli_(0.5) * float(p),
    "a gain beside normal noise": lambda x, p: (torch.randn_like(x) + x) * float(p),
}


@pytest.mark.parametrize("name", RATES)
def test_a_number_that_reaches_a_draw_is_a_rate(name):
    net = Own(RATES[name])
    assert list(seen(watch(net, lambda: net(torch.ones(2, 2))))) == ["drop_prob"]
    assert type(net.drop_prob) is float


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_name_alone_makes_no_rate(name):
    net = Own(CONSTANTS[name])
    assert seen(watch(net, lambda: net(torch.ones(2, 2)))) == {}


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize(
    "value", [0.2, 0, np.float64(0.2), np.float32(0.2)], ids=["float", "int", "float64", "float32"]
)
def test_watching_changes_no_number(name, value):
    if name == "distribution" and isinstance(value, np.float32):
        pytest.skip("torch's distributions take none")

    def run(watched):
        for seed in (torch.manual_seed, random.seed, np.random.seed):
            seed(0)
        net, x = Own(RATES[name], value), torch.ones(2, 2)
        return Watch(net).step, net, x

    step, net, x = run(True)
    with step():
        output = net(x)
    assert type(net.drop_prob) is type(value) and net.drop_prob == value
    _, net, x = run(False)
    assert torch.equal(torch.as_tensor(output), torch.as_tensor(net(x)))


@pytest.mark.parametrize(
    "name", sorted(RATES.keys() - {"floor", "full_like", "distribution", "converted", "scaled by a tensor"})
)
def test_the_rate_wanted_acts_in_the_very_forward_that_shows_it_is_one(name):
    net = Own(RATES[name], 0.5)
    x = torch.ones(2, 2)
    for asked, dropped in ((0.0, False), (1.0, True)):
        for _ in range(5):
            watched = Watch(net)
            watched.wanted = {site.key: asked for site in watched.sites}
            with watched.step():
                output = net(x)
            if name in ("torch", "item", "python", "numpy", "numpy's numbers", "swapped", "of one"):
                assert torch.equal(output, x) is dropped
            else:
                assert bool((output == 0).all() or output.isnan().all()) is dropped
                assert bool((output == 0).any() or output.isnan().any()) is dropped


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.settings = argparse.Namespace(drop=0.3, inner={"dropout": [0.2, 0.1]})
        self.drops = [0.1, 0.2]
        self.cfg = {"model": {"drop_rate": 0.4}}
        self.meter = Meter()

    def forward(self, x):
        for rate in (self.settings.drop, self.settings.inner["dropout"][1], self.drops[0]):
            x = nn.functional.dropout(x, rate, self.training)
        return nn.functional.dropout(x, self.cfg["model"]["drop_rate"], self.training)


class Meter:
    dropped = 1


def test_namespaces_lists_and_dictionaries_are_watched():
    net = Everything()
    assert seen(watch(net, lambda: net(torch.ones(2)))) == dict.fromkeys(
        ["settings.drop", "settings.inner.dropout.1", "drops.0", "cfg.model.drop_rate"], "element"
    )
    assert (net.settings.drop, net.drops, net.cfg) == (0.3, [0.1, 0.2], {"model": {"drop_rate": 0.4}})


class PlainNumbers(UserDict):
    """A configuration that takes no subclass of float, as OmegaConf's do."""

    def __setitem__(self, key, value):
        if type(value) is not float:
            raise ValueError(f"{type(value).__name__} is not a supported primitive type")
        super().__setitem__(key, value)


@dataclass(frozen=True)
class Frozen:
    drop_rate: float = 0.3


def test_rates_in_containers_that_refuse_others_are_reported_and_left_alone():
    class Configured(nn.Module):
        def __init__(self):
            super().__init__()
            self._hparams = PlainNumbers(dropout=0.1)
            self.config = Frozen()
            self.inner = nn.Dropout(0.4)

        def forward(self, x):
            x = nn.functional.dropout(x, self._hparams["dropout"], self.training)
            return self.inner(nn.functional.dropout(x, self.config.drop_rate, self.training))

    net = Configured()
    watched = watch(net, lambda: net(torch.ones(2, 2)))
    assert seen(watched) == {"inner.p": "element"}
    assert watched.unsteered == [
        "the root (Configured): dropout with a rate of 0.1 in the code (perhaps _hparams.dropout)",
        "the root (Configured): dropout with a rate of 0.3 in the code (perhaps config.drop_rate)",
    ]
    assert net._hparams == {"dropout": 0.1} and net.inner.p == 0.4


def test_tensors_are_named():
    net = Own(RATES["compared"], torch.tensor(0.5))
    net.register_buffer("drop_rate", torch.tensor(0.5))
    net.drop = lambda x, p: x * torch.empty_like(x).bernoulli_(1 - float(p)) * torch.bernoulli(net.drop_rate)
    watched = watch(net, lambda: net(torch.ones(2, 2)))
    why = "a tensor, which is saved with the weights; make it a number to schedule it"
    assert watched.doubtful == {"drop_rate": why, "drop_other": why}  # drop_prob's name as well


def test_randomness_without_a_rate_is_reported_by_name():
    class Noisy(nn.Module):
        def forward(self, x):
            x = nn.functional.dropout(x, 0.1, self.training)
            x = nn.functional.dropout(x, 0.1, False)
            if np.random.rand() < 2.0:
                x = x + torch.randn_like(x)
            return nn.functional.gumbel_softmax(x)

    net = nn.Sequential(nn.Dropout(0.0), Noisy())
    watched = watch(net, lambda: net(torch.ones(2, 2)))
    assert watched.unsteered == [
        "1 (Noisy): dropout with a rate of 0.1 in the code",
        "1 (Noisy): randn_like",
        "1 (Noisy): gumbel_softmax",
        "numpy.random is drawn from",
    ]
    assert seen(watched) == {"0.p": "element"}


def test_the_share_dropped_is_counted():
    net = nn.Sequential(nn.Dropout(0.3), nn.Dropout1d(0.6))
    torch.manual_seed(0)
    watched = watch(net, lambda: net(torch.ones(50, 40, 30)))
    shares = [watched.seen[site.key].share for site in watched.sites]
    assert shares == [pytest.approx(0.3, abs=0.01), pytest.approx(0.6, abs=0.06)]


def test_modules_that_a_step_left_out_are_watched_when_they_are_called():
    net = nn.ModuleList([nn.Dropout(0.5), Own(RATES["compared"])])
    watched = Watch(net)
    watched.wanted = dict.fromkeys(site.key for site in watched.sites)
    with watched.step():
        net[0](torch.ones(2))
    assert seen(watched) == {"0.p": "element"} and type(net[1]) is not Own
    net[1](torch.ones(2, 2))
    assert seen(watched) == {"0.p": "element", "1.drop_prob": "row"} and type(net[1]) is Own


def test_a_module_that_a_watched_step_makes_keeps_a_plain_number():
    class Making(nn.Module):
        def __init__(self):
            super().__init__()
            self.settings = {"dropout": 0.5}

        def forward(self, x):
            self.made = nn.Dropout(self.settings["dropout"])
            return self.made(x)

    net = Making()
    assert seen(watch(net, lambda: net(torch.ones(2)))) == {"settings.dropout": "element"}
    assert type(net.made.p) is float and net.made.p == 0.5


def test_a_forward_that_raises_leaves_plain_numbers_and_no_hooks():
    net = Own(RATES["bernoulli_"])
    call = torch.jit.ScriptFunction.__call__
    with pytest.raises(ZeroDivisionError):
        watch(net, lambda: (net(torch.ones(2, 2)), 1 / 0))
    assert type(net.drop_prob) is float and torch.jit.ScriptFunction.__call__ == call
    assert not nn.modules.module._global_forward_pre_hooks


def test_activation_checkpointing_is_seen_through():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    x = torch.ones(1, 2, requires_grad=True)
    assert [s.name for s in find_sites(net, lambda: checkpoint(net, x, use_reentrant=False))] == ["1.p"]


def test_the_share_dropped_is_that_of_the_rate_told():
    net = nn.Dropout(0.3)
    watched = Watch(net)
    torch.manual_seed(0)
    for net.p in (0.3, 0.8):
        with watched.step():
            net(torch.ones(50, 400))
        [seen] = watched.seen.values()
        assert seen.rate == net.p and seen.share == pytest.approx(net.p, abs=0.02)


def test_a_number_is_written_where_the_running_method_has_it_or_its_complement():
    class Written(nn.Module):
        def forward(self, numbers):
            return 0.25, list(map(is_written, numbers))

    assert Written()([0.25, 0.75, 0.3]) == (0.25, [True, True, False])
