import random
from collections import UserDict, deque
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_reg.dropout import audit


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.1)
        self.frozen = nn.Dropout(0.2).eval()
        self.calls, self.history, self.total = 0, [], torch.zeros(2)
        self.last = deque([0.0], maxlen=1)

    def forward(self, x):
        self.calls += 1
        self.history.append(x)
        self.last.append(self.calls)
        self.drop.register_forward_hook(lambda *args: None)
        self.total += 1
        self.extra = 1
        np.random.rand()
        random.random()
        return self.frozen(self.drop(self.norm(x)))


def test_nothing_is_left_behind():
    net = Stateful()
    net.norm.weight.grad = torch.ones(4)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    total = net.total

    def call():
        net(torch.randn(3, 4)).sum().backward()

    audit(net, call)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(net.norm.weight.grad, torch.ones(4)) and net.norm.bias.grad is None
    assert (net.calls, net.history, "extra" in net.__dict__) == (0, [], False)
    assert net.total is total and not total.any()
    assert net.last == deque([0.0]) and not net.drop._forward_hooks
    assert (net.training, net.frozen.training) == (True, False)
    assert (net.drop.p, net.frozen.p) == (0.1, 0.2) and type(net.drop.p) is float


@pytest.mark.parametrize(
    ("make", "draw"),
    [
        (lambda: torch.Generator().manual_seed(1), lambda g: float(torch.rand([], generator=g))),
        (lambda: random.Random(1), lambda g: g.random()),
        (lambda: np.random.default_rng(1), lambda g: g.random()),
        (lambda: np.random.RandomState(1), lambda g: g.rand()),
    ],
)
def test_generators_of_a_modules_own_are_put_back(make, draw):
    class Drawing(nn.Dropout):
        generator = None

        def forward(self, x):
            return super().forward(x) * draw(self.generator)

    net = Drawing(0.1)
    net.generator = make()
    audit(net, lambda: net(torch.ones(2)))
    assert draw(net.generator) == draw(make())


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("lazy", [lambda: nn.LazyLinear(2), lambda: nn.LazyBatchNorm1d(affine=False)])
def test_lazy_modules_are_refused_until_they_have_a_shape(lazy):
    net, x = nn.Sequential(lazy(), nn.Dropout(0.1)), torch.randn(3, 4)
    with pytest.raises(ValueError, match=r"0\..* has no shape yet; run a batch through Sequential first"):
        audit(net, lambda: net(x))
    assert type(net[0]).__name__.startswith("Lazy")
    net(x)
    assert [site.name for site in audit(net, lambda: net(x)).sites] == ["1.p"]


def test_nothing_is_left_behind_by_a_forward_that_raises():
    net = Stateful()
    with pytest.raises(ZeroDivisionError):
        audit(net, lambda: (net(torch.randn(3, 4)), 1 / 0))
    assert (net.calls, net.drop.p, len(nn.modules.module._global_forward_hooks)) == (0, 0.1, 0)


def test_modules_held_in_eval_mode_are_seen():
    net = Stateful().eval()
    assert [site.name for site in audit(net, lambda: net(torch.randn(1, 4))).sites] == ["drop.p", "frozen.p"]


def test_randomness_without_a_rate_is_reported_by_name():
    class Noisy(nn.Module):
        def forward(self, x):
            x = nn.functional.dropout(x, 0.1, self.training)
            x = nn.functional.dropout(x, 0.1, False)
            if np.random.rand() < 2.0:
                x = x + torch.randn_like(x)
            return nn.functional.gumbel_softmax(x)

    net = nn.Sequential(nn.Dropout(0.0), Noisy())
    result = audit(net, lambda: net(torch.ones(2, 2)))
    assert result.unsteered == [
        "1 (Noisy): dropout with a rate of 0.1 in the code",
        "1 (Noisy): randn_like",
        "1 (Noisy): gumbel_softmax",
        "1 (Noisy): numpy.random is drawn from",
    ]
    assert [site.name for site in result.sites] == ["0.p"]


@pytest.mark.parametrize("draw", [random.random, np.random.random, lambda: torch.rand([])])
@pytest.mark.parametrize("swap", [False, True])
def test_layerdrop_by_any_generator_is_steered_and_not_reported(draw, swap):
    class Skipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.layerdrop = 0.5

        def forward(self, x):
            rate = self.layerdrop
            return x if (rate > draw() if swap else draw() < rate) else 2 * x

    net = Skipping()
    result = audit(net, lambda: net(torch.ones(2)))
    assert [(site.name, site.kind) for site in result.sites] == [("layerdrop", "layer")]
    assert result.unsteered == []


@pytest.mark.parametrize(
    "drop",
    [
        lambda x, p: x * x.new_empty(2, 1).bernoulli_(1 - p).div_(1 - p),
        lambda x, p: x / (1 - p) * (torch.rand(2, 1) + (1 - p)).floor_(),
        lambda x, p: x * (torch.rand_like(x) > p),
        lambda x, p: x * torch.bernoulli(torch.full_like(x, 1 - p)),
        lambda x, p: x * torch.empty_like(x).bernoulli_(1 - float(p * 4) / 3.0),
    ],
)
def test_hand_written_dropout_is_seen(drop):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop_prob = 0.2
            self.drop_other = 0.2

        def forward(self, x):
            return drop(x, self.drop_prob)

    net = Own()
    result = audit(net, lambda: net(torch.ones(2, 2)))
    assert [site.name for site in result.sites] == ["drop_prob"]
    assert result.dead == ["drop_other"]
    assert result.unsteered == []


class PlainNumbers(UserDict):
    """A configuration that takes no subclass of float, as OmegaConf's do."""

    def __setitem__(self, key, value):
        if type(value) is not float:
            raise ValueError(f"{type(value).__name__} is not a supported primitive type")
        super().__setitem__(key, value)


@dataclass(frozen=True)
class Frozen:
    drop_rate: float = 0.3


def test_rates_in_containers_that_refuse_others_are_named_and_left_alone():
    class Configured(nn.Module):
        def __init__(self):
            super().__init__()
            self._hparams = PlainNumbers(dropout=0.1, embedding_dropout=0.2)
            self.config = Frozen()
            self.inner = nn.Dropout(0.4)

        def forward(self, x):
            x = nn.functional.dropout(x, self._hparams["dropout"], self.training)
            return self.inner(nn.functional.dropout(x, self.config.drop_rate, self.training))

    net = Configured()
    result = audit(net, lambda: net(torch.ones(2, 2)))
    assert [site.name for site in result.sites] == ["inner.p"]
    assert result.dead == ["hparams.embedding_dropout", "config.drop_rate"]
    assert result.unsteered == [
        "the root (Configured): dropout with a rate of 0.3 in the code",
        "hparams.dropout (PlainNumbers): dropout with a rate of 0.1 where only plain numbers are taken",
    ]
    assert net._hparams == {"dropout": 0.1, "embedding_dropout": 0.2} and net.inner.p == 0.4


def test_compiled_modules_run_without_their_compiled_form():
    def refuse(graph, inputs):
        raise AssertionError("compiled")

    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    compiled = torch.compile(net, backend=refuse)
    assert [site.name for site in audit(compiled, lambda: compiled(torch.ones(1, 2))).sites] == ["1.p"]


def test_activation_checkpointing_is_seen_through():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    x = torch.ones(1, 2, requires_grad=True)
    assert [s.name for s in audit(net, lambda: checkpoint(net, x, use_reentrant=False)).sites] == ["1.p"]
