"""Group penalties on a Trainer."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import GroupLasso
from lightning_reg.callbacks import (
    GroupLassoPenaltyCallback,
    PenaltyCallback,
    SparseGroupLassoPenaltyCallback,
)
from tests.turns import everyday


class Net(LightningModule):
    def __init__(self, optimizer="adam", lr=0.02):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 1))
        self.optimizer, self.lr = optimizer, lr

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def configure_optimizers(self):
        if self.optimizer == "adam":
            return torch.optim.Adam(self.parameters(), lr=self.lr)
        groups = [{"params": self.net[0].parameters(), "lr": self.lr}, {"params": self.net[2].parameters()}]
        return torch.optim.SGD(groups, lr=self.lr / 2, momentum=0.9)


def fit(callbacks, epochs=60, **kwargs):
    torch.manual_seed(1)
    x = torch.randn(64, 6)
    y = x[:, :1] - x[:, 1:2].relu()
    module = Net(**kwargs)
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=32))
    return module


def dead_rows(weight):
    return int((weight.abs().sum(1) == 0).sum())


@pytest.mark.parametrize("optimizer", everyday(1, ["adam", "sgd"]))
def test_whole_units_become_exactly_zero_and_gradient_makes_none(optimizer):
    select = "net.0.weight"
    module = fit([GroupLassoPenaltyCallback(0.02, select, apply="proximal")], optimizer=optimizer)
    assert 0 < dead_rows(module.net[0].weight) < 12
    module = fit([GroupLassoPenaltyCallback(0.02, select)], epochs=5, optimizer=optimizer)
    assert dead_rows(module.net[0].weight) == 0


@pytest.mark.slow
def test_columns_drop_inputs_and_sparse_groups_have_zeros_inside():
    module = fit([GroupLassoPenaltyCallback(0.03, "net.0.weight", groups="columns", apply="proximal")])
    weight = module.net[0].weight
    assert weight[:, :2].any() and not weight[:, 2:].any()  # the target needs inputs 0 and 1
    module = fit([SparseGroupLassoPenaltyCallback(0.02, "net.0.weight", apply="proximal")])
    weight = module.net[0].weight
    live = weight[weight.abs().sum(1) > 0]
    assert 0 < dead_rows(weight) < 12 and bool((live == 0).any())


def test_strength_zero_is_bit_identical_to_no_callback():
    plain = fit([], epochs=3)
    for apply in ("gradient", "loss", "decoupled", "proximal"):
        with_zero = fit([GroupLassoPenaltyCallback(0.0, apply=apply)], epochs=3)
        for a, b in zip(plain.parameters(), with_zero.parameters(), strict=True):
            assert torch.equal(a, b)


def test_gradient_is_what_the_loss_does():
    one, two = (fit([GroupLassoPenaltyCallback(0.01, apply=a)], epochs=3) for a in ("gradient", "loss"))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_groups_that_a_layer_lacks_are_refused_at_fit_start():
    with pytest.raises(ValueError, match=r"net.0.weight belongs to Linear"):
        fit([GroupLassoPenaltyCallback(0.01, groups="filters")], epochs=1)


def test_frozen_tensors_are_left_alone_and_tied_ones_count_once():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].weight = module[0].weight
    torch.testing.assert_close(GroupLasso(1.0)(module), 2 * module[0].weight.norm(dim=1).sum())
    module[0].weight.requires_grad_(False)
    assert float(GroupLasso(1.0)(module)) == 0.0


def test_an_average_of_weights_has_the_zeros_of_the_live_model():
    callbacks = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging")  # lightning 2.6
    averaging = callbacks.WeightAveraging(avg_fn=lambda average, new, n: average + (new - average) * 0.05)
    penalty = GroupLasso(0.03, "net.0.weight", groups="columns")
    module = fit([PenaltyCallback(penalty, apply="proximal"), averaging])
    averaged = module.net[0].weight.detach()  # WeightAveraging puts the average in at the end
    assert not averaged[:, 2:].any() and averaged[:, :2].all()
