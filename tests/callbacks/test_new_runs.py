"""A new run begins with nothing that another one has learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader

from lightning_reg import L1, L2SP
from lightning_reg.callbacks import NonNegative, NormBudget, PenaltyCallback
from tests.support import QUIET, Net, RegularizedNet, data, weights


class Rated(Net):
    """Another start at each scale, and a rate for Lightning's search to set."""

    def __init__(self, scale: int) -> None:
        super().__init__(lambda parameters: torch.optim.SGD(parameters, lr=self.lr))
        self.lr = 1e-3
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(scale)


class See(pl.Callback):
    """What the penalty adds up to before the first step, and the budgets."""

    def __init__(self, callback: Any) -> None:
        self.callback, self.seen = callback, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(self.callback, NormBudget):
            self.seen = float(sum(v for n, v in self.callback.learned().items() if n.endswith(":budget")))
        else:
            self.seen = float(self.callback._work.term.value(1.0).detach())


class Fail(pl.Callback):
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        raise KeyError("broken on purpose")


def fit(module: pl.LightningModule, callbacks: list[Any], folder: Path, **how: Any) -> pl.Trainer:
    trainer = pl.Trainer(callbacks=callbacks, max_epochs=1, default_root_dir=folder, **QUIET)
    trainer.fit(module, DataLoader(data(), 16), **how)
    return trainer


CALLBACKS = {
    "penalty": lambda: PenaltyCallback(L2SP(1.0), log=False),
    "budget": lambda: NormBudget(),
}


@pytest.mark.parametrize("searches", ["no search", "search before", "search after"])
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback_that_has_been_in_another_run(name: str, searches: str, tmp_path: Path) -> None:
    def second(callback: Any) -> float:
        see = See(callback)
        search = LearningRateFinder(num_training_steps=3, update_attr=False)
        among = {"no search": [callback], "search before": [search, callback]}
        fit(Rated(2), [*among.get(searches, [callback, search]), see], tmp_path)
        return see.seen

    used = CALLBACKS[name]()
    fit(Rated(1), [used], tmp_path)
    assert second(used) == second(CALLBACKS[name]())


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_resume_that_has_failed(name: str, tmp_path: Path) -> None:
    fit(Rated(1), [CALLBACKS[name]()], tmp_path).save_checkpoint(tmp_path / "a.ckpt")
    callback, fresh = CALLBACKS[name](), CALLBACKS[name]()
    with pytest.raises(KeyError, match="on purpose"):
        fit(Rated(1), [Fail(), callback], tmp_path, ckpt_path=tmp_path / "a.ckpt")
    seen = [See(callback), See(fresh)]
    for see in seen:
        fit(Rated(2), [see.callback, see], tmp_path)
    assert seen[0].seen == seen[1].seen


class Late(SingleDeviceStrategy):
    """Restores when optimizers exist, as strategies that shard do."""

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True


@pytest.mark.parametrize("module", [False, True], ids=["callback", "module"])
def test_a_strategy_that_restores_after_the_fit_has_begun(module: bool, tmp_path: Path) -> None:
    def run(epochs: int, scale: float = 1.0, **how: Any) -> tuple[pl.Trainer, pl.LightningModule]:
        net = RegularizedNet(L2SP(1.0)) if module else Net()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(scale)
        trainer = pl.Trainer(
            callbacks=[] if module else [PenaltyCallback(L2SP(1.0))],
            max_epochs=epochs,
            strategy=Late(torch.device("cpu")),
            **{**QUIET, "accelerator": "auto"},
        )
        trainer.fit(net, DataLoader(data(), 16), **how)
        return trainer, net

    _, whole = run(4)
    half, _ = run(2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = run(4, scale=3.0, ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(weights(resumed), weights(whole))


def test_a_module_whose_checkpoint_was_loaded_for_its_weights(tmp_path: Path) -> None:
    module = RegularizedNet(L2SP(1.0))
    fit(module, [], tmp_path).save_checkpoint(tmp_path / "a.ckpt")
    loaded = RegularizedNet.load_from_checkpoint(tmp_path / "a.ckpt", penalties=L2SP(1.0), weights_only=False)
    assert loaded.penalty() > 0, "with what it had learned"

    class Begin(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            assert pl_module.penalty() == 0.0

    loaded = RegularizedNet.load_from_checkpoint(tmp_path / "a.ckpt", penalties=L2SP(1.0), weights_only=False)
    fit(loaded, [Begin()], tmp_path)


class Switched(Net):
    """Takes another optimizer in the second epoch."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.make_optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.5)
            self.trainer.strategy.setup_optimizers(self.trainer)


@pytest.mark.parametrize("kind", ["proximal", "constraint"])
def test_the_first_step_of_an_optimizer_that_comes_later_counts(kind: str) -> None:
    inputs, targets = data().tensors
    expected = Net(lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    for rate in (0.1, 0.5):
        expected.zero_grad()
        expected.training_step([inputs, targets], 0).backward()
        with torch.no_grad():
            for layer in (expected.net[0], expected.net[2]):
                for parameter in layer.parameters():
                    parameter.sub_(rate * parameter.grad)
                weight = layer.weight
                shrunk = weight.sign() * (weight.abs() - rate * 0.1).clamp(min=0.0)
                weight.copy_(shrunk if kind == "proximal" else weight.clamp(min=0.0))
    found = Switched(lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    callback = (
        NonNegative() if kind == "constraint" else PenaltyCallback(L1(0.1), "proximal", dual_averaging=False)
    )
    loader = DataLoader(data(), batch_size=64)
    pl.Trainer(max_epochs=2, callbacks=[callback], **QUIET).fit(found, loader)
    torch.testing.assert_close(weights(found), weights(expected))


def test_a_callback_that_is_given_twice_is_refused() -> None:
    callback = PenaltyCallback(L1(0.1))
    with pytest.raises(ValueError, match="given to the Trainer twice, and would act twice; give it once"):
        pl.Trainer(max_epochs=1, callbacks=[callback, callback], **QUIET).fit(Net(), DataLoader(data()))
