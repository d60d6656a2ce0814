import pytest
import torch
from lightning.pytorch.callbacks import Callback, LearningRateFinder, ModelCheckpoint

from lightning_reg.callbacks import AdaptiveDropout
from lightning_reg.dropout.adaptive import GapControl, GapState
from tests.callbacks.dropout_nets import Net, Validated, rates, trainer


def test_steps_by_hand_with_hysteresis():
    control = GapControl(target=0.0, band=0.5, step=0.1, low=0.0, high=0.3)
    state, seen = GapState(0.1), []
    for gap in (0.4, 0.6, 0.4, 0.1, -0.1, -0.4, -0.6, -0.1, 0.2, float("nan"), -9, -9):
        state = control.next(state, gap)
        seen.append((round(state.rate, 12), state.moving))
    assert seen == [
        (0.1, 0),  # within the band: at rest
        (0.2, 1),  # outside: up
        (0.3, 1),  # within the band again, but not yet across the target
        (0.3, 1),  # at the bound
        (0.3, 0),  # across: at rest
        (0.3, 0),
        (0.2, -1),
        (0.1, -1),
        (0.1, 0),
        (0.1, 0),  # NaN changes nothing
        (0.0, -1),
        (0.0, -1),
    ]


class Watch(Callback):
    def __init__(self):
        self.seen = []

    def on_train_epoch_start(self, *args):
        self.starts = True

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.seen.append(round(pl_module.body.drop.p, 12))


def make(gap=1.0):
    net = Validated()
    net.gap = gap
    return net


@pytest.mark.parametrize(("gap", "seen"), [(1.0, [0.1, 0.2, 0.3, 0.3]), (-1.0, [0.1, 0.05, 0.05, 0.05])])
def test_the_rate_follows_the_gap_within_bounds(gap, seen):
    watch, net = Watch(), make(gap)
    adaptive = AdaptiveDropout(0.0, start=0.1, low=0.05, high=0.3, step=0.1, hysteresis=0.2)
    trainer(adaptive, watch, max_epochs=4).fit(net)
    assert watch.seen == seen
    assert rates(net) == {"drop": 0.1, "attention": 0.2, "lstm": 0.3}


def test_it_looks_only_after_a_validation():
    watch = Watch()
    trainer(AdaptiveDropout(0.0, step=0.1), watch, max_epochs=5, check_val_every_n_epoch=2).fit(make())
    assert watch.seen == [0.1, 0.1, 0.2, 0.2, 0.3]


def test_resumed_is_bit_identical_to_uninterrupted(tmp_path):
    class Reseed(Callback):
        def on_train_batch_start(self, trainer, *args):
            torch.manual_seed(trainer.global_step)

    def run(net, watch, epochs, ckpt_path=None, adaptive=None):
        adaptive = adaptive or AdaptiveDropout(0.0, step=0.1, high=0.9)
        save = ModelCheckpoint(tmp_path, filename="mid-{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        settings = dict(max_epochs=epochs, enable_checkpointing=True)
        trainer(Reseed(), adaptive, watch, save, **settings).fit(net, ckpt_path=ckpt_path)
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    whole, watch = run(make(), Watch(), 4), Watch()
    resumed = run(make(), watch, 4, tmp_path / "mid-epoch=1.ckpt")
    assert watch.seen == [0.3, 0.4]
    assert torch.equal(whole, resumed)
    used, watch = AdaptiveDropout(0.0, step=0.1, high=0.9), Watch()
    trainer(used, max_epochs=5).fit(make())
    assert torch.equal(whole, run(make(), watch, 4, tmp_path / "mid-epoch=1.ckpt", used))
    assert watch.seen == [0.3, 0.4]
    saved = torch.load(tmp_path / "mid-epoch=1.ckpt", weights_only=True)["callbacks"]
    [state] = [value for key, value in saved.items() if key.startswith("AdaptiveDropout")]
    assert state == {"rate": pytest.approx(0.3), "moving": 1, "validated": False}


@pytest.mark.filterwarnings("ignore:.*can be problematic")
@pytest.mark.parametrize("order", [None, 1, -1])
def test_a_second_run_begins_at_the_start_whatever_the_first_one_ended_with(tmp_path, order):
    """Also beside a search, before or after it in the list, which saves and restores a checkpoint."""
    adaptive, watch = AdaptiveDropout(0.0, step=0.1, high=0.9), Watch()

    class Ended(Callback):
        def on_train_end(self, trainer, *args):
            adaptive._validated = True  # as when the run ended between a validation and the epoch's end

    trainer(adaptive, watch, Ended()).fit(make())
    second = [adaptive]
    if order is not None:
        second = [adaptive, LearningRateFinder(num_training_steps=4, attr_name="lr")][::order]
    net, watch = make(), Watch()
    net.lr = 1e-2
    trainer(*second, watch, default_root_dir=tmp_path, max_epochs=4, check_val_every_n_epoch=2).fit(net)
    assert watch.seen[-4:] == [0.1, 0.1, 0.2, 0.2]


def test_the_same_trainer_goes_on_where_it_was():
    adaptive, watch = AdaptiveDropout(0.0, step=0.1, high=0.9), Watch()
    t, net = trainer(adaptive, watch, max_epochs=2), make()
    t.fit(net)
    t.validate(net, verbose=False)
    t.fit_loop.max_epochs = 4
    t.fit(net)
    assert watch.seen == [0.1, 0.2, 0.3, 0.4]
    trainer(adaptive).validate(net, verbose=False)
    assert adaptive.rate == pytest.approx(0.5)


def test_two_instances_have_two_states():
    first = AdaptiveDropout(0.0, select="*.drop")
    second = AdaptiveDropout(0.0, select="*.lstm")
    assert first.state_key != second.state_key
    trainer(first, second, max_epochs=1).fit(make())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(low=0.5, high=0.5), "no range of rates"),
        (dict(high=1.5), "no range of rates"),
        (dict(step=0.0), "no change of a rate"),
        (dict(hysteresis=-1.0), "not a finite number of 0 or more"),
        (dict(target=float("nan")), "give the gap you want"),
        (dict(start=0.9), r"start=0.9 is outside \[0.0, 0.5\]"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveDropout(**({"target": 0.0} | arguments))


def test_a_metric_that_is_not_logged():
    with pytest.raises(ValueError, match=r"looks at loss, which is not logged; .* name one of .*val_loss"):
        trainer(AdaptiveDropout(0.0, train="loss"), max_epochs=1).fit(make())
    trainer(AdaptiveDropout(0.0, train="loss"), max_epochs=1).fit(Net())  # never validated, never looked
