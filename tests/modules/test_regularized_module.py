from __future__ import annotations

import copy
import pickle
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.optim.swa_utils import AveragedModel

from lightning_reg import L1, L2, Linear, MaxNorm, RegularizedModule
from lightning_reg.callbacks import L1PenaltyCallback, PenaltyCallback
from tests.support import QUIET, Net, RegularizedNet, batches, fit, tutorial_sgd, weights


def test_task_loss_and_regularize_are_two_ways_to_one_thing() -> None:
    class Own(RegularizedNet):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.regularize(self.task_loss(batch, batch_idx))

    inherited, own, attached = RegularizedNet(L1(0.1)), Own([L1(0.1)]), Net()
    fit(inherited)
    fit(own)
    fit(attached, PenaltyCallback(L1(0.1), apply="loss"))
    assert torch.equal(weights(inherited), weights(own))
    assert torch.equal(weights(inherited), weights(attached))


def test_penalty_is_the_total_by_hand() -> None:
    module = RegularizedNet([L1(0.1), L2(0.3, "net.0.weight")])
    first, second = module.net[0].weight, module.net[2].weight
    expected = 0.1 * (first.abs().sum() + second.abs().sum()) + 0.15 * (first**2).sum()
    assert module.penalty().item() == pytest.approx(expected.item(), rel=1e-6)
    module.penalty().backward()
    torch.testing.assert_close(first.grad, 0.1 * first.detach().sign() + 0.3 * first.detach())
    assert module.net[0].bias.grad is None


def test_no_penalties_is_a_plain_module() -> None:
    module, plain = RegularizedNet(()), Net()
    fit(module)
    fit(plain)
    assert torch.equal(weights(module), weights(plain))
    assert module.penalty().item() == 0.0


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_task_loss_and_total_are_logged_apart_and_validation_is_not_penalized(tmp_path: Any) -> None:
    class Validated(RegularizedNet):
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            loss = self.task_loss(batch, batch_idx)
            assert torch.equal(self.regularize(loss), loss)
            self.log("val_loss", loss)

    module = Validated([L1(Linear(0.1, 0.2, until=10)), L1(0.1, "*.bias")])
    options = {"logger": CSVLogger(tmp_path), "log_every_n_steps": 1, "num_sanity_val_steps": 0}
    trainer = fit(module, steps=1, **options)
    metrics = trainer.callback_metrics
    assert set(metrics) == {
        "loss/task",
        "loss/regularized",
        "penalty/l1",
        "penalty/l1/strength",
        "penalty/l1_2",
    }
    terms = metrics["penalty/l1"] + metrics["penalty/l1_2"]
    torch.testing.assert_close(metrics["loss/task"] + terms, metrics["loss/regularized"])
    trainer.validate(module, batches(), verbose=False)


def test_a_step_that_is_not_logged_logs_nothing() -> None:
    trainer = fit(RegularizedNet(L1(0.1)), steps=3, log_every_n_steps=50)
    assert not trainer.callback_metrics


def test_a_scheduled_strength_follows_the_step_and_the_length_of_the_run() -> None:
    seen = []

    def strength(step: int, total_steps: int | None) -> float:
        seen.append((step, total_steps))
        return 0.1

    fit(RegularizedNet(L1(strength)), steps=3)
    assert seen[-3:] == [(0, 3), (1, 3), (2, 3)]


def test_neither_task_loss_nor_training_step() -> None:
    class Empty(RegularizedModule):
        def __init__(self) -> None:
            super().__init__(L1(0.1))
            self.layer = nn.Linear(10, 1)

        def configure_optimizers(self) -> Any:
            return tutorial_sgd(self.parameters())

    with pytest.raises(NotImplementedError, match=r"Empty has neither task_loss.* nor a training_step"):
        fit(Empty())


def trained(module: pl.LightningModule) -> Tensor:
    fit(module)
    return weights(module)


class Bare(RegularizedNet):
    """Its training_step forgets the penalties."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.task_loss(batch, batch_idx)


class Silent(Bare):
    def on_train_epoch_end(self) -> None:
        pass


@pytest.mark.parametrize("kind", [Bare, Silent])
def test_a_loss_without_its_penalties_is_told_once(kind: Any) -> None:
    with pytest.warns(
        UserWarning, match=r"training_step returns its loss without L1\(.*self.regularize"
    ) as told:
        fit(kind(L1(0.1)), max_epochs=2)
    assert len([w for w in told if "returns its loss" in str(w.message)]) == 1


def test_a_loss_without_penalties_is_no_fault_where_they_act_otherwise() -> None:
    assert torch.equal(
        trained(Bare(L1(0.1), apply="proximal")), trained(RegularizedNet(L1(0.1), apply="proximal"))
    )
    fit(Bare([]))  # a warning would be an error here
    fit(Bare(MaxNorm(1.0)))


@pytest.mark.parametrize("apply", ["gradient", "decoupled", "proximal"])
def test_penalties_that_act_beside_the_loss_and_in_it_are_told(apply: Any) -> None:
    class Twice(RegularizedNet):
        in_the_loss = True

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            penalty = self.penalty()
            self.log("mine", penalty.detach())
            loss: Tensor = self.task_loss(batch, batch_idx)
            return loss + penalty if self.in_the_loss else loss

    with pytest.warns(UserWarning, match=f"apply='{apply}' acts beside it, so that the penalties count"):
        fit(Twice(L2(0.1), apply=apply), steps=1)
    Twice.in_the_loss = False
    fit(Twice(L2(0.1), apply=apply), steps=1)  # a warning would be an error here


@pytest.mark.filterwarnings("ignore:.*returned `None`:UserWarning")  # Lightning's
def test_a_task_loss_may_be_all_that_a_training_step_may_return() -> None:
    class Dictionary(RegularizedNet):
        def task_loss(self, batch: list[Tensor], batch_idx: int) -> Any:
            return {"loss": super().task_loss(batch, batch_idx), "inputs": batch[0]}

    class EveryOther(RegularizedNet):
        def task_loss(self, batch: list[Tensor], batch_idx: int) -> Any:
            return super().task_loss(batch, batch_idx) if batch_idx % 2 else None

    class Skipping(RegularizedNet):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) if batch_idx % 2 else None

    assert torch.equal(trained(Dictionary(L1(0.1))), trained(RegularizedNet(L1(0.1))))
    assert torch.equal(trained(EveryOther(L1(0.1))), trained(Skipping(L1(0.1))))


def test_a_task_loss_of_another_type() -> None:
    class Number(RegularizedNet):
        def task_loss(self, batch: list[Tensor], batch_idx: int) -> Any:
            return super().task_loss(batch, batch_idx).item()

    with pytest.raises(TypeError, match=r"the task loss of Number is \d.*; return a scalar tensor"):
        fit(Number(L1(0.1)))


def test_an_init_that_leaves_out_its_base() -> None:
    class Net(RegularizedNet):
        def __init__(self) -> None:
            pl.LightningModule.__init__(self)
            self.net = nn.Linear(10, 1)
            self.make_optimizer = tutorial_sgd

    with pytest.raises(TypeError, match=r"Net.__init__ leaves out .* super\(\).__init__\(penalties\)"):
        fit(Net())


def test_parameters_exchanged_after_a_first_look_are_followed() -> None:
    module = RegularizedNet(L1(1.0, "net.0.weight"))
    before = module.penalty()
    module.net[0] = nn.Linear(10, 5)
    nn.init.ones_(module.net[0].weight)
    assert module.penalty().item() == pytest.approx(50.0)
    assert before.item() != pytest.approx(50.0)


def test_copies_and_pickles_have_terms_of_their_own() -> None:
    module = RegularizedNet(L1(1.0))
    module.penalty()
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        nn.init.zeros_(other.net[0].weight)
        nn.init.zeros_(other.net[2].weight)
        assert other.penalty().item() == 0.0
    assert module.penalty().item() > 0.0


def test_state_dict_and_checkpoint_hold_nothing_of_ours(tmp_path: Any) -> None:
    module = RegularizedNet(L1(0.1))
    trainer = fit(module)
    assert set(module.state_dict()) == set(Net().state_dict())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert not any("penalt" in key for key in saved)
    Net().load_state_dict(saved["state_dict"])


def test_outside_a_trainer_it_is_an_ordinary_module() -> None:
    module = RegularizedNet(L1(0.1))
    x, y = next(iter(batches()))
    loss = module.training_step([x, y], 0)
    torch.testing.assert_close(loss, module.task_loss([x, y], 0) + module.penalty())


class Saving(RegularizedNet):
    def __init__(self, penalties: Any) -> None:
        super().__init__(penalties)
        self.save_hyperparameters()


def test_saved_hyperparameters_load_with_weights_only(tmp_path: Any) -> None:
    module = Saving([L1(Linear(0.1, 0.2)), L2(0.1, select=["weights", "!*.bias"])])
    fit(module).save_checkpoint(tmp_path / "saved.ckpt")
    loaded = Saving.load_from_checkpoint(tmp_path / "saved.ckpt", weights_only=True)
    assert loaded.penalties == module.penalties
    assert torch.equal(weights(loaded), weights(module))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own look
def test_a_compiled_module_is_compiled_once() -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    module = RegularizedNet(L1(Linear(0.1, 0.2)))
    fit(torch.compile(module, backend=counter), steps=16, max_epochs=2)
    assert counter.frame_count <= 2
    plain = RegularizedNet(L1(Linear(0.1, 0.2)))
    fit(plain, steps=16, max_epochs=2)
    torch.testing.assert_close(weights(module), weights(plain))


class WithCopies(RegularizedNet):
    """Holds two copies of its net: an average of torch's, and a target that no optimizer holds."""

    def __init__(self, *penalties: Any, hidden: bool = False, apply: Any = "loss") -> None:
        super().__init__(list(penalties), apply=apply)
        self.average, self.target = AveragedModel(self.net), copy.deepcopy(self.net)
        self.hidden = hidden

    def task_loss(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().task_loss(batch, batch_idx)
        return loss + 0.0 * self.target(batch[0]).sum() if self.hidden else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([*self.net.parameters(), *self.average.parameters()], lr=0.05)


@pytest.mark.parametrize("hidden", [False, True], ids=["a target", "trained by somebody"])
def test_copies_are_neither_counted_nor_trained(hidden: bool) -> None:
    module = WithCopies(L2(1.0), hidden=hidden)
    start = weights(module.average)
    of_net = L2(1.0)(module.net).detach()
    trainer = fit(module, steps=1, log_every_n_steps=1)
    assert torch.equal(weights(module.average), start)
    torch.testing.assert_close(trainer.callback_metrics["penalty/l2"], of_net * (1 + hidden))
    assert not any(p._post_accumulate_grad_hooks for p in module.parameters())


class Held(WithCopies):
    """The optimizer holds the copy of the user's own too, as it does where it is given all parameters."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


@pytest.mark.parametrize("way", ["module", "callback"])
@pytest.mark.parametrize("apply", ["gradient", "loss", "decoupled", "proximal"])
def test_a_copy_that_no_gradient_reaches_is_none_of_the_networks_weights(apply: Any, way: str) -> None:
    module = Held(*([L1(0.1)] if way == "module" else []), apply=apply)
    start, of_net = weights(module.target), L1(0.1)(module.net).detach()
    callbacks = [PenaltyCallback(L1(0.1), apply)] if way == "callback" else []
    trainer = fit(module, *callbacks, steps=1, log_every_n_steps=1)
    assert torch.equal(weights(module.target), start)
    if (apply, way) in (("loss", "module"), ("loss", "callback"), ("gradient", "callback")):
        torch.testing.assert_close(trainer.callback_metrics["penalty/l1"], of_net)
    fit(module, *callbacks, steps=2, log_every_n_steps=1)
    assert not any(p._post_accumulate_grad_hooks for p in module.parameters())


@pytest.mark.parametrize("apply", ["gradient", "loss", "decoupled", "proximal"])
def test_a_module_acts_as_a_callback_does_in_every_way(apply: Any) -> None:
    made = []
    for module, callbacks in (
        (RegularizedNet([L1(0.1)], apply=apply), []),
        (Net(tutorial_sgd), [PenaltyCallback(L1(0.1), apply)]),
    ):
        fit(module, *callbacks)
        made.append(weights(module))
    torch.testing.assert_close(*made, rtol=0, atol=0 if apply != "loss" else 1e-6)


def test_constraints_are_among_a_modules_penalties() -> None:
    module = RegularizedNet([L2(0.1), MaxNorm(0.2)])
    trainer = fit(module, log_every_n_steps=1)
    for layer in (module.net[0], module.net[2]):
        assert (layer.weight.norm(dim=1) <= 0.2 + 1e-6).all()
    assert "penalty/l2" in trainer.callback_metrics and "penalty/max_norm" not in trainer.callback_metrics


def test_a_modules_strength_is_asked_for_once_a_step() -> None:
    asked: list[int] = []

    def strength(step: int, total_steps: int | None) -> float:
        asked.append(step)
        return 0.1

    for apply in ("gradient", "loss", "decoupled", "proximal"):
        module = RegularizedNet([L1(strength)], apply=apply)
        fit(module, Start(asked), steps=5, log_every_n_steps=1)
        assert asked == [0, 1, 2, 3, 4]
        fit(
            Net(tutorial_sgd),
            PenaltyCallback(L1(strength), apply),
            Start(asked),
            steps=5,
            log_every_n_steps=1,
        )
        assert asked == [0, 1, 2, 3, 4]


class Start(pl.Callback):
    """Forgets what was asked for before the first step."""

    def __init__(self, asked: list[int]) -> None:
        self.asked = asked

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 0:
            self.asked.clear()


@pytest.mark.parametrize("how", [False, 8])
def test_a_module_averages_as_its_callback_does(how: Any) -> None:
    ends = []
    for way in ("module", "callback"):
        model: Any = (
            RegularizedNet(L1(0.3), apply="proximal", dual_averaging=how) if way == "module" else Net()
        )
        callbacks = [L1PenaltyCallback(0.3, apply="proximal", dual_averaging=how, log=False)]
        trainer = pl.Trainer(max_epochs=2, callbacks=callbacks if way == "callback" else [], **QUIET)
        trainer.fit(model, batches())
        kept = [key for state in trainer.optimizers[0].state.values() for key in state if "lightning" in key]
        assert bool(kept) == (how is not False)
        ends.append(weights(model))
    assert torch.equal(*ends)
    with pytest.raises(ValueError, match="dual_averaging=False is for apply='proximal'"):
        RegularizedNet(L1(0.3), dual_averaging=False)
