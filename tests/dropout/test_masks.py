"""Locked, word, block and weight dropout: the share dropped, what falls together, and the mean."""

import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from lightning_reg import Linear, schedule_dropout
from lightning_reg.callbacks import DropoutInjector
from lightning_reg.dropout import masks
from lightning_reg.dropout.inject import after_of, check_modules, expect
from lightning_reg.dropout.rules import Rates
from lightning_reg.dropout.steering import RATE_AFTER, release, steer
from tests.callbacks.dropout_nets import Net, trainer

RATE = 0.3
SCALE = 1 / (1 - RATE)


def same(dropped, drawn):
    """Whether the entries of each group fall together, and as many groups fall as should."""
    groups = dropped.reshape(drawn, -1)
    assert torch.equal(groups.all(1), groups.any(1))
    assert binomtest(int(groups.all(1).sum()), drawn, RATE).pvalue > 1e-3


@pytest.mark.parametrize("time", [0, 1])
def test_locked_dropout_drops_the_same_features_at_each_time(time):
    torch.manual_seed(0)
    shape = (5, 40, 100) if time == 0 else (40, 5, 100)
    output = masks.locked(torch.ones(shape), RATE, SCALE, time)
    same((output == 0).movedim(time, -1), 4000)
    assert output.unique().tolist() == [0.0, pytest.approx(SCALE)]


def test_word_dropout_drops_a_word_wherever_it_stands():
    torch.manual_seed(0)
    ids = torch.arange(3000).repeat(4)[torch.randperm(12000)].view(30, 400)
    output = masks.word(torch.ones(30, 400, 3), ids, 3000, RATE, SCALE)
    order = ids.flatten().argsort(stable=True)
    dropped = (output == 0).view(12000, 3)[order].view(3000, 12)
    same(dropped, 3000)


@pytest.mark.parametrize(("shape", "size"), [((60, 8, 50), 3), ((30, 8, 24, 24), 3), ((20, 4, 9, 9, 9), 2)])
def test_block_dropout_drops_blocks_and_as_much_as_it_should_at_the_edges_too(shape, size):
    torch.manual_seed(0)
    output = masks.block(torch.ones(shape), size, RATE, SCALE)
    dropped = (output == 0).double()
    maps = dropped.flatten(2).mean(2).flatten()  # independent of each other
    assert abs(float(maps.mean()) - RATE) < 5 * float(maps.std()) / len(maps) ** 0.5
    edge = dropped.select(2, 0).flatten(1).mean(1)
    assert abs(float(edge.mean()) - RATE) < 5 * float(edge.std()) / len(edge) ** 0.5
    # each position that falls is inside of a whole block that falls, where the map holds one
    d = len(shape) - 2
    pool = (nn.functional.max_pool1d, nn.functional.max_pool2d, nn.functional.max_pool3d)[d - 1]
    whole = 1 - pool(1 - dropped, size, stride=1)
    inside = pool(nn.functional.pad(whole, [size - 1] * (2 * d)), size, stride=1)
    core = (slice(None), slice(None), *[slice(size - 1, n - size + 1) for n in shape[2:]])
    assert torch.equal(inside[core], dropped[core])


def test_weight_dropout_drops_weights_once_for_the_batch():
    torch.manual_seed(0)
    output = masks.weight(torch.ones(60, 100), RATE, SCALE)
    same(output == 0, 6000)


def injected(module, kind, rate, size=3):
    rates = Rates(torch.device("cpu"), 1)
    rates.fill([rate])
    check_modules([("it", module)], kind)
    steer(module, RATE_AFTER, "test", after=after_of(kind, size), rates=rates.rows[0])
    module.__dict__[RATE_AFTER] = rate
    return module


def ones(module):
    for parameter in module.parameters():
        nn.init.ones_(parameter)
    return module


class Sequence(nn.Linear):
    """Features of a sequence, ``(N, T, C)``."""


def rnn(batch_first):
    return ones(nn.RNN(3, 200, batch_first=batch_first))


CASES = {
    "locked": (lambda: Sequence(3, 200), "locked", lambda: torch.randn(20, 4, 3), lambda y: y.movedim(1, 2)),
    "locked RNN": (lambda: rnn(True), "locked", lambda: torch.ones(20, 4, 3), lambda y: y[0].movedim(1, 2)),
    "locked, time first": (
        lambda: rnn(False),
        "locked",
        lambda: torch.ones(4, 20, 3),
        lambda y: y[0].permute(1, 2, 0),
    ),
    "word": (lambda: nn.Embedding(4000, 5), "word", lambda: torch.randperm(4000), lambda y: y),
    "weight": (lambda: nn.Linear(1, 4000, bias=False), "weight", lambda: torch.ones(2, 1), lambda y: y.T),
    "weight of a convolution": (
        lambda: nn.Conv2d(1, 4000, 1, bias=False),
        "weight",
        lambda: torch.ones(1, 1, 2, 1),
        lambda y: y,
    ),
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", CASES)
def test_injected_masks(name, compiled):
    make, kind, batch, view = CASES[name]
    if (compiled and "RNN" in name) or (compiled and "time first" in name):
        pytest.skip("torch.compile leaves recurrent layers alone")
    torch.manual_seed(0)
    torch._dynamo.reset()
    module, x = make(), batch()
    keys = list(module.state_dict())
    native = view(module(x))
    injected(module, kind, RATE)
    if compiled:
        module.__dict__[RATE_AFTER] = 0.9  # the table has the rate
    call = torch.compile(module, backend="eager", fullgraph=True) if compiled else module
    output = view(call(x))
    drawn = output.numel() // output.shape[-1]
    same((output == 0).contiguous(), drawn)
    kept = output != 0
    torch.testing.assert_close(output[kept], native[kept] * SCALE)
    assert list(module.state_dict()) == keys
    assert torch.equal(view(module.eval()(x)), native)
    release(module, RATE_AFTER, "test")
    assert type(module) is type(make())


def test_recurrent_weights_drop_and_get_their_gradient():
    torch.manual_seed(0)
    module = nn.LSTM(3, 30)
    own = list(module._flat_weights)
    x = torch.randn(6, 2, 3)
    native = module(x)[0]
    injected(module, "weight", RATE)
    output = module(x)[0]
    torch.testing.assert_close(output[0], native[0])  # the first step multiplies by the state 0
    assert not torch.allclose(output[1:], native[1:])
    output.sum().backward()
    share = float((module.weight_hh_l0.grad == 0).float().mean())
    assert share == pytest.approx(RATE, abs=0.05) and bool((module.weight_ih_l0.grad != 0).all())
    assert all(a is b for a, b in zip(module._flat_weights, own, strict=True))
    release(module, RATE_AFTER, "test")


@pytest.mark.parametrize("kind", ["locked", "word", "block", "weight"])
def test_a_rate_of_1_drops_all_and_0_is_the_module_itself(kind):
    makes = {"locked": lambda: Sequence(3, 4), "word": lambda: nn.Embedding(9, 4)}
    batches = {"locked": torch.randn(2, 3, 3), "word": torch.arange(9)}
    module = makes.get(kind, lambda: nn.Conv1d(3, 4, 1, bias=False))()
    x = batches.get(kind, torch.randn(2, 3, 6))
    native = module(x)
    assert torch.equal(injected(module, kind, 0.0)(x), native)
    module.__dict__[RATE_AFTER] = 1.0
    assert not module(x).any()
    release(module, RATE_AFTER, "test")


def test_a_schedule_steers_the_weights_dropped():
    net = Net(nn.Sequential(nn.Linear(4, 200), nn.Linear(200, 1)))
    shares = []

    class Look(DropoutInjector):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            row = pl_module.body[1].weight.grad
            shares.append(float((row == 0).float().mean()))

    trainer(Look(Linear(0.0, 1.0), after="body.1", kind="weight"), max_epochs=1).fit(net)
    assert shares == [pytest.approx(step / len(shares), abs=0.12) for step in range(len(shares))]


REFUSED = {
    "channel": (nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.randn(2, 5, 3), "with its features last"),
    "block": (nn.Linear(3, 4), torch.randn(2, 5, 3), "with its features last"),
    "locked": (nn.Linear(3, 4), torch.randn(2, 3), "needs a batch of sequences"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_shapes_of_which_positions_would_be_dropped_are_refused(kind):
    module, x, message = REFUSED[kind]
    last = module[-1] if isinstance(module, nn.Sequential) else module
    injected(last, kind, RATE)
    expect([("last", last)])
    with pytest.raises(ValueError, match=message):
        module(x)
    release(last, RATE_AFTER, "test")


def test_channels_after_an_activation_of_a_convolution_are_taken():
    net = nn.Sequential(nn.Conv1d(3, 40, 1), nn.ReLU())
    injected(net[1], "channel", RATE)
    expect([("1", net[1])])
    assert net(torch.randn(2, 3, 5)).shape == (2, 40, 5)
    release(net[1], RATE_AFTER, "test")


def test_modules_that_a_kind_does_not_fit_are_refused():
    class Own(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    for kind, module in (("word", nn.Linear(2, 2)), ("weight", nn.LayerNorm(2)), ("weight", Own(2, 2))):
        with pytest.raises(ValueError, match=f"kind='{kind}' needs"):
            check_modules([("it", module)], kind)
    with pytest.raises(ValueError, match="block_size=0"):
        DropoutInjector(0.1, after="x", kind="block", block_size=0)


class LockedDropout(nn.Module):
    """As sequence models write it."""

    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        return x * x.new_empty(x.shape[0], 1, x.shape[2]).bernoulli_(1 - self.p) / (1 - self.p)


class EmbeddingDropout(nn.Module):
    def __init__(self, embedding, embed_p):
        super().__init__()
        self.embedding, self.embed_p = embedding, embed_p

    def forward(self, ids):
        mask = torch.rand(self.embedding.num_embeddings, 1) >= self.embed_p
        return nn.functional.embedding(ids, self.embedding.weight * mask / (1 - self.embed_p))


class WeightDropout(nn.Module):
    def __init__(self, module, weight_p):
        super().__init__()
        self.module, self.weight_p = module, weight_p

    def forward(self, x):
        weight = nn.functional.dropout(self.module.weight, self.weight_p, self.training)
        return nn.functional.linear(x, weight)


class DropBlock(nn.Module):
    def __init__(self, drop_prob, size=3):
        super().__init__()
        self.drop_prob, self.size = drop_prob, size

    def forward(self, x):
        centres = (torch.rand_like(x) < self.drop_prob / self.size**2).float()
        fallen = nn.functional.max_pool2d(centres, self.size, stride=1, padding=self.size // 2)
        return x * (1 - fallen)


@pytest.mark.parametrize(
    ("module", "x", "share"),
    [
        (LockedDropout(0.1), torch.ones(50, 3, 80), lambda d: d[:, 0]),
        (EmbeddingDropout(ones(nn.Embedding(4000, 2)), 0.1), torch.arange(4000), lambda d: d[:, 0]),
        (WeightDropout(ones(nn.Linear(1, 4000, bias=False)), 0.1), torch.ones(1, 1), lambda d: d),
        # three apart, so that no two of them see one centre
        (DropBlock(0.1), torch.ones(30, 1, 41, 41), lambda d: d[..., 1:-1:3, 1:-1:3]),
    ],
    ids=["locked", "word", "weight", "block"],
)
def test_written_by_hand_they_are_places_that_are_steered(module, x, share):
    torch.manual_seed(0)
    handle = schedule_dropout(module, Linear(0.2, 0.8), total_steps=4)
    for step in range(4):
        dropped = share(module(x) == 0).double()
        rate = 0.2 + 0.15 * step
        if isinstance(module, DropBlock):  # nine centres, of which one is enough
            rate = 1 - (1 - rate / 9) ** 9
        if step:  # the first forward shows that it is a rate
            assert abs(float(dropped.mean()) - rate) < 5 * (rate * (1 - rate) / dropped.numel()) ** 0.5
        handle.step()
    assert handle.report().complete
    handle.remove()
