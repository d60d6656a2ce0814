"""Rates in evaluation, dropout that is always on, and the report in the monitor."""

import warnings

import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import Callback
from torch import nn

from lightning_reg import Linear, schedule_dropout
from lightning_reg.callbacks import DropoutScheduler, RegularizationMonitor
from tests.callbacks.dropout_nets import Net, Validated, trainer


class Everywhere(Validated):
    def test_step(self, batch, batch_idx):
        return self(batch[0]).mean()

    def predict_step(self, batch, batch_idx):
        return self(batch[0])


class Rates(Callback):
    """The rate seen by each loop."""

    def __init__(self):
        self.seen = {}

    def see(self, loop, module):
        self.seen[loop] = round(module.body.drop.p, 3)

    def on_validation_batch_start(self, trainer, module, *args):
        self.see("validate", module)

    def on_test_batch_start(self, trainer, module, *args):
        self.see("test", module)

    def on_predict_batch_start(self, trainer, module, *args):
        self.see("predict", module)


@pytest.mark.parametrize(("asked", "expected"), [("built", 0.1), ("scheduled", 0.45), (0.0, 0.0), (0.3, 0.3)])
def test_validation_test_and_prediction_after_fit_have_the_rate_asked_for(asked, expected):
    net, see = Everywhere(), Rates()
    run = trainer(DropoutScheduler(Linear(0.0, 0.6), rate_in_eval=asked), see, max_epochs=1)
    run.fit(net)
    data = net.train_dataloader()
    for loop in (run.validate, run.test, run.predict):
        loop(net, data)
        assert (net.body.drop.p, type(net.body.drop)) == (0.1, nn.Dropout)
    assert see.seen == dict.fromkeys(["validate", "test", "predict"], expected)


class Attention(nn.Module):
    """Hands over its rate whatever the mode."""

    def __init__(self):
        super().__init__()
        self.dropout_rate = 0.5

    def forward(self, x):
        x = x[None, None]
        return nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=self.dropout_rate)[0, 0]


def attending():
    return Validated(nn.Sequential(nn.Linear(4, 4), Attention()))


def said(net, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(DropoutScheduler(0.2, **options), max_epochs=2, num_sanity_val_steps=0).fit(net)
    return [str(one.message) for one in caught if "dropout is on in validation" in str(one.message)]


def test_attention_that_is_always_on_is_named_once_at_the_first_validation():
    [message] = said(attending())
    assert "body.1 (Attention), by scaled_dot_product_attention" in message
    assert said(attending(), rate_in_eval=0) == said(Validated()) == []


def test_a_rate_of_0_in_evaluation_makes_validation_certain():
    net = attending()
    outputs = []

    class See(Callback):
        def on_validation_batch_end(self, trainer, module, outputs_, batch, *args):
            if trainer.current_epoch == 1:  # seen to be a rate in the first epoch
                outputs.append(torch.equal(module(batch[0]), module(batch[0])))

    trainer(DropoutScheduler(0.2, rate_in_eval=0), See(), max_epochs=2).fit(net)
    assert outputs and all(outputs)


def test_the_monitor_prints_what_became_of_each_place(capsys):
    net = Net(nn.Sequential(nn.Linear(4, 100), nn.Dropout(0.1), nn.Linear(100, 1)))
    net.spare = nn.Dropout(0.4)
    with pytest.warns(UserWarning, match="not reached yet: spare.p"):
        trainer(DropoutScheduler(0.5), RegularizationMonitor(), max_epochs=1).fit(net)
    printed = " ".join(capsys.readouterr().out.split())
    assert "DropoutScheduler(0.5, select='built', relative=False) steered: body.1.p (dropped 0." in printed
    assert "not reached yet: spare.p" in printed


def test_other_rates_meanwhile_in_a_plain_loop():
    net = nn.Sequential(nn.Dropout(0.5))
    handle = schedule_dropout(net, Linear(0.0, 0.8), total_steps=4)
    handle.step()
    for asked, expected in (("built", 0.5), ("scheduled", 0.2), (0.0, 0.0)):
        with handle.evaluation(asked):
            assert net[0].p == pytest.approx(expected)
        assert net[0].p == pytest.approx(0.2)
    with pytest.raises(ValueError, match="rate_in_eval='off'"), handle.evaluation("off"):
        pass
    handle.remove()


@pytest.mark.parametrize("wrapped_first", [False, True])
def test_fabric(wrapped_first):
    torch.manual_seed(0)
    fabric = Fabric(accelerator="cpu", devices=1)
    net = nn.Sequential(nn.Linear(4, 1000), nn.Dropout(0.1))
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    model, optimizer = fabric.setup(net, optimizer)
    handle = schedule_dropout(model if wrapped_first else net, Linear(0.0, 0.8), total_steps=4)
    shares = []
    for _ in range(4):
        output = model(torch.ones(8, 4))
        shares.append(float((output == 0).float().mean()))
        fabric.backward(output.sum())
        optimizer.step()
        handle.step()
    assert shares == [pytest.approx(0.2 * i, abs=0.03) for i in range(4)]
    assert [name for name, *_ in handle.report().steered] == ["1.p"]
    handle.remove()
    assert (net[1].p, type(net[1])) == (0.1, nn.Dropout)
