"""Averages of weights keep the zeros of the live model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_reg import L1
from lightning_reg.apply import Term
from lightning_reg.callbacks import L1PenaltyCallback
from lightning_reg.hosts.averages import AveragesKeepZeros, give_zeros_


class Net(BoringModel):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


def fit(*callbacks: Callback, epochs: int = 4) -> Net:
    torch.manual_seed(0)
    net = Net()
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        accelerator="cpu",
        enable_model_summary=False,
        limit_val_batches=0,
        limit_train_batches=16,
        log_every_n_steps=100,
        **quiet,
    ).fit(net)
    return net


def test_an_average_is_given_zeros() -> None:
    live, averaged = nn.Linear(3, 2), nn.Linear(3, 2)
    live.weight.data[0, 1] = 0.0
    live.bias.data.zero_()
    give_zeros_(Term(L1(0.1), live), averaged)
    assert torch.equal(averaged.weight == 0, live.weight == 0)
    assert bool((averaged.bias != 0).all()), "the bias is not of the selection"


def test_updates_of_an_averaged_model_keep_zeros_until_removed() -> None:
    live = nn.Linear(3, 2)
    averaged = AveragedModel(live, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    holder = Callback()
    holder.average = averaged  # type: ignore[attr-defined]
    two = [AveragesKeepZeros(Term(L1(0.1, select=name), live), [holder]) for name in ("weight", "bias")]
    averaged.update_parameters(live)
    live.weight.data[0, 0], live.bias.data[1] = 0.0, 0.0
    averaged.update_parameters(live)
    assert torch.equal(averaged.module.weight == 0, live.weight == 0)
    assert torch.equal(averaged.module.bias == 0, live.bias == 0)
    for one in two:
        one.remove()
    assert "update_parameters" not in vars(averaged)
    live.weight.data[1, 0] = 0.0
    averaged.update_parameters(live)
    assert bool(averaged.module.weight[1, 0] != 0)


class Look(Callback):
    """The live weights' zeros, before an average takes their place."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.zeros = pl_module.layer.weight == 0


@pytest.mark.parametrize("name", ["StochasticWeightAveraging", "EMAWeightAveraging"])
@pytest.mark.parametrize("first", [True, False], ids=["penalty first", "average first"])
def test_averages_of_a_trainer(name: str, first: bool) -> None:
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    if not hasattr(callbacks, name):
        pytest.skip("this release has none")
    options = {"decay": 0.9} if "EMA" in name else {"swa_lrs": 0.01, "swa_epoch_start": 2}
    average, penalty, look = (
        getattr(callbacks, name)(**options),
        L1PenaltyCallback(0.1, apply="proximal"),
        Look(),
    )
    found = fit(look, *((penalty, average) if first else (average, penalty))).layer.weight == 0
    assert float(look.zeros.float().mean()) > 0.2
    assert bool(found[look.zeros].all())
    assert not {"update_parameters", "transfer_weights"} & set(vars(average))


class EMACallback(Callback):
    """Some other package's."""


def test_an_average_out_of_reach_is_named() -> None:
    with pytest.warns(UserWarning, match="EMACallback averages weights out of reach"):
        AveragesKeepZeros(Term(L1(0.1), nn.Linear(2, 1)), [EMACallback()])
