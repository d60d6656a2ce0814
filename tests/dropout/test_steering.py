"""What is dropped, natively and with the rate in a tensor, against the binomial law and torch's own rules."""

import copy
import math
import pickle
import random

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from lightning_reg.dropout import find_sites
from lightning_reg.dropout.rules import Rates
from lightning_reg.dropout.steering import release, rule_for, steer


class StochasticDepth(nn.Module):
    """torchvision's, by its documentation; the real one is tested in tests/networks."""

    __module__ = "torchvision.ops.stochastic_depth"

    def __init__(self, p, mode):
        super().__init__()
        self.p, self.mode = p, mode

    def forward(self, input):
        size = [input.shape[0] if self.mode == "row" else 1] + [1] * (input.ndim - 1)
        noise = torch.empty(size, dtype=input.dtype).bernoulli_(1 - self.p)
        return input * (noise.div_(1 - self.p) if self.p < 1 else noise)


CALLED = {
    # module, input shape, how many values are dropped together
    "Dropout": (lambda p: nn.Dropout(p), (100, 200), 1),
    "Dropout1d": (lambda p: nn.Dropout1d(p), (100, 50, 3), 3),
    "Dropout1d without a batch": (lambda p: nn.Dropout1d(p), (5000, 3), 3),
    "Dropout2d": (lambda p: nn.Dropout2d(p), (100, 50, 2, 3), 6),
    "Dropout3d": (lambda p: nn.Dropout3d(p), (100, 50, 2, 1, 2), 4),
    "Dropout3d without a batch": (lambda p: nn.Dropout3d(p), (5000, 2, 1, 2), 4),
    "StochasticDepth": (lambda p: StochasticDepth(p, "row"), (5000, 3), 3),
}


def _prepare(module, rate, compiled):
    """``module`` steered to ``rate``, called natively or with the rate in a tensor."""
    torch._dynamo.reset()
    rates = Rates(torch.device("cpu"), 1)
    rates.fill([rate])
    steer(module, "p", "test", rule=rule_for(module), rates=rates.rows[0])
    module.p = 0.123 if compiled else rate  # compiled code reads the tensor and nothing else
    return torch.compile(module, backend="eager", fullgraph=True) if compiled else module


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("rate", [0.05, 0.3, 0.8])
@pytest.mark.parametrize("name", CALLED)
def test_drops_as_often_as_it_should_and_rescales_what_is_kept(name, rate, compiled):
    make, shape, together = CALLED[name]
    call = _prepare(make(0.5), rate, compiled)
    torch.manual_seed(1)
    output = call(torch.ones(shape, dtype=torch.float64))
    groups = output.reshape(-1, together)
    dropped = (groups == 0).all(1)
    assert torch.equal(dropped, (groups == 0).any(1))
    assert binomtest(int(dropped.sum()), len(groups), rate).pvalue > 1e-3
    kept = output[output != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - rate)), rtol=1e-12, atol=0)


def by_rule(module, x, rate=0.3):
    """What the forward with a tensor for a rate gives, uncompiled."""
    rates = Rates(torch.device("cpu"), 1)
    rates.fill([rate])
    torch.manual_seed(1)
    return rule_for(module)(module, x, rates.rows[0])


class DropPath(nn.Module):
    """timm's, by its documentation; the real one is tested in tests/networks."""

    __module__ = "timm.layers.drop"

    def __init__(self, scale_by_keep):
        super().__init__()
        self.drop_prob, self.scale_by_keep = 0.5, scale_by_keep

    def forward(self, x):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("module", "shape", "together"),
    [
        (nn.Dropout2d(0.5), (100, 50, 3), 3),  # a batch of sequences, as torch reads it
        (nn.FeatureAlphaDropout(0.5), (100, 50, 3), 3),
        (DropPath(True), (5000, 2, 2), 4),
        (DropPath(False), (5000, 2, 2), 4),
    ],
    ids=["maps", "alpha", "scaled", "unscaled"],
)
def test_what_falls_together_in_a_forward_with_a_tensor_for_a_rate(module, shape, together):
    groups = by_rule(module, torch.ones(shape)).reshape(-1, together)
    dropped = groups < groups.max() - 1e-3
    assert torch.equal(dropped.all(1), dropped.any(1))
    assert binomtest(int(dropped.all(1).sum()), len(groups), 0.3).pvalue > 1e-3
    if len(groups) > shape[0]:  # each sample has its own
        kept = 1 - dropped.all(1).view(shape[0], -1).double().mean(1)
        assert float(kept.min()) > 0 and float(kept.max()) < 1
    if isinstance(module, DropPath):
        assert float(groups.max()) == pytest.approx(1 / 0.7 if module.scale_by_keep else 1.0)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", CALLED)
@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_rates_of_0_and_1(name, rate, compiled):
    make, shape, _ = CALLED[name]
    x = torch.randn(shape)
    assert torch.equal(_prepare(make(0.5), rate, compiled)(x), x if rate == 0 else torch.zeros_like(x))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(
    ("make", "shape"), [(nn.AlphaDropout, (400, 500)), (nn.FeatureAlphaDropout, (4000, 50, 1))]
)
def test_alpha_dropout_keeps_mean_and_variance(make, shape, compiled):
    rate, x = 0.3, torch.randn(shape, dtype=torch.float64)
    call = _prepare(make(0.5), rate, compiled)
    torch.manual_seed(2)
    output = call(x)
    n = output.numel()
    # six standard errors: of a mean of variance 1, and of a variance of a law with kurtosis below 5
    assert abs(output.mean()) < 6 / math.sqrt(n)
    assert abs(output.var() - 1) < 6 * math.sqrt(4 / n)
    # dropped values are the one constant a·α'·(p − 1) of the SELU paper
    values, counts = output.unique(return_counts=True)
    constant = values[counts.argmax()]
    alpha = 1.6732632423543772 * 1.0507009873554805
    a = ((1 - rate) * (1 + rate * alpha**2)) ** -0.5
    assert constant == pytest.approx(-a * alpha * (1 - rate), rel=1e-12)
    assert binomtest(int(counts.max()), n, rate).pvalue > 1e-3
    assert torch.equal(_prepare(make(0.5), 0.0, compiled)(x), x)
    assert not _prepare(make(0.5), 1.0, compiled)(x).any()


@pytest.mark.parametrize("mode", ["row", "batch"])
def test_stochastic_depth_by_batch_drops_all_or_nothing(mode):
    call = _prepare(StochasticDepth(0.5, mode), 0.5, True)
    torch.manual_seed(0)
    kinds = {int((call(torch.ones(64, 2)) != 0).sum()) for _ in range(20)}
    assert (kinds == {0, 128}) is (mode == "batch")


def _set(net, rate):
    [site] = find_sites(net)
    site.set(rate)


def test_functions_with_floats_drop_as_often_as_they_should():
    attention = nn.MultiheadAttention(4, 1, dropout=0.5)
    _set(attention, 0.3)
    torch.manual_seed(0)
    x = torch.randn(50, 8, 4)
    _, weights = attention(x, x, x)  # (8, 50, 50), after dropout
    assert binomtest(int((weights == 0).sum()), weights.numel(), 0.3).pvalue > 1e-3

    # with weights that copy, and no recurrence, the second layer of an RNN sees the dropped first
    rnn = nn.RNN(1, 1, num_layers=2, nonlinearity="relu", bias=False, dropout=0.5)
    for name, weight in rnn.named_parameters():
        nn.init.constant_(weight, 0.0 if "hh" in name else 1.0)
    _set(rnn, 0.3)
    output, _ = rnn(torch.ones(100, 100, 1))
    assert binomtest(int((output == 0).sum()), output.numel(), 0.3).pvalue > 1e-3
    kept = output[output != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / 0.7))


@pytest.mark.parametrize("draw", [lambda: torch.rand([]), random.random, np.random.random])
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_layerdrop_skips_as_often_as_it_should_and_does_not_rescale(draw, rate):
    class Skipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.layerdrop = 0.5

        def forward(self, x):
            return x if draw() < self.layerdrop else 2 * x

    net = Skipping()
    _set(net, rate)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    outputs = [float(net(torch.tensor(1.0))) for _ in range(2000)]
    assert set(outputs) <= {1.0, 2.0}
    assert binomtest(outputs.count(1.0), 2000, rate).pvalue > 1e-3


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_evaluation_is_the_identity(compiled):
    module = nn.Dropout(0.5)
    call = _prepare(module, 0.9, compiled)
    module.eval()
    x = torch.randn(5)
    assert torch.equal(call(x), x)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_in_place_dropout_stays_in_place(compiled):
    call = _prepare(nn.Dropout(0.5, inplace=True), 1.0, compiled)
    x = torch.ones(4)
    call(x)
    assert not x.any()


def test_classes_of_their_own_forward_are_not_replaced():
    class Own(nn.Dropout):
        def forward(self, input):
            return input

    class OwnPath(DropPath):
        forward = Own.forward

    assert rule_for(Own(0.1)) is None and rule_for(OwnPath(True)) is None
    assert rule_for(nn.Dropout(0.1)) is not None
    assert rule_for(nn.Linear(1, 1)) is None


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_pickles_are_of_the_built_class_and_rate(copied):
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    keys, names = list(net.state_dict()), set(net[1].__dict__)
    _prepare(net[1], 0.7, False)
    net[1].p = 0.7
    assert type(net[1]) is not nn.Dropout and isinstance(net[1], nn.Dropout)
    assert repr(net[1]) == "Dropout(p=0.7, inplace=False)" and list(net.state_dict()) == keys
    for twin in (copied(net[1]), copied(nn.ModuleList([net[1]]))):
        twin = twin if isinstance(twin, nn.Dropout) else copied(net[1])
        assert (type(twin), twin.p, set(twin.__dict__)) == (nn.Dropout, 0.1, names)
    release(net[1], "p", "test")
    assert (type(net[1]), net[1].p, set(net[1].__dict__)) == (nn.Dropout, 0.1, names)


def test_one_attribute_has_one_holder():
    module = nn.Dropout(0.1)
    steer(module, "p", "one")
    with pytest.raises(ValueError, match=r"two callbacks steer Dropout\.p; give them disjoint selections"):
        steer(module, "p", "two")
    release(module, "p", "two")
    assert type(module) is not nn.Dropout
    release(module, "p", "one")
    assert type(module) is nn.Dropout
