"""Programs in which one look at one step is not enough."""

import copy
import warnings

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader

from lightning_reg import Linear
from lightning_reg.callbacks import AdaptiveDropout, DropoutScheduler
from tests.callbacks.dropout_nets import Net, Validated, trainer


class Parts(Net):
    """Takes one of its parts a batch; counts what each dropped."""

    def __init__(self, body, pick):
        super().__init__(body)
        self.pick = pick
        self.scale = nn.Parameter(torch.ones(1))
        self.shares = {}

    def training_step(self, batch, batch_idx):
        part = self.pick(self, batch_idx)
        output = self.body[part](torch.ones(50, 40) * self.scale)
        self.shares.setdefault(part, []).append(float((output == 0).float().mean()))
        return output.mean()


class Own(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.drop_prob = rate

    def forward(self, x):
        return x * (torch.rand_like(x) >= self.drop_prob)


@pytest.mark.parametrize("make", [nn.Dropout, Own])
def test_sites_of_a_branch_that_the_first_batch_does_not_take(make):
    net = Parts(nn.ModuleList([make(0.5), make(0.5)]), lambda net, i: i % 2)
    scheduler = DropoutScheduler(0.2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="DropoutScheduler")
        trainer(scheduler).fit(net)
    unknown = make is Own  # the mask of the one forward that shows it was drawn at its built rate
    for shares in net.shares.values():
        assert shares[unknown:] == pytest.approx([0.2] * (6 - unknown), abs=0.05)
    assert scheduler.report.complete and [body.__class__ for body in net.body] == [make, make]


def test_a_site_of_a_later_phase_is_named_and_then_steered():
    net = Parts(nn.ModuleList([nn.Dropout(0.5), nn.Dropout(0.5)]), lambda net, i: int(net.current_epoch > 0))
    scheduler = DropoutScheduler(0.2)
    with pytest.warns(UserWarning, match=r"not reached yet: body\.1\.p"):
        trainer(scheduler).fit(net)
    assert net.shares[1] == pytest.approx([0.2] * 8, abs=0.05) and scheduler.report.complete


@pytest.mark.filterwarnings("ignore:Found . module.s. in eval mode", "ignore:DropoutScheduler")
def test_modules_in_evaluation_mode_are_named_or_turned_on():
    net = Parts(nn.ModuleList([nn.Dropout(0.5)]).eval(), lambda net, i: 0)
    with pytest.warns(UserWarning, match=r"body\.0\.p: in evaluation mode.*call body\.0\.train\(\) before"):
        trainer(DropoutScheduler(0.2, in_eval="warn"), max_epochs=1).fit(net)
    assert net.shares.pop(0) == [0.0] * 4
    trainer(DropoutScheduler(0.2, in_eval="train"), max_epochs=1).fit(net)
    assert net.shares[0] == pytest.approx([0.2] * 4, abs=0.05) and not net.body[0].training


def test_another_writer_is_noticed():
    class Writing(Net):
        def on_train_epoch_start(self):
            self.body.drop.p = 0.7

    scheduler = DropoutScheduler(0.2, select="*.drop")
    with pytest.warns(UserWarning, match=r"not steered: body\.drop\.p \(somebody else writes it, too\)"):
        trainer(scheduler, max_epochs=2).fit(Writing())


class Critic(Net):
    """Steps its critic with every batch and its generator with every fifth."""

    def __init__(self):
        super().__init__(nn.ModuleDict({"generator": self.part(), "critic": self.part()}))
        self.automatic_optimization = False
        self.seen = []

    @staticmethod
    def part():
        return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))

    def training_step(self, batch, batch_idx):
        self.seen.append([self.body[part][1].p for part in ("generator", "critic")])
        generator, critic = self.optimizers()
        loss = self.body["critic"](self.body["generator"](batch[0])).mean()
        self.manual_backward(loss)
        critic.step()
        if len(self.seen) % 5 == 1:
            generator.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.body[part].parameters(), 1e-3) for part in ("generator", "critic")]


def test_the_clock_is_that_of_the_optimizer_that_moves_the_owner():
    net = Critic()
    trainer(DropoutScheduler(Linear(0.5, 0.0)), max_epochs=5).fit(net)
    expected = [0.5 * (1 - t / 20) for t in range(20)]
    assert [critic for _, critic in net.seen] == pytest.approx(expected)
    assert [generator for generator, _ in net.seen] == pytest.approx(expected, abs=0.11)
    net = Critic()
    trainer(DropoutScheduler(Linear(0.5, 0.0, until=4)), max_epochs=5).fit(net)
    steps = [(0 if t == 0 else (t - 1) // 5 + 1, t) for t in range(20)]
    assert net.seen == [pytest.approx([0.5 * max(0.0, 1 - t / 4) for t in both]) for both in steps]


def test_steps_of_several_optimizers_go_on_after_a_checkpoint(tmp_path):
    whole, path = Critic(), tmp_path / "mid.ckpt"
    trainer(DropoutScheduler(Linear(0.5, 0.0, until=20)), max_epochs=4).fit(whole)
    half = trainer(DropoutScheduler(Linear(0.5, 0.0, until=20)), max_epochs=2)
    half.fit(Critic())
    half.save_checkpoint(path)
    net = Critic()
    net.seen = [None] * 8
    trainer(DropoutScheduler(Linear(0.5, 0.0, until=20)), max_epochs=4).fit(net, ckpt_path=path)
    assert net.seen[8:] == whole.seen[8:]


@pytest.mark.parametrize(("asked", "expected"), [("built", 0.1), ("scheduled", 0.6), (0.0, 0.0), (0.3, 0.3)])
def test_the_rate_in_evaluation(asked, expected):
    class See(Callback):
        def __init__(self):
            self.seen = set()

        def on_validation_batch_start(self, trainer, pl_module, *args):
            self.seen.add(pl_module.body.drop.p)

    see, net = See(), Validated()
    scheduler = DropoutScheduler(0.6, rate_in_eval=asked)
    trainer(scheduler, see, num_sanity_val_steps=0).fit(net)
    assert see.seen == {expected} and net.body.drop.p == 0.1
    with pytest.raises(ValueError, match="use 'built', 'scheduled' or a rate from 0 to 1"):
        DropoutScheduler(0.6, rate_in_eval="off")
    with pytest.raises(ValueError, match="use 'warn', 'train' or 'keep'"):
        DropoutScheduler(0.6, in_eval="wake")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_module_scripted_mid_run_is_as_built_and_the_run_goes_on():
    class Scripted(Net):
        def __init__(self):
            super().__init__(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3)))
            self.rates = []

        def training_step(self, batch, batch_idx):
            self.rates.append(self.body[1].p)
            return self.body(batch[0]).sum()

        def on_train_epoch_end(self):
            script = torch.jit.script(self.body)
            x = torch.randn(3, 4)
            assert torch.equal(script.eval()(x), self.body[0](x)) and script[1].p == 0.3
            self.same = type(self.body[1])

    net = Scripted()
    trainer(DropoutScheduler(Linear(0.0, 0.6))).fit(net)
    assert net.rates == pytest.approx([0.6 * t / 12 for t in range(12)])
    assert net.same is nn.Dropout and type(net.body[1]) is nn.Dropout and net.body[1].p == 0.3


class Same:
    """The built rate by a schedule that cannot be known to be constant."""

    def __call__(self, step, total):
        return 1.0 if step < 10**6 else 0.5


class Everywhere(Net):
    """Drops by known classes and by numbers of its own; takes the iterator."""

    def __init__(self):
        super().__init__()
        self.drop_prob, self.settings, self.meter = 0.2, {"dropout": 0.3, "drop_last": 1}, []

    def training_step(self, dataloader_iter):
        batch, _, _ = next(dataloader_iter)
        x = nn.functional.dropout(self.body(batch[0]), self.settings["dropout"], self.training)
        loss = (x * (torch.rand_like(x) >= self.drop_prob)).pow(2).sum()
        self.meter.append(loss.item())
        return loss


class Branches(Everywhere):
    """Takes, batch by batch, one of two branches, of a known class and of numbers of its own."""

    training_step = Net.training_step

    def __init__(self):
        super().__init__()
        self.other = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.4), Own(0.3))
        self.taken = []

    def forward(self, x):
        self.taken.append(len(self.taken) % 3 > 0)
        return self.other(x) if self.taken[-1] else self.body(x)


def test_a_schedule_of_built_rates_is_bit_identical_where_batches_take_branches():
    weights = []
    for callbacks in ([], [DropoutScheduler(Same(), relative=True)]):
        net = Branches()
        torch.manual_seed(4)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="DropoutScheduler")
            trainer(*callbacks).fit(net)
        weights.append([p.detach() for p in net.parameters()])
        assert len(net.taken) == 12
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.filterwarnings("ignore:.*`dataloader_iter`")
def test_a_schedule_of_built_rates_is_bit_identical_and_the_first_step_finds_the_module_as_built():
    found = []

    class First(Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            if not found:
                found.append(
                    {
                        name: {k: v for k, v in vars(m).items() if k != "_trainer"}
                        for name, m in pl_module.named_modules()
                    }
                )
                found.append({name: type(m) for name, m in pl_module.named_modules()})

    def run(*callbacks):
        net = Everywhere()
        torch.manual_seed(4)
        trainer(*callbacks).fit(net)
        return net

    plain = run()
    steered = run(DropoutScheduler(Same(), relative=True), First())
    assert steered.meter == plain.meter and len(plain.meter) == 12
    assert all(torch.equal(a, b) for a, b in zip(steered.parameters(), plain.parameters(), strict=True))
    attributes, types = found
    assert types == {name: type(m) for name, m in plain.named_modules()}
    for name, module in plain.named_modules():
        assert attributes[name].keys() == vars(module).keys() - {"_trainer"}
    assert type(attributes[""]["drop_prob"]) is float and attributes[""]["settings"]["drop_last"] == 1
    assert copy.copy(steered.settings) == {"dropout": 0.3, "drop_last": 1}


def test_what_a_module_logs_at_the_end_of_an_epoch_is_seen():
    class Late(Validated):
        def training_step(self, batch, batch_idx):
            return self(batch[0]).pow(2).mean()

        def on_train_epoch_end(self):
            self.log("train_loss", 0.0)

    adaptive = AdaptiveDropout(0.0, step=0.1, start=0.1)
    trainer(adaptive).fit(Late())
    assert adaptive.rate == pytest.approx(0.4)


def test_the_loader_is_read_once():
    class Counting(Net):
        def train_dataloader(self):
            self.read = []
            return DataLoader([(self.read.append(i), torch.ones(4))[1] for i in range(8)], batch_size=4)

        def training_step(self, batch, batch_idx):
            self.masks.append(batch_idx)
            return self(batch).mean()

    net = Counting()
    trainer(DropoutScheduler(0.3), max_epochs=1).fit(net)
    assert net.masks == [0, 1]
