"""Schedules under torch.compile: graphs, masks, and numbers equal to those without a callback."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from scipy.stats import binomtest
from torch import nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

from lightning_reg import Linear
from lightning_reg.callbacks import DropoutInjector, DropoutScheduler
from tests.callbacks.dropout_nets import Net, trainer


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.drop = nn.Dropout(0.1)
        self.channels = nn.Dropout1d(0.2)
        self.alpha = nn.AlphaDropout(0.1)
        self.last = nn.Linear(8, 1)

    def forward(self, x):
        return self.last(self.alpha(self.channels(self.drop(self.first(x))[None])))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        x = self.first(x)[None]
        return self.drop(self.attention(x, x, x, need_weights=False)[0])


class Silent(Net):
    """Without ``self.log``, through which Lightning's own compiled training_step does not go."""

    def training_step(self, batch, batch_idx):
        return self(batch[0]).pow(2).mean()


def compiled(body, how, backend):
    """A LightningModule around ``body``, compiled in one of the ways there are."""
    net = Silent(body)
    if how == "inside":
        net.body = torch.compile(body, backend=backend, fullgraph=True)
    elif how == "inside, called before":
        net.body = torch.compile(body, backend=backend, fullgraph=True)
        net.body(torch.randn(4, 4)).sum().backward()
        net.zero_grad()
    elif how == "in place":
        body.compile(backend=backend, fullgraph=True)
    elif how == "a function it holds":
        net.run = torch.compile(lambda x: body(x), backend=backend, fullgraph=True)
        net.forward = lambda x: net.run(x)
    elif how == "a function":
        run = torch.compile(lambda x: body(x), backend=backend, fullgraph=True)
        net.forward = lambda x: run(x)
    elif how == "training_step":
        net.training_step = torch.compile(net.training_step, backend=backend, fullgraph=True)
    else:
        return torch.compile(net, backend=backend), net
    return net, net


HOW = {
    "inside": 1,
    "inside, called before": 2,
    "in place": 1,
    "the LightningModule": 1,
    "a function it holds": 1,
    "a function": 1,
    "training_step": 1,
}


@pytest.mark.parametrize(
    ("how", "callback_first"),
    [*((how, False) for how in HOW), ("inside", True), ("the LightningModule", True)],
)
def test_a_whole_schedule_is_one_graph(how, callback_first):
    backend, body = CompileCounter(), Block()
    callback = DropoutScheduler(Linear(0.0, 1.0)) if callback_first else None
    model, _ = compiled(body, how, backend)
    callback = callback or DropoutScheduler(Linear(0.0, 1.0))
    trainer(callback, max_epochs=10).fit(model)  # forty rates, 0 among them
    assert backend.frame_count == HOW[how]  # of which one is the caller's own, before fit
    assert (body.drop.p, body.channels.p, body.alpha.p, type(body.drop)) == (0.1, 0.2, 0.1, nn.Dropout)


def test_setting_p_by_hand_is_a_graph_a_rate():
    """What the class swap is for; the day this changes, it may go."""
    backend, body = CompileCounter(), Block()

    class ByHand(Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            body.drop.p = trainer.global_step / 40

    model, _ = compiled(body, "in place", backend)
    with torch._dynamo.config.patch(error_on_recompile=False, fail_on_recompile_limit_hit=False):
        body._compiled_call_impl = torch.compile(body._call_impl, backend=backend)
        trainer(ByHand(), max_steps=6).fit(model)
    assert backend.frame_count == 6


def test_names_carry_no_wrapper_prefix():
    model, _ = compiled(Block(), "inside", CompileCounter())
    seen = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            seen.extend(site.name for site in trainer.callbacks[0]._engine.sites)

    trainer(DropoutScheduler(0.5, select="body.*"), Look(), max_steps=1).fit(model)
    assert seen == ["body.drop.p", "body.channels.p", "body.alpha.p"]


@pytest.mark.parametrize(("treatment", "graphs"), [("levels", 4), ("hold", 1)])
def test_floats_handed_to_attention_run_in_levels_or_are_held(treatment, graphs, caplog):
    backend, seen = CompileCounter(), set()

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            seen.add(round(pl_module.body._orig_mod.attention.dropout, 9))

    model, net = compiled(Attention(), "inside", backend)
    with caplog.at_level("INFO"):
        trainer(DropoutScheduler(Linear(0.0, 0.9), compiled=treatment), Look(), max_epochs=10).fit(model)
    assert backend.frame_count == graphs
    # 40 steps, the last at 0.8775: four levels from 0 to that, evenly spaced
    assert seen == ({0.0, 0.2925, 0.585, 0.8775} if treatment == "levels" else {0.1})
    assert "body.attention.dropout: under torch.compile a graph for each value" in caplog.text
    assert net.body._orig_mod.attention.dropout == 0.1


def test_floats_of_a_compiled_function_that_nothing_shows_run_in_levels_once_graphs_come():
    backend = CompileCounter()
    model, net = compiled(Attention(), "a function", backend)
    trainer(DropoutScheduler(Linear(0.0, 0.9)), max_epochs=6).fit(model)
    assert backend.frame_count <= 3 + 4  # one for each of the first steps, then the levels
    assert net.body.attention.dropout == 0.1


def test_floats_handed_to_attention_are_refused_when_asked():
    model, _ = compiled(Attention(), "inside", CompileCounter())
    with pytest.raises(ValueError, match=r"body\.attention\.dropout: .* use compiled='levels'"):
        trainer(DropoutScheduler(Linear(0.0, 0.9), compiled="refuse")).fit(model)
    with pytest.raises(ValueError, match="use 'levels', 'hold' or 'refuse'"):
        DropoutScheduler(0.1, compiled="drop")
    with pytest.raises(ValueError, match="give 1 or more"):
        DropoutScheduler(0.1, compile_levels=0)


def test_floats_steer_freely_where_nothing_is_compiled_and_in_recurrent_networks():
    backend, seen = CompileCounter(), []
    model, _ = compiled(Block(), "inside", backend)
    model.lstm = nn.LSTM(1, 1, num_layers=2, dropout=0.1)
    inner = model.forward
    model.forward = lambda x: model.lstm(inner(x))[0]

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            seen.append(pl_module.lstm.dropout)

    trainer(DropoutScheduler(Linear(0.0, 0.8)), Look(), max_steps=8).fit(model)
    assert seen == pytest.approx([0.1 * i for i in range(8)])
    assert backend.frame_count == 1


def test_injected_dropout_is_one_graph_too():
    backend, body = CompileCounter(), Block()
    model, _ = compiled(body, "in place", backend)
    trainer(DropoutInjector(Linear(0.0, 1.0), after="body.first"), max_epochs=5).fit(model)
    assert backend.frame_count == 1 and type(body.first) is nn.Linear


def inductor(test):
    """Compiles with the real back end, whose import uses what torch itself deprecates."""
    test = pytest.mark.filterwarnings("ignore::DeprecationWarning")(test)
    return pytest.mark.slow(pytest.mark.xdist_group("inductor")(test))


class Weights(Callback):
    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == 11:
            self.at11 = torch.cat([p.detach().flatten() for p in pl_module.parameters()])


@inductor
def test_a_rate_kept_while_steered_is_bit_identical_under_inductor():
    def run(*callbacks):
        torch._dynamo.reset()
        torch.manual_seed(2)
        body = nn.Sequential(
            nn.Linear(4, 32), nn.Dropout(0.1), nn.ReLU(), nn.Linear(32, 32), nn.Dropout(0.1), nn.Linear(32, 1)
        )
        weights, backend = Weights(), CompileCounterWithBackend("inductor")
        model, _ = compiled(body, "inside", backend)
        torch.manual_seed(3)
        trainer(*callbacks, weights).fit(model)
        assert backend.frame_count == 1
        return weights.at11, torch.cat([p.detach().flatten() for p in body.parameters()])

    # the twelfth step is at 0.15, so that the tensor is read from the start, with 0.1 in it for 11 steps
    steered, end = run(DropoutScheduler(Linear(0.1, 0.2, begin=10, until=12)))
    plain, plain_end = run()
    assert torch.equal(steered, plain) and not torch.equal(end, plain_end)


@inductor
def test_built_rates_kept_are_bit_identical_under_inductor_for_every_kind():
    class Same:
        def __call__(self, step, total):
            return 1.0 if step < 10**6 else 0.5

    def run(*callbacks):
        torch._dynamo.reset()
        torch.manual_seed(2)
        body = nn.Sequential(Block(), nn.Dropout(0.1, inplace=True), nn.Dropout1d(0.1))
        model, _ = compiled(body, "inside", "inductor")
        torch.manual_seed(3)
        trainer(*callbacks).fit(model)
        return torch.cat([p.detach().flatten() for p in body.parameters()])

    assert torch.equal(run(), run(DropoutScheduler(Same(), relative=True)))


@inductor
def test_masks_follow_the_schedule_in_one_graph_under_inductor():
    class See(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.drop = nn.Dropout(0.1)
            self.channels = nn.Dropout2d(0.1)

        def forward(self, x):
            x = x.new_ones(100, 100, 2, 2) * self.scale
            return self.drop(x), self.channels(x)

    class Masks(Silent):
        def training_step(self, batch, batch_idx):
            drop, channels = self(batch[0])
            self.masks.append((drop.detach(), channels.detach()))
            return drop.mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.0)

    backend, net = CompileCounterWithBackend("inductor"), Masks(See())
    net.body.compile(backend=backend, fullgraph=True)
    trainer(DropoutScheduler(Linear(0.0, 1.0, until=39)), max_epochs=10).fit(net)
    assert backend.frame_count == 1 and len(net.masks) == 40
    for step, (drop, channels) in enumerate(net.masks):
        rate = min(1.0, step / 39)
        assert binomtest(int((drop == 0).sum()), drop.numel(), rate).pvalue > 1e-4
        dropped = (channels == 0).flatten(2)
        assert torch.equal(dropped.all(2), dropped.any(2))
        assert binomtest(int(dropped.all(2).sum()), 10_000, rate).pvalue > 1e-4
        for kept in (drop[drop != 0], channels[channels != 0]):
            torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - rate) if rate < 1 else 0.0))
