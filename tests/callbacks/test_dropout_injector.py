import copy
import pickle

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from scipy.stats import binomtest
from torch import nn

from lightning_reg import Linear
from lightning_reg.callbacks import DropoutInjector, DropoutScheduler
from tests.callbacks.dropout_nets import Net, trainer


class Block(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.f = nn.Linear(width, width)

    def forward(self, x):
        return x + self.f(x)


def bare():
    return nn.Sequential(nn.Linear(4, 4), Block(), nn.Linear(4, 1))


class Probe(Callback):
    """What a module gives for ones, in training, during the run."""

    def __init__(self, pick, x, steps=200):
        self.pick, self.x, self.steps, self.outputs = pick, x, steps, []

    def on_train_batch_end(self, trainer, pl_module, *args):
        torch.manual_seed(trainer.global_step)
        self.outputs.append(self.pick(pl_module.body)(self.x).detach())


def _constant(module, value=1.0):
    for parameter in module.parameters():
        nn.init.constant_(parameter, value)
        parameter.requires_grad = False
    return module


@pytest.mark.parametrize(
    ("kind", "shape", "together"), [("element", (200, 100, 4), 1), ("channel", (200, 25, 4), 4)]
)
def test_values_and_channels_follow_the_schedule(kind, shape, together):
    net = Net(bare())
    _constant(net.body[0])
    probe = Probe(lambda body: body[0], torch.ones(shape))
    trainer(DropoutInjector(Linear(0.0, 0.9), after="body.0", kind=kind), probe, max_epochs=1).fit(net)
    for step, output in enumerate(probe.outputs):
        rate = 0.9 * step / 4
        groups = output.reshape(-1, together)
        dropped = (groups == 0).all(1)
        assert torch.equal(dropped, (groups == 0).any(1))
        assert binomtest(int(dropped.sum()), len(groups), rate).pvalue > 1e-3
        kept = output[output != 0]
        torch.testing.assert_close(kept, torch.full_like(kept, 5 / (1 - rate)))


class Counted(Net):
    """Counts, in the forward of each training step, the share dropped of each part that is drawn alone."""

    def __init__(self, body, x, apart):
        super().__init__(_constant(body))
        self.scale, self.x, self.apart, self.shares = nn.Parameter(torch.ones(1)), x, apart, []

    def training_step(self, batch, batch_idx):
        output = self.body(self.x) * self.scale
        self.shares.append(self.apart(output == 0).double().flatten(1).mean(1))
        return output.mean()


#: kind: (module, input, the dropped values with what is drawn alone in the first dimension)
TOGETHER = {
    "locked": (lambda: nn.Linear(1, 100, bias=False), torch.ones(40, 5, 1), lambda d: d.mT.flatten(0, 1)),
    "word": (lambda: nn.Embedding(4000, 2), torch.arange(4000), lambda d: d),
    "block": (lambda: nn.Conv2d(1, 1, 1, bias=False), torch.ones(400, 1, 12, 12), lambda d: d),
    "weight": (lambda: nn.Linear(1, 4000, bias=False), torch.ones(1, 1), lambda d: d.T),
}


@pytest.mark.parametrize("kind", TOGETHER)
def test_what_falls_together_follows_the_schedule_at_each_moment_of_a_run(kind):
    make, x, apart = TOGETHER[kind]
    net = Counted(make(), x, apart)
    trainer(DropoutInjector(Linear(0.2, 0.8), after="body", kind=kind, block_size=3), max_epochs=1).fit(net)
    for step, shares in enumerate(net.shares):
        rate, spread = 0.2 + 0.15 * step, float(shares.std()) / len(shares) ** 0.5
        assert abs(float(shares.mean()) - rate) < 5 * spread
        assert kind == "block" or set(shares.tolist()) == {0.0, 1.0}
    assert len(net.shares) == 4


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_stochastic_depth_on_residual_blocks(rate):
    net = Net(bare())
    _constant(net.body[1])
    probe = Probe(lambda body: body[1], torch.ones(5000, 4))
    trainer(DropoutInjector(rate, after=Block, kind="depth"), probe, max_steps=1).fit(net)
    [output] = probe.outputs
    residual = output - 1  # f of ones is 4 + 1
    dropped = (residual == 0).all(1)
    assert torch.equal(dropped, (residual == 0).any(1))
    assert binomtest(int(dropped.sum()), 5000, rate).pvalue > 1e-3
    kept = residual[~dropped]
    torch.testing.assert_close(kept, torch.full_like(kept, 5 / (1 - rate) if rate < 1 else 0.0))


def test_the_module_keeps_its_names_parameters_copies_and_is_put_back():
    net = Net(bare())
    keys, count = list(net.state_dict()), sum(p.numel() for p in net.parameters())
    entries = [set(m.__dict__) for m in net.body.modules()]
    seen = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            seen.append(type(pl_module.body[0]) is nn.Linear)
            assert list(pl_module.state_dict()) == keys
            assert sum(p.numel() for p in pl_module.parameters()) == count
            for twin in (copy.deepcopy(pl_module.body), pickle.loads(pickle.dumps(pl_module.body))):
                assert type(twin[0]) is nn.Linear and type(twin[1]) is Block
                assert [set(m.__dict__) for m in twin.modules()] == entries
            pl_module.eval()
            x = torch.randn(3, 4)
            assert torch.equal(pl_module.body[0](x), nn.functional.linear(x, *pl_module.body[0].parameters()))
            pl_module.train()

    trainer(DropoutInjector(0.9, after=nn.Linear), Look(), max_steps=2).fit(net)
    assert seen == [False, False]
    assert type(net.body[0]) is nn.Linear and [set(m.__dict__) for m in net.body.modules()] == entries
    failing = Net(bare(), fail_at=1)
    with pytest.raises(ArithmeticError):
        trainer(DropoutInjector(0.9, after=nn.Linear)).fit(failing)
    assert type(failing.body[0]) is nn.Linear


def test_it_takes_effect_in_training():
    def run(*callbacks):
        net = Net()
        net.body = bare()
        torch.manual_seed(1)
        for parameter in net.parameters():
            nn.init.uniform_(parameter)
        trainer(*callbacks, max_steps=1).fit(net)
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    assert not torch.equal(run(), run(DropoutInjector(0.5, after=Block)))
    assert torch.equal(run(), run(DropoutInjector(0.0, after=Block)))


def test_beside_a_scheduler():
    net = Net(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)))
    seen = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            seen.append(pl_module.body[1].p)

    callbacks = [DropoutInjector(0.2, after="body.*"), DropoutScheduler(0.5), Look()]
    trainer(*callbacks, max_steps=2).fit(net)
    assert seen == [0.5, 0.5]
    assert (type(net.body[1]), net.body[1].p, type(net.body[0])) == (nn.Dropout, 0.1, nn.Linear)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        x = self.layer(x)
        return x, x


class First(nn.Module):
    def forward(self, x):
        return x[0]


def test_tuple_outputs_and_shape_changing_blocks_are_refused_before_the_first_step():
    net = Net(nn.Sequential(Pair(), First(), nn.Linear(4, 1)))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"body\.0 \(Pair\) returns something else than one tensor"):
        trainer(DropoutInjector(0.1, after="body.0")).fit(net)
    with pytest.raises(ValueError, match=r"body\.2 turns \(4, 4\) into \(4, 1\), and stochastic depth needs"):
        trainer(DropoutInjector(0.1, after="body.2", kind="depth")).fit(net)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert type(net.body[0]) is Pair


def test_channels_are_refused_where_the_features_are_last():
    net = Net(nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Linear(2, 3), nn.Flatten(), nn.Linear(6, 1)))
    with pytest.raises(
        ValueError, match=r"body\.1 returns a tensor of shape \(4, 2, 3\) with its features last"
    ):
        trainer(DropoutInjector(0.1, after="body.1", kind="channel")).fit(net)
    net = Net(nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Conv1d(2, 3, 1), nn.Flatten(), nn.Linear(6, 1)))
    trainer(DropoutInjector(0.1, after="body.1", kind="channel"), max_steps=1).fit(net)


def test_modules_that_are_never_called_are_named():
    net = Net(bare())
    net.body[1].unused = nn.Linear(1, 1)
    with pytest.warns(UserWarning, match=r"body\.1\.unused was not called in the first epoch"):
        trainer(DropoutInjector(0.2, after="*.unused")).fit(net)


def test_bad_arguments():
    with pytest.raises(ValueError, match="between 0 and 1"):
        DropoutInjector(1.2, after="*")
    with pytest.raises(ValueError, match="use 'element', 'channel', 'depth', 'locked'"):
        DropoutInjector(0.2, after="*", kind="row")
    with pytest.raises(
        ValueError, match=r"after='encoder' matches none of the 4 modules of Net; it has body"
    ):
        net = Net(nn.Sequential(nn.Linear(4, 1), nn.ReLU(), nn.Identity()))
        trainer(DropoutInjector(0.2, after="encoder")).fit(net)
    with pytest.raises(TypeError, match="after=3 is not understood"):
        trainer(DropoutInjector(0.2, after=3)).fit(Net(bare()))
    net = Net(bare())
    net.body[0].forward = net.body[0].forward
    with pytest.raises(ValueError, match=r"body\.0 has a forward of its own on the instance"):
        trainer(DropoutInjector(0.2, after="body.0")).fit(net)
