"""Penalty callbacks in the runs that hand-written penalties get wrong."""

from __future__ import annotations

import copy
import itertools
import pickle
import warnings
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_reg import L1, ActivityPenalty, Constant, Cosine, ElasticNet, L2Norm, Linear, RegularizedModule
from lightning_reg.callbacks import (
    ElasticNetPenaltyCallback,
    ForwardPenaltyCallback,
    KeepLargest,
    L1PenaltyCallback,
    L2PenaltyCallback,
    PenaltyCallback,
)
from tests.support import QUIET, Net, RegularizedNet, batches, fit, relative, tutorial_sgd, weights

APPLY = ["gradient", "loss", "decoupled", "proximal"]


def trained(*callbacks: Any, optimizer: Any = tutorial_sgd, **options: Any) -> Tensor:
    module = Net(optimizer)
    fit(module, *callbacks, **options)
    return weights(module)


# --- parity with torch's own optimizers --------------------------------------------------------------


@pytest.mark.parametrize("variant", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}])
def test_l2_on_sgd_is_weight_decay_where_gradients_accumulate(variant: dict[str, Any]) -> None:
    ours = trained(
        L2PenaltyCallback(0.1, "all"),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.02, **variant),
        precision="64-true",
        loader=batches(dtype=torch.float64),
        steps=25,
        accumulate_grad_batches=4,
        max_epochs=-1,
    )
    torchs = trained(
        optimizer=lambda p: torch.optim.SGD(p, lr=0.02, weight_decay=0.1, **variant),
        precision="64-true",
        loader=batches(dtype=torch.float64),
        steps=25,
        accumulate_grad_batches=4,
        max_epochs=-1,
    )
    assert relative(ours, torchs) < 1e-13


@pytest.mark.parametrize(
    "variant", [{"foreach": False}, {"foreach": True}, {"fused": True}, {"amsgrad": True}]
)
def test_decoupled_l2_with_adam_is_adamw_in_mixed_precision(variant: dict[str, Any]) -> None:
    def options() -> dict[str, Any]:
        return {"steps": 30, "max_epochs": -1, "plugins": [MixedPrecision("16-mixed", "cpu")]}

    ours = trained(
        L2PenaltyCallback(0.5, "all", apply="decoupled"),
        optimizer=lambda p: torch.optim.Adam(p, lr=1e-2, **variant),
        **options(),
    )
    torchs = trained(
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.5, **variant), **options()
    )
    assert relative(ours, torchs) < 1e-6


def test_decoupled_decay_follows_the_learning_rate_of_the_step() -> None:
    class Scheduled(Net):
        def configure_optimizers(self) -> Any:
            optimizer = self.make_optimizer(self.parameters())
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    ours = Scheduled(lambda p: torch.optim.Adam(p, lr=1e-2))
    fit(ours, L2PenaltyCallback(0.5, "all", apply="decoupled"), steps=30, max_epochs=-1)
    torchs = Scheduled(lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.5))
    fit(torchs, steps=30, max_epochs=-1)
    assert relative(weights(ours), weights(torchs)) < 1e-6


# --- several optimizers, line searches ---------------------------------------------------------------


class Gan(pl.LightningModule):
    """Two optimizers by hand; each has its own learning rate, 0 gradients from the task."""

    def __init__(self, steps_of_second: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
        nn.init.ones_(self.generator.weight)
        nn.init.ones_(self.discriminator.weight)
        self.steps_of_second = steps_of_second

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()
        for optimizer, times in ((first, 1), (second, self.steps_of_second)):
            for _ in range(times):
                optimizer.zero_grad()
                # every parameter has a gradient at both steps, as in a GAN
                self.manual_backward(0.0 * (self.generator.weight.sum() + self.discriminator.weight.sum()))
                optimizer.step()

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.generator.parameters(), lr=0.1),
            torch.optim.SGD(self.discriminator.parameters(), lr=0.01),
        ]


@pytest.mark.parametrize("apply", ["gradient", "decoupled", "proximal"])
def test_each_optimizer_of_a_gan_penalizes_its_own_parameters_once(apply: Any) -> None:
    gan = Gan()
    fit(gan, L1PenaltyCallback(1.0, apply=apply), loader=DataLoader(torch.zeros(1, 1)), steps=2)
    assert torch.allclose(gan.generator.weight, torch.full((2, 3), 0.9))
    assert torch.allclose(gan.discriminator.weight, torch.full((2, 3), 0.99))


def test_loss_under_manual_optimization_is_refused() -> None:
    with pytest.raises(ValueError, match=r"self\.manual_backward\(self\.regularize\(loss\)\)"):
        fit(Gan(), L1PenaltyCallback(1.0, apply="loss"), loader=DataLoader(torch.zeros(1, 1)))


def test_regularized_module_under_manual_optimization() -> None:
    class Manual(RegularizedModule):
        def __init__(self) -> None:
            super().__init__(L1(1.0))
            self.automatic_optimization = False
            self.layer = nn.Linear(3, 2, bias=False)
            nn.init.ones_(self.layer.weight)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.regularize(0.0 * self.layer.weight.sum()))
            optimizer.step()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Manual()
    fit(module, loader=DataLoader(torch.zeros(3, 1)), steps=3)
    assert torch.allclose(module.layer.weight, torch.full((2, 3), 0.7))


def test_a_run_longer_than_it_was_given_says_so_and_holds_the_schedule() -> None:
    with pytest.warns(UserWarning, match="more optimizer steps than total_steps=2, so schedules stay"):
        fit(
            Gan(steps_of_second=3),
            L1PenaltyCallback(Linear(0.0, 1.0), total_steps=2),
            loader=DataLoader(torch.zeros(1, 1)),
            max_steps=-1,
            max_epochs=1,
        )


class Seldom(Net):
    """Steps once in so many batches, each of two optimizers in its turn, or so often in each batch."""

    def __init__(self, every: int = 1, turns: int = 1, times: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.every, self.turns, self.times = every, turns, times

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        turn = optimizers[batch_idx // self.every % self.turns]
        for _ in range(self.times):
            self.manual_backward(super().training_step(batch, batch_idx))
            if (batch_idx + 1) % self.every == 0:
                turn.step()
                turn.zero_grad()

    def configure_optimizers(self) -> Any:
        halves = [self.net[0], self.net[2]] if self.turns == 2 else [self.net]
        return [torch.optim.SGD(half.parameters(), lr=0.01) for half in halves]


@pytest.mark.parametrize("how", [{}, {"every": 4}, {"turns": 2}, {"times": 3}], ids=str)
def test_under_manual_optimization_a_schedule_ends_with_the_run(how: dict[str, int]) -> None:
    seen: list[float] = []

    class See(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *given: Any) -> None:
            seen.append(penalty._work.engine.strength())  # type: ignore[union-attr]

    penalty = L1PenaltyCallback(Linear(0.0, 1.0))
    module = Seldom(**how)
    fit(module, KeepLargest(0.75, until=0.6), penalty, See(), max_epochs=6, steps=-1)
    for layer in (module.net[0], module.net[2]):
        share = float((layer.weight == 0).float().mean())  # type: ignore[union-attr]
        assert share == pytest.approx(0.75, abs=0.06)  # of five weights, one or two
    assert seen[-1] == pytest.approx(1.0, abs=0.11)
    assert all(after >= before - 0.02 for before, after in itertools.pairwise(seen))
    middle = seen[len(seen) // 2]
    assert middle == pytest.approx(0.5, abs=0.1)


def test_lbfgs_solves_ridge_through_the_loss() -> None:
    x, y = load_diabetes(return_X_y=True)
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    inputs, targets = torch.tensor(x), torch.tensor(y)[:, None]

    class Regression(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(10, 1, bias=False)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return 0.5 * (self.layer(inputs) - targets).square().mean()

        def configure_optimizers(self) -> Any:
            exact = {"tolerance_grad": 1e-13, "tolerance_change": 1e-16}
            return torch.optim.LBFGS(self.parameters(), max_iter=50, line_search_fn="strong_wolfe", **exact)

    module = Regression()
    fit(
        module,
        L2PenaltyCallback(0.1, apply="loss"),
        loader=DataLoader(inputs[:1]),
        steps=3,
        max_epochs=3,
        precision="64-true",
    )
    ridge = Ridge(alpha=0.1 * len(x), fit_intercept=False, tol=1e-12).fit(x, y)
    np.testing.assert_allclose(module.layer.weight.detach().numpy()[0], ridge.coef_, rtol=0, atol=1e-8)


# --- mixed precision with a scaler -------------------------------------------------------------------


@pytest.mark.parametrize("apply", APPLY)
@pytest.mark.parametrize(
    "optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad]
)
def test_fused_equals_plain_under_a_scaler(optimizer: Any, apply: Any) -> None:
    results = [
        trained(
            L1PenaltyCallback(0.1, "all", apply=apply),
            optimizer=lambda p, fused=fused: optimizer(p, lr=0.02, fused=fused),
            plugins=[MixedPrecision("16-mixed", "cpu")],
        )
        for fused in (True, False)
    ]
    # 0.1 of L1 over 20 steps of 0.02 moves a weight by up to 0.04: a penalty lost to the scale shows
    assert relative(*results) < 1e-5


# --- which tensors -----------------------------------------------------------------------------------


class Parts(pl.LightningModule):
    def __init__(self, optimizer: Any) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(10, 1), nn.Linear(10, 1)
        self.make_optimizer = optimizer

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.used(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.parameters())


@pytest.mark.parametrize("apply", APPLY)
def test_parameters_in_no_optimizer_are_left_alone(apply: Any) -> None:
    class Half(Parts):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) + self.unused(batch[0]).mean()

        def configure_optimizers(self) -> Any:
            return self.make_optimizer(self.used.parameters())

    module = Half(tutorial_sgd)
    trainer = fit(module, L1PenaltyCallback(0.1, apply=apply), steps=1, log_every_n_steps=1)
    plain = Half(tutorial_sgd)
    plain.load_state_dict(module.state_dict())
    assert trainer.callback_metrics["penalty/l1"] < 0.1 * 10 * 0.33  # ten weights of at most 10 ** -0.5
    module.zero_grad()
    fit(module, L1PenaltyCallback(0.1, apply=apply), steps=1)
    fit(plain, steps=1)
    assert torch.equal(module.unused.weight.grad, plain.unused.weight.grad)


def test_lazy_layers_are_selected_once_they_have_a_shape() -> None:
    class Lazy(Net):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.LazyLinear(1))

        def configure_model(self) -> None:
            with torch.no_grad():
                self.net(torch.zeros(1, 10))

    module = Lazy()
    trainer = fit(module, L1PenaltyCallback(10.0, apply="proximal"))
    assert all((layer.weight == 0).all() for layer in (module.net[0], module.net[2]))
    assert trainer.global_step == 20


@pytest.mark.parametrize("apply", APPLY)
def test_none_and_dict_outputs(apply: Any) -> None:
    class Sometimes(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 1 else {"loss": loss, "extra": 1}

    class Outputs(pl.Callback):
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            assert batch_idx == 1 or outputs["extra"] == 1

    module = Sometimes(lambda p: torch.optim.SGD(p, lr=0.01))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*`training_step` returned `None`.*")
        fit(module, L1PenaltyCallback(0.1, apply=apply), Outputs(), steps=4)
    plain = Sometimes(lambda p: torch.optim.SGD(p, lr=0.01))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*`training_step` returned `None`.*")
        fit(plain, Outputs(), steps=4)
    assert not torch.equal(weights(module), weights(plain))


# --- no trace ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, Constant(0.0)])
@pytest.mark.parametrize("apply", APPLY)
@pytest.mark.parametrize(
    "optimizer", [tutorial_sgd, lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.0)]
)
def test_strength_0_is_bit_identical_to_no_callback(optimizer: Any, apply: Any, strength: Any) -> None:
    def run(*callbacks: Any) -> Tensor:
        module = Parts(optimizer)
        torch.manual_seed(3)
        for parameter in module.parameters():
            nn.init.normal_(parameter)
        fit(module, *callbacks, gradient_clip_val=0.1)
        return weights(module)

    assert torch.equal(run(L1PenaltyCallback(strength, "all", apply=apply)), run())


def traces(module: pl.LightningModule, optimizers: list[torch.optim.Optimizer]) -> list[str]:
    found = [name for name in vars(module) if name in ("training_step", "forward", "configure_optimizers")]
    found += [
        f"{len(o._optimizer_step_pre_hooks)} pre hooks" for o in optimizers if o._optimizer_step_pre_hooks
    ]
    found += [
        f"{len(o._optimizer_step_post_hooks)} post hooks" for o in optimizers if o._optimizer_step_post_hooks
    ]
    for submodule in module.modules():
        found += [str(hook) for hook in submodule._forward_hooks.values()]
        found += [str(hook) for hook in submodule._forward_pre_hooks.values()]
    return found


@pytest.mark.parametrize("apply", APPLY)
@pytest.mark.parametrize("scaler", [False, True])
@pytest.mark.parametrize("failure", [None, RuntimeError])
def test_no_trace_after_fit_nor_after_an_exception(apply: Any, scaler: bool, failure: Any) -> None:
    optimizers: list[torch.optim.Optimizer] = []

    class Failing(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            if failure and batch_idx == 3:
                raise failure("on purpose")
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self) -> Any:
            optimizers.append(super().configure_optimizers())
            return optimizers[-1]

    class Busy(pl.Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            busy.append(traces(module, optimizers))

    busy: list[list[str]] = []
    module = Failing()
    keys = set(vars(module))
    callbacks = [L1PenaltyCallback(0.1, apply=apply), L2PenaltyCallback(0.1, apply=apply), Busy()]
    options = {"plugins": [MixedPrecision("16-mixed", "cpu")]} if scaler else {}
    for _ in range(2):  # the second time with the same callbacks
        if failure:
            with pytest.raises(failure):
                fit(module, *callbacks, steps=6, **options)
        else:
            fit(module, *callbacks, steps=6, **options)
        assert traces(module, optimizers) == []
        assert set(vars(module)) <= keys | {"_hparams"}  # Lightning's own
    if apply in ("loss", "proximal") or (scaler and apply == "decoupled"):
        assert all(busy), "the check must be able to see a trace"


def test_an_instance_attribute_training_step_is_put_back() -> None:
    module = Net()
    own = module.training_step
    module.training_step = own  # as torch.compile of a LightningModule leaves it
    fit(module, L1PenaltyCallback(0.1, apply="loss"), L2PenaltyCallback(0.1, apply="loss"))
    assert vars(module)["training_step"] is own


def test_fitting_twice_with_one_callback_penalizes_twice_the_same() -> None:
    callback = L1PenaltyCallback(Cosine(0.0, 0.1), apply="proximal")
    first, second = Net(), Net()
    fit(first, callback)
    fit(second, callback)
    assert torch.equal(weights(first), weights(second))


def test_copies_and_pickles_of_callback_and_module() -> None:
    class Copies(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            copied = copy.deepcopy(pl_module)
            assert copied.training_step.__self__ is copied
            pickled = pickle.loads(pickle.dumps(copied))
            assert pickled.training_step.__self__ is pickled
            assert copy.deepcopy(callback)._work is None
            assert pickle.loads(pickle.dumps(callback)).penalty == callback.penalty

    callback = L1PenaltyCallback(0.1, apply="loss")
    fit(Net(), callback, Copies(), steps=2)


@pytest.mark.parametrize("apply", APPLY)
def test_beside_weight_averaging(apply: Any) -> None:
    module = Net()
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging").WeightAveraging()  # 2.6
    fit(module, L1PenaltyCallback(0.1, apply=apply), averaging, steps=8)
    assert traces(module, []) == []


# --- logging -----------------------------------------------------------------------------------------


def test_values_are_computed_only_on_steps_that_log(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    value = L1.value
    monkeypatch.setattr(L1, "value", lambda self, w, s: computed.append(s) or value(self, w, s))
    logger = CSVLogger(tmp_path)
    module = Net()
    fit(module, L1PenaltyCallback(Linear(0.1, 0.2), name="mine"), steps=8, logger=logger, log_every_n_steps=4)
    logger.save()
    lines = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    assert set(lines[0].split(",")) == {"epoch", "step", "penalty/mine", "penalty/mine/strength"}
    assert [line.split(",")[lines[0].split(",").index("step")] for line in lines[1:]] == ["3", "7"]
    assert len(computed) == 2  # steps; both tensors are small, and go into one value


def test_the_logged_value_is_the_penalty_at_the_step() -> None:
    module = Net()
    expected = float(L1(0.1)(module).detach())
    trainer = fit(module, L1PenaltyCallback(0.1), steps=1, log_every_n_steps=1)
    assert float(trainer.callback_metrics["penalty/l1"]) == pytest.approx(expected, rel=1e-6)
    assert "penalty/l1/strength" not in trainer.callback_metrics


def test_the_logged_value_counts_weights_that_are_only_toggled_off() -> None:
    class Toggling(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.frozen = nn.Linear(10, 5).requires_grad_(False)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            for optimizer in self.optimizers():
                self.toggle_optimizer(optimizer)
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, batch_idx))
                optimizer.step()
                self.untoggle_optimizer(optimizer)

        def configure_optimizers(self) -> Any:
            first, last = nn.ModuleList([self.net[0], self.frozen]), self.net[2]
            return [torch.optim.SGD(part.parameters(), lr=0.01) for part in (first, last)]

    module = Toggling()
    expected = float(L1(0.1, "net.*weight")(module).detach())
    trainer = fit(module, L1PenaltyCallback(0.1), steps=2, log_every_n_steps=1)
    assert float(trainer.callback_metrics["penalty/l1"]) == pytest.approx(expected, rel=1e-6)


def test_two_of_a_kind_are_kept_apart_in_logs() -> None:
    trainer = fit(
        Net(),
        L1PenaltyCallback(0.1, "net.0.weight"),
        L1PenaltyCallback(0.1, "net.2.weight"),
        L1PenaltyCallback(0.1, "net.0.bias", name="bias"),
        steps=1,
        log_every_n_steps=1,
    )
    assert {"penalty/l1", "penalty/l1_2", "penalty/bias"} <= set(trainer.callback_metrics)


def test_the_module_s_and_those_on_the_forward_pass_are_kept_apart_too() -> None:
    penalties = [L1(0.1, "net.0.weight", name="mine"), L1(0.1, "net.2.weight", name="mine")]
    forward = ForwardPenaltyCallback(ActivityPenalty(L1(0.1), modules="net.0", name="mine"))
    module = RegularizedNet(penalties[0])
    callbacks = PenaltyCallback(penalties[1]), forward
    expected = [float(penalty(module).detach()) for penalty in penalties]
    metrics = fit(module, *callbacks, steps=1, log_every_n_steps=1).callback_metrics
    assert [float(metrics[f"penalty/{name}"]) for name in ("mine", "mine_2")] == pytest.approx(expected)
    assert "penalty/mine_3" in metrics


def test_log_false_logs_nothing() -> None:
    trainer = fit(Net(), L1PenaltyCallback(0.1, log=False), steps=1, log_every_n_steps=1)
    assert not trainer.callback_metrics


# --- both namespaces ---------------------------------------------------------------------------------


@pytest.mark.parametrize("apply", APPLY)
def test_a_pytorch_lightning_trainer(apply: Any) -> None:
    class OtherNet(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net().net

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return tutorial_sgd(self.parameters())

    callback = L1PenaltyCallback(0.1, apply=apply)
    assert isinstance(callback, pl.Callback)
    assert isinstance(callback, pytorch_lightning.Callback)
    module = OtherNet()
    options = {**QUIET, "max_steps": 20}
    pytorch_lightning.Trainer(callbacks=[callback], **options).fit(module, batches())
    assert torch.equal(weights(module), trained(L1PenaltyCallback(0.1, apply=apply)))


# --- bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L1PenaltyCallback(-1.0), r"L1\(strength=-1.0\) is out of range"),
        (lambda: L1PenaltyCallback(float("nan")), r"L1\(strength=nan\) is out of range"),
        (lambda: L1PenaltyCallback(float("inf")), r"L1\(strength=inf\) is out of range"),
        (lambda: L1PenaltyCallback("1e-4"), r"neither a number nor a schedule"),
        (lambda: L1PenaltyCallback(L1(0.1)), r"L1\(strength=L1\(...\)\) is not a strength; give a number"),
        (lambda: L1(nn.Linear(2, 1)), r"L1\(strength=Linear\(...\)\) is not a strength"),
        (lambda: ElasticNetPenaltyCallback(0.1, l1_ratio=1.5), r"l1_ratio=1.5\) is outside \[0, 1\]"),
        (lambda: ElasticNetPenaltyCallback(0.1, l1_ratio=float("nan")), r"l1_ratio=nan\) is outside"),
        (
            lambda: L1PenaltyCallback(0.1, apply="grad"),
            r"apply='grad' is unknown; it is one of 'gradient', 'loss'",
        ),
        (lambda: L1PenaltyCallback(0.1, metric="adam"), r"metric='adam' is unknown"),
        (lambda: L1PenaltyCallback(0.1, metric="euclidean"), r"is for apply='proximal'"),
        (lambda: L1PenaltyCallback(0.1, select=3), r"select=3 is not understood"),
        (lambda: L1PenaltyCallback(0.1, select=[]), r"select=\[\] is empty"),
        (lambda: PenaltyCallback(0.1), r"0.1 is not a penalty"),
        (lambda: PenaltyCallback([L1(0.1), L1(0.2)]), r"\[L1.*\] is not a penalty; give them one by one"),
        (lambda: RegularizedNet([0.1]), r"0.1 is not a penalty"),
        (lambda: RegularizedNet(0.1), r"0.1 is not a penalty"),
        (lambda: RegularizedNet("l1"), r"penalties='l1' is not a penalty"),
    ],
)
def test_bad_arguments_are_refused_at_construction(make: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def nan_at_700(step: int, total_steps: int | None) -> float:
    return float("nan") if step == 700 else 0.1


@pytest.mark.parametrize("make", [L1PenaltyCallback, lambda *a: RegularizedNet(L1(*a))])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.1, "encoder.*"), r"matches none of the 4 parameters of .*Net; it has net.0.weight"),
        ((0.1, "net.0.wieght"), r"did you mean net.0.weight"),
        ((0.1, nn.Conv2d), r"matches none of the 4 parameters"),
        ((nan_at_700,), r"strength at step 700 is nan"),
    ],
)
def test_bad_selections_and_schedules_are_refused_at_fit_start(
    make: Any, arguments: Any, message: str
) -> None:
    made = make(*arguments)
    module, callbacks = (made, []) if isinstance(made, pl.LightningModule) else (Net(), [made])
    before = weights(module).clone()
    with pytest.raises(ValueError, match=message):
        fit(module, *callbacks, steps=1000, max_epochs=-1)
    assert torch.equal(weights(module), before)


def test_a_bad_value_in_a_run_of_unknown_length_is_refused_before_the_step_it_would_spoil(
    tmp_path: Any,
) -> None:
    class Endless(IterableDataset):
        def __iter__(self) -> Any:
            while True:
                yield torch.zeros(10), torch.zeros(1)

    module = Net()
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=1)
    with pytest.raises(ValueError, match="strength at step 30 is nan"):
        fit(
            module,
            L1PenaltyCallback(lambda step, total: float("nan") if step == 30 else 0.1),
            checkpoint,
            loader=DataLoader(Endless(), batch_size=8),
            steps=-1,
            max_epochs=1,
            enable_checkpointing=True,
        )
    assert weights(module).isfinite().all()
    saved = torch.load(checkpoint.best_model_path, weights_only=True)
    assert saved["global_step"] == 30


def test_a_fraction_of_a_run_of_unknown_length_is_refused_at_fit_start() -> None:
    with pytest.raises(ValueError, match=r"no known length; set max_steps"):
        fit(Net(), L1PenaltyCallback(Cosine(0.0, 0.1)), steps=-1, max_epochs=-1)


def test_total_steps_may_be_given() -> None:
    trainer = fit(
        Net(),
        L1PenaltyCallback(Linear(0.0, 0.1), total_steps=40),
        steps=20,
        log_every_n_steps=20,
        max_epochs=-1,
    )
    assert float(trainer.callback_metrics["penalty/l1/strength"]) == pytest.approx(0.1 * 19 / 40)


@pytest.mark.parametrize(
    ("optimizer", "callback", "message"),
    [
        (
            lambda p: torch.optim.Rprop(p),
            L1PenaltyCallback(0.1, apply="proximal"),
            r"under Rprop: .*; use apply='gradient', or one of SGD, .*, ASGD",
        ),
        (
            lambda p: torch.optim.SGD(p, lr=0.1, maximize=True),
            L1PenaltyCallback(0.1),
            r"SGD\(maximize=True\) climbs",
        ),
        (
            lambda p: torch.optim.SGD(p, lr=0.1, maximize=True),
            L1PenaltyCallback(0.1, apply="loss"),
            r"climbs",
        ),
        (
            lambda p: torch.optim.SGD(p, lr=0.1, maximize=True),
            L2PenaltyCallback(0.1, apply="decoupled"),
            r"climbs",
        ),
    ],
)
def test_optimizers_that_would_be_wrong_are_refused(optimizer: Any, callback: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(Net(optimizer), callback)


def test_the_euclidean_metric_when_asked_for() -> None:
    module = Net(lambda p: torch.optim.Adamax(p))
    fit(module, L1PenaltyCallback(100.0, apply="proximal", metric="euclidean"))
    assert (module.net[0].weight == 0).all()


@pytest.mark.parametrize("second", [L1PenaltyCallback(0.1, "net.0.*"), None])
def test_a_parameter_penalized_twice_is_warned_of(second: Any) -> None:
    module = Net() if second else RegularizedNet(L1(0.1))
    callbacks = [L1PenaltyCallback(0.2), *([second] if second else [])]
    with pytest.warns(UserWarning, match=r"net.0.weight .*penalized twice"):
        fit(module, *callbacks, steps=1)


class OfTheLast(Net):
    """Its optimizer holds the last layer only."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net[2].parameters(), lr=0.1)


@pytest.mark.parametrize("apply", ["gradient", "loss", "decoupled", "proximal"])
def test_a_selection_that_no_optimizer_holds_is_warned_of(apply: Any) -> None:
    plain, penalized = OfTheLast(), OfTheLast()
    fit(plain)
    with pytest.warns(UserWarning, match=r"no optimizer holds net\.0\.weight, or any other"):
        fit(penalized, L1PenaltyCallback(0.1, "net.0.*", apply=apply))
    assert torch.equal(weights(penalized), weights(plain)), "as the warning says"
    fit(OfTheLast(), L1PenaltyCallback(0.1, apply=apply))  # acts on a part, as the optimizer does


def test_weights_that_are_to_be_unfrozen_later_are_not_warned_of() -> None:
    module = OfTheLast()
    module.net[0].requires_grad_(False)
    fit(module, L1PenaltyCallback(0.1, "net.0.*"))


def test_a_penalty_among_callbacks_is_told_what_to_write() -> None:
    write = r"is a penalty and not a callback; write callbacks=\[PenaltyCallback\(L1\(strength=0.1"
    with pytest.raises(AttributeError, match=write):
        pl.Trainer(callbacks=[L1(0.1)], **QUIET)
    assert not hasattr(L1(0.1), "state_key")


def test_different_kinds_on_one_parameter_are_not_warned_of() -> None:
    fit(
        RegularizedNet([L1(0.1), L2Norm(0.1)]),
        L2PenaltyCallback(0.1),
        PenaltyCallback(ElasticNet(0.1)),
        steps=1,
    )


@pytest.mark.parametrize("own", [False, True], ids=["behind Lightning", "unknown to Lightning"])
@pytest.mark.parametrize("apply", ["gradient", "decoupled", "proximal"])
def test_an_optimizer_that_lightning_never_steps_is_warned_of_once(apply: Any, own: bool) -> None:
    class Apart(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.other = tutorial_sgd(self.parameters())

        def configure_optimizers(self) -> Any:
            return None if own else super().configure_optimizers()

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            optimizer = self.other if own else self.optimizers(use_pl_optimizer=False)
            optimizer.zero_grad()
            super().training_step(batch, batch_idx).backward()
            optimizer.step()

    plain, penalized = Apart(), Apart()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(plain, max_epochs=3, steps=-1)
        fit(Apart(), L1PenaltyCallback(0.1, apply=apply), max_epochs=1, steps=-1)
        after_one_epoch = len(caught)
        fit(penalized, L1PenaltyCallback(0.1, apply=apply), max_epochs=3, steps=-1)
    assert torch.equal(weights(penalized), weights(plain)), "as the warning says"
    found = [str(w.message) for w in caught if "was not applied" in str(w.message)]
    assert len(found) == 2, "one in each run, though the second has three epochs"
    assert any("was not applied" in str(w.message) for w in caught[:after_one_epoch])
    assert all("Lightning saw no optimizer step" in message for message in found)


# --- beside what else a Trainer does -----------------------------------------------------------------


@pytest.mark.parametrize(("factors", "steps"), [({0: 1, 1: 4}, 8 + 2 + 2), ({0: 4, 1: 1}, 2 + 8 + 8)])
def test_a_schedule_follows_scheduled_accumulation(factors: dict[int, int], steps: int) -> None:
    seen = []
    callback = L1PenaltyCallback(lambda step, total: seen.append((step, total)) or 0.1)
    accumulation = GradientAccumulationScheduler(factors)
    trainer = fit(Net(), callback, accumulation, steps=-1, max_epochs=3)
    assert trainer.global_step == steps
    assert seen[-1] == (steps - 1, steps)


def test_a_validation_step_that_calls_training_step_sees_the_task_loss() -> None:
    class Shared(Net):
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    module = Shared()
    options = {**QUIET, "max_epochs": 1, "num_sanity_val_steps": 0}
    trainer = pl.Trainer(callbacks=[L1PenaltyCallback(1.0, apply="loss")], **options)
    trainer.fit(module, batches(), batches(64))
    x, y = batches().dataset.tensors
    expected = nn.functional.mse_loss(module.net(x), y).item()
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "make", [lambda: (Net(), [L1PenaltyCallback(0.1)]), lambda: (RegularizedNet(L1(0.1)), [])]
)
def test_early_stopping_finds_the_key_in_epochs_shorter_than_the_logging_interval(make: Any) -> None:
    module, callbacks = make()
    trainer = fit(module, *callbacks, EarlyStopping("penalty/l1", patience=1), steps=-1, max_epochs=2)
    assert trainer.global_step == 16


@pytest.mark.parametrize("accumulate", [1, 8])
@pytest.mark.parametrize("every", [0.25, 3])
@pytest.mark.parametrize("way", ["callback", "module"])
def test_a_validation_inside_the_epoch_finds_the_value(
    way: str, every: Any, accumulate: int, tmp_path: Any
) -> None:
    """Also one that comes before the first optimizer step."""

    class Validated(RegularizedNet):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            seen.append(self.trainer.global_step)

    seen: list[int] = []
    module = Validated(L1(0.1) if way == "module" else [])
    callbacks = [L1PenaltyCallback(0.1)] if way == "callback" else []
    best = ModelCheckpoint(tmp_path, monitor="penalty/l1", save_top_k=-1)
    options = {**QUIET, "enable_checkpointing": True, "num_sanity_val_steps": 0, "max_epochs": 1}
    trainer = pl.Trainer(
        callbacks=[*callbacks, EarlyStopping("penalty/l1", patience=99), best],
        val_check_interval=every,
        accumulate_grad_batches=accumulate,
        **options,  # type: ignore[arg-type]
    )
    start = L1(0.1)(module.net).item()
    trainer.fit(module, batches(), batches(64))
    assert len(seen) >= 2 and (seen[0] == 0) == (accumulate > 1)
    if accumulate == 1:  # it saves nothing before the first step
        assert best.best_model_score is not None and 0 < best.best_model_score <= start


def test_a_callable_of_one_argument_is_explained() -> None:
    with pytest.raises(TypeError, match=r"called as \(step, total_steps\)"):
        fit(Net(), L1PenaltyCallback(lambda step: 0.1))


def test_a_callback_that_another_one_calls() -> None:
    class Outer(pl.Callback):
        def __init__(self) -> None:
            self.inner = L1PenaltyCallback(1e-2)

        def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.inner.on_fit_start(trainer, pl_module)

        def on_before_optimizer_step(
            self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
        ) -> None:
            self.inner.on_before_optimizer_step(trainer, pl_module, optimizer)

    within, alone = Net(), Net()
    fit(within, Outer())
    fit(alone, L1PenaltyCallback(1e-2))
    assert torch.equal(weights(within), weights(alone))


def test_a_live_callback_cannot_be_changed() -> None:
    class Change(pl.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            with pytest.raises(RuntimeError, match="cannot change while a fit is under way"):
                callback.apply = "proximal"

    callback = L1PenaltyCallback(0.1)
    fit(Net(tutorial_sgd), callback, Change(), steps=1)
    callback.apply = "proximal"  # between fits it takes effect
    changed = Net(tutorial_sgd)
    fit(changed, callback)
    wanted = Net(tutorial_sgd)
    fit(wanted, L1PenaltyCallback(0.1, apply="proximal"))
    assert torch.equal(weights(changed), weights(wanted))


def test_trained_weights_that_no_optimizer_in_sight_holds_are_warned_of() -> None:
    class Hidden(Parts):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            with torch.no_grad():  # an optimizer of its own
                if self.unused.weight.grad is not None:
                    self.unused.weight.sub_(0.1 * self.unused.weight.grad)
            return super().training_step(batch, batch_idx) + self.unused(batch[0]).mean()

        def configure_optimizers(self) -> Any:
            return self.make_optimizer(self.used.parameters())

    with pytest.warns(UserWarning, match=r"was not applied to unused.weight and 0 more of the 2 parameters"):
        fit(Hidden(tutorial_sgd), L1PenaltyCallback(0.1))
