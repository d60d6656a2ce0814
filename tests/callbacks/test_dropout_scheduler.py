import copy
import io
import pickle

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import Constant, Linear
from lightning_reg.callbacks import AdaptiveDropout, DropoutInjector, DropoutScheduler
from lightning_reg.dropout import ByDepth
from lightning_reg.dropout.steering import RATE_AFTER
from tests.callbacks.dropout_nets import Body, Net, Validated, rates, trainer

BUILT = {"drop": 0.1, "attention": 0.2, "lstm": 0.3}


class Watch(Callback):
    """Records what a training step is about to see; last in the list, so after the schedulers."""

    def __init__(self):
        self.seen, self.evaluated, self.classes = [], [], set()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(rates(pl_module))
        self.classes.add(type(pl_module.body.drop) is nn.Dropout)

    def on_validation_batch_start(self, trainer, pl_module, *args):
        self.evaluated.append(rates(pl_module))


def test_every_site_follows_the_schedule_and_everything_is_put_back():
    net, watch = Net(), Watch()
    before = {name: set(m.__dict__) for name, m in net.named_modules()}
    trainer(DropoutScheduler(Linear(0.0, 0.6)), watch).fit(net)
    expected = [0.6 * step / 12 for step in range(12)]
    for name in BUILT:
        assert [seen[name] for seen in watch.seen] == pytest.approx(expected)
    assert rates(net) == BUILT
    assert type(net.body.drop) is nn.Dropout and type(net.body.attention) is nn.MultiheadAttention
    after = {name: set(m.__dict__) - {"_fabric"} for name, m in net.named_modules()}
    assert all(after[name] - before[name] == set() for name in before if name)


def test_relative_rates_stay_in_proportion():
    watch = Watch()
    trainer(DropoutScheduler(Linear(0.0, 2.0), relative=True), watch).fit(Net())
    for step, seen in enumerate(watch.seen):
        assert seen == pytest.approx({name: built * 2 * step / 12 for name, built in BUILT.items()})


def test_a_profile_by_depth():
    body = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(4, 4), nn.Dropout(0.1))])
    seen = []

    class See(Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            seen.append([pl_module.body[i].p for i in (1, 3, 5, 7)])

    trainer(DropoutScheduler(ByDepth(Linear(0.4, 0.0, until=4))), See(), max_steps=2).fit(Net(body))
    assert seen[0] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert seen[1] == pytest.approx([0.075, 0.15, 0.225, 0.3])


def test_two_schedulers_on_disjoint_selections():
    watch = Watch()
    trainer(
        DropoutScheduler(0.5, select="*.drop"), DropoutScheduler(Linear(0.0, 0.6), select="*.lstm"), watch
    ).fit(Net())
    assert watch.seen[6] == pytest.approx({"drop": 0.5, "attention": 0.2, "lstm": 0.3})


def test_overlapping_schedulers_are_refused_and_the_module_is_as_built():
    net = Net()
    with pytest.raises(ValueError, match=r"body\.drop\.p would be steered by two callbacks.*disjoint"):
        trainer(DropoutScheduler(0.5), DropoutScheduler(0.1, select=nn.Dropout)).fit(net)
    assert rates(net) == BUILT and type(net.body.drop) is nn.Dropout


def test_built_rates_and_classes_are_back_after_an_exception():
    net, watch = Net(fail_at=5), Watch()
    with pytest.raises(ArithmeticError):
        trainer(DropoutScheduler(Linear(0.2, 0.6)), watch).fit(net)
    assert watch.seen[5]["drop"] == pytest.approx(0.2 + 0.4 * 5 / 12)
    assert rates(net) == BUILT and type(net.body.drop) is nn.Dropout


def test_evaluation_sees_the_built_rates():
    net, watch = Validated(), Watch()
    trainer(DropoutScheduler(0.6), watch, val_check_interval=2).fit(net)
    assert watch.evaluated and all(seen == BUILT for seen in watch.evaluated)
    assert all(seen["drop"] == 0.6 for seen in watch.seen)


def _weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def _fit(net, *callbacks, **kwargs):
    torch.manual_seed(3)
    trainer(*callbacks, **kwargs).fit(net)
    return _weights(net)


class Same:
    """The built rate by a schedule that cannot be known to be constant."""

    def __call__(self, step, total):
        return 1.0 if step < 10**6 else 0.5


@pytest.mark.parametrize("make", [lambda: 1.0, lambda: Constant(1.0), Same, lambda: Linear(1.0, 1.0)])
def test_built_rates_kept_are_bit_identical_to_no_callback(make):
    assert torch.equal(_fit(Net()), _fit(Net(), DropoutScheduler(make(), relative=True)))


def test_a_rate_kept_while_steered_is_bit_identical_to_no_callback():
    class After11(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.global_step == 11:
                self.weights = _weights(pl_module)

    def run(*callbacks):
        after, watch = After11(), Watch()
        return _fit(Net(), *callbacks, after, watch), after.weights, watch.classes

    # the twelfth step is at 0.15, so that the site is taken from the start, at its built rate for 11 steps
    steered = run(DropoutScheduler(Linear(0.1, 0.2, begin=10, until=12), select="*.drop"))
    plain = run()
    assert (steered[2], plain[2]) == ({False}, {True})
    assert torch.equal(steered[1], plain[1]) and not torch.equal(steered[0], plain[0])


def test_a_site_at_its_built_rate_throughout_is_left_alone():
    watch = Watch()
    _fit(Net(), DropoutScheduler(Same(), relative=True), watch)
    assert watch.classes == {True}


def test_the_callback_draws_no_random_number():
    states = []

    class State(Callback):
        def on_train_batch_start(self, *args):
            states.append(torch.get_rng_state())

    _fit(Net(nn.Linear(4, 1)), State(), max_steps=2)
    _fit(
        Net(nn.Sequential(nn.Linear(4, 1), nn.Dropout(0.0))),
        DropoutScheduler(Linear(0.0, 0.0), select="all"),
        State(),
        max_steps=2,
    )
    assert all(torch.equal(a, b) for a, b in zip(states[:2], states[2:], strict=True))


def test_resumed_is_bit_identical_to_uninterrupted(tmp_path):
    def make():
        return DropoutScheduler(Linear(0.0, 0.6, until=12))

    class Reseed(Callback):  # the random state of torch is no part of Lightning's checkpoints
        def on_train_batch_start(self, trainer, *args):
            torch.manual_seed(trainer.global_step)

    whole = _fit(Net(), Reseed(), make())
    save = ModelCheckpoint(tmp_path, filename="mid", every_n_epochs=1, save_top_k=1)
    _fit(Net(), Reseed(), make(), save, max_epochs=2, enable_checkpointing=True)
    net = Net()
    torch.manual_seed(9)
    trainer(Reseed(), make(), save, enable_checkpointing=True).fit(net, ckpt_path=tmp_path / "mid.ckpt")
    assert torch.equal(_weights(net), whole)
    assert not torch.equal(_fit(Net(), Reseed()), whole)


class Config:
    def __init__(self):
        self.layerdrop = 0.2


class Configured(LightningModule):
    """Rates on a configuration and in the hyper-parameters, both saved in checkpoints."""

    def __init__(self, config, dropout=0.1, backbone=None):
        super().__init__()
        self.save_hyperparameters()
        self.config = config
        self.backbone = backbone
        self.layer = nn.Linear(4, 4)

    def training_step(self, batch, batch_idx):
        x = batch[0]
        if not torch.rand([]) < self.config.layerdrop:
            x = self.layer(x)
        if self.backbone is not None:
            x = self.backbone(x)
        return nn.functional.dropout(x, self.hparams.dropout, self.training).sum() + self.layer.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-2)

    train_dataloader = Net.train_dataloader


@pytest.mark.filterwarnings("ignore:Attribute 'backbone' is an instance of `nn.Module`")
def test_checkpoints_mid_run_hold_the_built_rates(tmp_path):
    seen = []

    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            seen.append((pl_module.config.layerdrop, pl_module.hparams.dropout, pl_module.backbone.p))
            trainer.save_checkpoint(tmp_path / "mid.ckpt")

    net = Configured(Config(), 0.1, nn.Dropout(0.3))
    trainer(DropoutScheduler(0.5), Save(), max_steps=2).fit(net)
    assert seen == [(0.2, 0.1, 0.5), (0.5, 0.5, 0.5)]  # written once they were seen to be rates
    saved = torch.load(tmp_path / "mid.ckpt", weights_only=False)["hyper_parameters"]
    assert (saved["config"].layerdrop, saved["dropout"], saved["backbone"].p) == (0.2, 0.1, 0.3)
    assert type(saved["backbone"]) is nn.Dropout and type(saved["dropout"]) is float
    assert (net.config.layerdrop, net.hparams.dropout, net.backbone.p) == (0.2, 0.1, 0.3)
    assert type(net.config.layerdrop) is float


def test_checkpoints_load_with_weights_only_and_carry_no_trace(tmp_path):
    class Plain(Net):
        def __init__(self, dropout=0.1):
            super().__init__(nn.Linear(4, 1))
            self.save_hyperparameters()

        def training_step(self, batch, batch_idx):
            return nn.functional.dropout(self(batch[0]), self.hparams.dropout, self.training).sum()

    paths = []
    for callbacks in ([], [DropoutScheduler(Linear(0.1, 0.5))]):
        t = trainer(*callbacks, max_steps=2)
        t.fit(Plain())
        paths.append(tmp_path / f"{len(paths)}.ckpt")
        t.save_checkpoint(paths[-1])
    plain, steered = (torch.load(path, weights_only=True) for path in paths)
    assert steered["hyper_parameters"] == {"dropout": 0.1} == plain["hyper_parameters"]
    assert steered["callbacks"] == plain["callbacks"] == {}
    assert steered["state_dict"].keys() == plain["state_dict"].keys()


def test_a_module_copied_or_pickled_mid_run_is_as_built():
    twins = []

    class Copy(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            buffer = io.BytesIO()
            torch.save(pl_module.body, buffer)
            buffer.seek(0)
            twins.extend([copy.deepcopy(pl_module).body, pickle.loads(pickle.dumps(pl_module.body))])
            twins.append(torch.load(buffer, weights_only=False))
            twins.append(copy.deepcopy(trainer.callbacks[0]))

    net = Net()
    scheduler = DropoutScheduler(0.5)
    trainer(scheduler, Copy(), max_steps=1).fit(net)
    for twin in twins[:3]:
        assert (twin.drop.p, twin.attention.dropout, twin.lstm.dropout) == (0.1, 0.2, 0.3)
        assert type(twin.drop) is nn.Dropout and type(twin.lstm) is nn.LSTM
        twin(torch.ones(2, 4))
    assert twins[3]._engine is None and repr(pickle.loads(pickle.dumps(scheduler))) == repr(scheduler)


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan"), float("inf"), "0.1x"])
def test_bad_rates_are_refused_at_construction(rate):
    with pytest.raises(ValueError, match="a dropout rate is a finite number, between 0 and 1"):
        DropoutScheduler(rate)


def test_bad_schedules_are_refused_at_fit_start():
    with pytest.raises(ValueError, match=r"the dropout rate at step 6 is 1.02.* between 0 and 1"):
        trainer(DropoutScheduler(Linear(0.9, 1.14))).fit(Net())
    with pytest.raises(ValueError, match=r"at step 0 is 4\.0"):  # 4 times 0.3 is above 1
        trainer(DropoutScheduler(4.0, relative=True)).fit(Net())


def test_a_module_that_drops_nowhere_is_refused():
    net = Net(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    with pytest.raises(
        ValueError, match=r"Net has no place that drops: it has 1 Linear, 1 ReLU; .*DropoutInjector"
    ):
        trainer(DropoutScheduler(0.1)).fit(net)
    with pytest.raises(ValueError, match=r"select='encoder.\*' matches none of the 3 dropout sites of Net"):
        trainer(DropoutScheduler(0.1, select="encoder.*")).fit(Net())


def test_numbers_that_nothing_reads_stay_and_are_told():
    net = Net(nn.Linear(4, 1))
    net.body.drop_rate = 0.5
    scheduler = DropoutScheduler(0.1)
    with pytest.warns(UserWarning, match=r"after the first epoch\nnot used as rates: body\.drop_rate"):
        trainer(scheduler).fit(net)
    assert net.body.drop_rate == 0.5 and scheduler.report.unread == ["body.drop_rate"]


def test_logs(tmp_path):
    logger = CSVLogger(tmp_path)
    t = trainer(
        DropoutScheduler(Linear(0.0, 0.6)),
        DropoutInjector(0.1, "body.last"),
        logger=logger,
        log_every_n_steps=4,
    )
    t.fit(Net())
    lines = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text()
    assert "dropout/all" in lines and "dropout/injected" in lines
    assert float(t.callback_metrics["dropout/all"]) == pytest.approx(0.55)
    assert DropoutScheduler(0.1, select=["a.*", "!b"]).name == "a.*,!b"
    assert DropoutScheduler(0.1, select=nn.Dropout, name="mine").name == "mine"


def test_literal_dropout_is_reported():
    class Literal(Net):
        def training_step(self, batch, batch_idx):
            return nn.functional.dropout(self(batch[0]), 0.1).sum()

    scheduler = DropoutScheduler(0.2)
    with pytest.warns(UserWarning, match=r"without a rate: the root \(Literal\): dropout with a rate of 0.1"):
        trainer(scheduler, max_steps=1).fit(Literal())
    assert scheduler.report.randomness == ["the root (Literal): dropout with a rate of 0.1 in the code"]


def test_manual_optimization():
    class Manual(Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.steps = 0

        def training_step(self, batch, batch_idx):
            self.steps += 1
            first, second = self.optimizers()
            for optimizer in (first, second):
                self.toggle_optimizer(optimizer)
                loss = self(batch[0]).pow(2).mean()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
                self.untoggle_optimizer(optimizer)
            self.log("loss", loss)

        def configure_optimizers(self):
            return [torch.optim.Adam(p) for p in (self.body.first.parameters(), self.body.last.parameters())]

    watch, net = Watch(), Manual()
    plain = _fit(Manual())
    assert torch.equal(_fit(net, DropoutScheduler(Same(), relative=True)), plain) and net.steps == 12
    trainer(DropoutScheduler(Linear(0.0, 0.6)), watch).fit(Manual())
    assert [seen["drop"] for seen in watch.seen] == pytest.approx([0.6 * 2 * i / 24 for i in range(12)])


class Preparing(Validated):
    """Makes, in its own hook, what its training step uses."""

    calls = 0

    def on_train_batch_start(self, batch, batch_idx):
        self.calls += 1
        self.log("calls", float(self.calls))
        self.optimizers().param_groups[0]["lr"] *= 0.9
        self.scale = batch[0].mul_(2.0).mean() + self.calls

    def training_step(self, batch, batch_idx):
        return self(batch[0]).pow(2).mean() * self.scale


@pytest.mark.parametrize(
    "make",
    [
        lambda: DropoutScheduler(Same(), relative=True),
        lambda: DropoutInjector(0.0, after="body.last"),
        lambda: AdaptiveDropout(0.0, select="*.drop", train="calls", step=1e-9),
    ],
)
def test_the_modules_own_hook_runs_once_a_step(make):
    net, plain = Preparing(), Preparing()
    assert torch.equal(_fit(net, make(), max_epochs=1), _fit(plain, max_epochs=1))
    assert net.calls == plain.calls == 4


def test_learning_rates_can_be_read_in_manual_optimization():
    class Manual(Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def on_train_batch_start(self, batch, batch_idx):
            [self.lr] = self.lr_schedulers().get_last_lr()

        def training_step(self, batch, batch_idx):
            (self(batch[0]).mean() * self.lr).backward()
            self.optimizers().step()
            self.lr_schedulers().step()

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), 0.1)
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

    assert torch.equal(_fit(Manual(), DropoutScheduler(Same(), relative=True)), _fit(Manual()))


def test_a_module_that_skips_its_first_epoch():
    class Skipping(Net):
        def on_train_batch_start(self, batch, batch_idx):
            self.drawn = torch.rand([])
            return -1 if self.current_epoch == 0 else None

    watch = Watch()
    trainer(DropoutScheduler(0.5), watch).fit(Skipping())
    assert [seen["drop"] for seen in watch.seen] == [0.5] * 9


class Lazy(Validated):
    """Has no shapes before its first batch."""

    def __init__(self):
        super().__init__(
            nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Dropout(0.1), nn.LazyLinear(1))
        )


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_what_follows_a_lazy_module_waits_for_its_shape_and_nothing_else_does():
    def run(*callbacks, **kwargs):
        net, seen = Lazy(), []

        class Look(Callback):
            def on_train_batch_start(self, trainer, pl_module, *args):
                seen.append((pl_module.body[2].p, pl_module.body[0].__dict__.get(RATE_AFTER)))

        trainer(*callbacks, Look(), max_steps=3, **kwargs).fit(net)
        assert repr(net.body[0]) == "Linear(in_features=4, out_features=4, bias=True)"
        assert type(net.body[0]) is nn.Linear
        return seen

    def both():
        return DropoutScheduler(0.5), DropoutInjector(0.2, after="body.0")

    message = r"nothing is dropped until a batch has given body\.0\.weight, body\.0\.bias of Lazy a shape"
    with pytest.warns(UserWarning, match=message) as record:
        steered = run(*both(), num_sanity_val_steps=0)
    assert steered == [(0.5, None), (0.5, 0.2), (0.5, 0.2)]
    assert len([w for w in record if "nothing is dropped" in str(w.message)]) == 1
    assert run(*both()) == [(0.5, 0.2)] * 3  # the sanity check has given them shapes


def test_the_batch_is_left_alone():
    class Taking(Net):
        def training_step(self, batch, batch_idx):
            x = batch.pop("x")
            loss = self(x.clone()).pow(2).mean()
            x.zero_()
            return loss

        def train_dataloader(self):
            return DataLoader([{"x": x} for x in torch.linspace(-1, 1, 64).view(16, 4)], batch_size=4)

    assert torch.equal(_fit(Taking(), DropoutScheduler(Same(), relative=True)), _fit(Taking()))


def test_steps_are_optimizer_steps_under_accumulation():
    watch = Watch()
    trainer(DropoutScheduler(Linear(0.0, 0.6)), watch, accumulate_grad_batches=2).fit(Net())
    assert [seen["drop"] for seen in watch.seen] == pytest.approx([0.6 * (i // 2) / 6 for i in range(12)])


def test_activation_checkpointing_recomputes_with_the_rate_of_the_step():
    class Checkpointed(Body):
        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)

    def make(body):
        torch.manual_seed(5)
        return Net(body())

    schedule = Linear(0.0, 0.9)
    assert torch.equal(
        _fit(make(Checkpointed), DropoutScheduler(schedule)), _fit(make(Body), DropoutScheduler(schedule))
    )


def test_the_same_callback_fits_twice():
    scheduler, watch = DropoutScheduler(Linear(0.0, 0.6)), Watch()
    for _ in range(2):
        trainer(scheduler, watch).fit(Net())
    assert watch.seen[:12] == watch.seen[12:]


def test_a_run_without_an_end_needs_positions_in_steps():
    with pytest.raises(ValueError, match="this run has no known length"):
        trainer(DropoutScheduler(Linear(0.0, 0.5)), max_epochs=-1).fit(Net())
    trainer(DropoutScheduler(Linear(0.0, 0.5, until=2)), max_epochs=-1, max_time="00:00:00:01").fit(Net())


def test_a_trainer_of_the_other_namespace():
    pytorch_lightning = pytest.importorskip("pytorch_lightning")

    class Other(pytorch_lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.drop, self.layer = nn.Dropout(0.1), nn.Linear(4, 1)
            self.seen = []

        def training_step(self, batch, batch_idx):
            self.seen.append(self.drop.p)
            return self.layer(self.drop(batch[0])).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 1e-3)

        def train_dataloader(self):
            return DataLoader(TensorDataset(torch.ones(8, 4)), batch_size=2)

    net = Other()
    settings = dict(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    pytorch_lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, callbacks=[DropoutScheduler(Linear(0.0, 0.4))], **settings
    ).fit(net)
    assert net.seen == pytest.approx([0.0, 0.1, 0.2, 0.3]) and net.drop.p == 0.1
