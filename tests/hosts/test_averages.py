"""Averages of weights keep the zeros of the live model, and lie in the set of a constraint."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, StochasticWeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import L1, RegularizedModule, TargetSparsity, attach
from lightning_reg import callbacks as ours
from lightning_reg.apply import Term
from lightning_reg.callbacks import L1PenaltyCallback, Refit
from lightning_reg.constraints.base import Constraint
from lightning_reg.hosts.averages import AveragesKeepZeros, give_zeros_
from lightning_reg.hosts.averaging import _is_average

try:
    from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
except ImportError:  # releases before 2.6
    WeightAveraging = EMAWeightAveraging = None  # type: ignore[assignment,misc]

needs_averaging = pytest.mark.skipif(WeightAveraging is None, reason="this release has none")
PLAIN = AveragedModel.update_parameters


@pytest.fixture(autouse=True)
def restored() -> Any:
    gc.collect()  # what other tests have left attached
    before = AveragedModel.update_parameters
    yield
    assert AveragedModel.update_parameters in (before, PLAIN), "torch's class is left as it was"


def ema(model: nn.Module) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))


def loader() -> DataLoader[Any]:
    noise = torch.Generator().manual_seed(0)
    truth = torch.zeros(4, 16)
    truth[:, :3] = torch.randn(4, 3, generator=noise)
    x = torch.randn(128, 16, generator=noise)
    y = x @ truth.t() + 0.5 * torch.randn(128, 4, generator=noise)
    return DataLoader(TensorDataset(x, y), 16)


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self._build()

    def _build(self) -> None:
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(16, 4))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self.net(batch[0]) - batch[1]).square().mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.validated = self.weight.clone()

    @property
    def weight(self) -> Tensor:
        return self.net[0].weight.detach()  # type: ignore[union-attr,no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.01)


class Ready(RegularizedModule):
    def __init__(self) -> None:
        super().__init__(penalties=[L1(0.1)], apply="proximal")
        Net._build(self)  # type: ignore[arg-type]

    training_step = Net.training_step
    validation_step = Net.validation_step
    weight = Net.weight
    configure_optimizers = Net.configure_optimizers


class Look(Callback):
    """The live weights after each step."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *given: Any) -> None:
        self.live = pl_module.weight.clone()


def l1(strength: Any = 0.1) -> L1PenaltyCallback:
    return L1PenaltyCallback(strength, apply="proximal")


def fit(net: Any, *callbacks: Callback, folder: Path | None = None, **options: Any) -> dict[str, Tensor]:
    """The weights at the end: live, those that the fit leaves, validated and saved ones."""
    look = Look()
    more = [ModelCheckpoint(folder, filename="end")] if folder is not None else []
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    Trainer(
        max_epochs=options.pop("max_epochs", 6),
        callbacks=[look, *callbacks, *more],
        accelerator="cpu",
        enable_checkpointing=folder is not None,
        num_sanity_val_steps=0,
        limit_val_batches=1,
        **quiet,
        **options,
    ).fit(net, loader(), loader())
    found = {"live": look.live, "left": net.weight, "validated": net.validated}
    if folder is not None:
        found["saved"] = torch.load(folder / "end.ckpt", weights_only=True)["state_dict"]["net.0.weight"]
    return found


def check(found: dict[str, Tensor], *names: str, least: float = 0.3) -> None:
    zeros = found["live"] == 0
    assert float(zeros.float().mean()) >= least
    for name in names:
        assert torch.equal(found[name] == 0, zeros), name


def test_an_average_is_given_zeros() -> None:
    live, averaged = nn.Linear(3, 2), nn.Linear(3, 2)
    live.weight.data[0, 1] = 0.0
    live.bias.data.zero_()
    averaged.weight.data[1, 1] = 0.0
    pairs = list(zip(live.parameters(), averaged.parameters(), strict=True))
    give_zeros_(Term(L1(0.1), live), pairs)
    assert torch.equal(averaged.weight == 0, (live.weight == 0).index_put_(TWO, torch.tensor(True)))
    assert bool((averaged.bias != 0).all()), "the bias is not of the selection"
    give_zeros_(Term(L1(0.1), live), pairs, revive=True)
    assert averaged.weight[1, 1] == live.weight[1, 1]


TWO = (torch.tensor(1), torch.tensor(1))


def test_updates_of_an_averaged_model_keep_zeros_until_removed() -> None:
    live = nn.Linear(3, 2)
    averaged = ema(live)
    two = [AveragesKeepZeros(Term(L1(0.1, select=name), live)) for name in ("weight", "bias")]
    averaged.update_parameters(live)
    live.weight.data[0, 0], live.bias.data[1] = 0.0, 0.0
    averaged.update_parameters(live)
    assert torch.equal(averaged.module.weight == 0, live.weight == 0)
    assert torch.equal(averaged.module.bias == 0, live.bias == 0)
    for one in two:
        one.remove()
    live.weight.data[1, 0] = 0.0
    averaged.update_parameters(live)
    assert bool(averaged.module.weight[1, 0] != 0)


@pytest.mark.parametrize("of", ["model", "part"])
def test_a_loop_of_ones_own(of: str) -> None:
    net = nn.Sequential(nn.Linear(16, 4))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    handle = attach(net, optimizer, L1(0.1), apply="proximal")
    part = net if of == "model" else net[0]
    averaged = ema(part)
    for x, y in [*loader()] * 6:
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        optimizer.step()
        averaged.update_parameters(part)
    weight = next(averaged.parameters())
    assert torch.equal(weight == 0, net[0].weight == 0)
    assert float((weight == 0).float().mean()) > 0.3
    handle.remove()


def test_what_is_dropped_with_its_loop_leaves_the_class() -> None:
    plain = AveragedModel.update_parameters is PLAIN
    net = nn.Linear(3, 2)
    attach(net, torch.optim.SGD(net.parameters(), 0.1), L1(0.1), apply="proximal")
    assert AveragedModel.update_parameters is not PLAIN
    del net
    gc.collect()
    assert not plain or AveragedModel.update_parameters is PLAIN


# --- what a Trainer's callbacks average ---------------------------------------------------------------


class Lazy(Callback):
    """Makes its average where it needs it first."""

    average: Any = None
    begin = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *given: Any) -> None:
        if trainer.current_epoch < self.begin:
            return
        if self.average is None:
            self.average = ema(pl_module)
        self.average.update_parameters(pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.load_state_dict(self.average.module.state_dict())


class Late(Lazy):
    begin = 3


class InAList(Callback):
    """Averages a part of the module, and hides the average."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.averages = [ema(pl_module.net)]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *given: Any) -> None:
        self.averages[0].update_parameters(pl_module.net)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.net.load_state_dict(self.averages[0].module.state_dict())


class ModelEmaV2(nn.Module):
    """A copy of timm's, as programs have one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(model)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        for mine, other in zip(self.module.parameters(), model.parameters(), strict=True):
            mine.lerp_(other, 0.01)


class LikeTimm(Callback):
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.copy = ModelEmaV2(pl_module.net)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *given: Any) -> None:
        self.copy.update(pl_module.net)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.net.load_state_dict(self.copy.module.state_dict())


class Shadow:
    """An average in a mapping of tensors, which takes the place of the weights in validations."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.shadow = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *given: Any) -> None:
        for name, p in pl_module.named_parameters():
            self.shadow[name] = 0.99 * self.shadow[name] + 0.01 * p.detach()

    def swap(self, trainer: Any, pl_module: Any) -> None:
        for name, p in pl_module.named_parameters():
            self.shadow[name], p.data = p.detach().clone(), self.shadow[name]

    on_validation_start = on_validation_end = on_train_end = swap


class EMAOfMine(Shadow, Callback):
    """Its name says what it does."""


class Mine(Shadow, Callback):
    """Its name does not."""


class InTheModule(Net):
    def setup(self, stage: str) -> None:
        self.average = ema(self.net)

    def on_train_batch_end(self, *given: Any) -> None:
        self.average.update_parameters(self.net)

    def on_train_end(self) -> None:
        self.net.load_state_dict(self.average.module.state_dict())


@pytest.mark.parametrize(
    "make, first",
    [(Lazy, True), (Lazy, False), (Late, False), (InAList, False), (LikeTimm, True), (EMAOfMine, False)],
)
def test_averages_of_ones_own(make: Callable[[], Callback], first: bool) -> None:
    pair = (l1(), make()) if first else (make(), l1())
    check(fit(Net(), *pair), "left", "validated")


def test_an_average_in_the_module() -> None:
    check(fit(InTheModule(), l1()), "left")


def test_zeros_that_are_lost_out_of_reach_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"the validation has 0.0% zeros, and the last step with L1.* left"):
        fit(Net(), l1(), Mine())
    with pytest.warns(UserWarning, match=r"what the fit leaves has 0.0% zeros"):
        fit(Ready(), Mine())


class Cell:
    def __init__(self, content: Any) -> None:
        self.content = content


class EMACallback(Callback):
    """Some other package's, which holds its average in an object of an object."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.store = Cell(Cell([parameter.detach().clone() for parameter in pl_module.parameters()]))


class EMALossLogger(Callback):
    """Averages a loss."""

    smooth = 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *given: Any) -> None:
        self.last = outputs["loss"].detach()
        self.smooth = 0.9 * self.smooth + 0.1 * float(self.last)


class Slow(Callback):
    """Adds an average of the gradients to them, which has the names and the shapes of the weights."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.averages = {name: torch.zeros_like(p) for name, p in pl_module.named_parameters()}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        for name, p in pl_module.named_parameters():
            self.averages[name].lerp_(p.grad, 0.1)
            p.grad.add_(self.averages[name])


class SlowEMA(Slow):
    """Its name says that it averages."""


def test_an_average_of_gradients_is_left_alone() -> None:
    found, expected = (fit(Net(), l1(), slow)["live"] for slow in (SlowEMA(), Slow()))
    assert torch.equal(found, expected) and (found == 0).any()


def test_an_average_out_of_reach_is_named() -> None:
    with pytest.warns(UserWarning, match="EMACallback averages weights out of reach"):
        fit(Net(), l1(), EMACallback(), max_epochs=1)


def test_an_average_of_something_else_is_not() -> None:
    fit(Net(), l1(), EMALossLogger(), max_epochs=1)  # warnings are errors


@pytest.mark.parametrize("removed", [False, True], ids=["still attached", "of a fold before"])
def test_an_average_of_another_model_is_left_alone(removed: bool) -> None:
    """A network beside the sparse one, or that of the next fold, has averages of its own weights."""
    torch.manual_seed(0)
    sparse, other = nn.Linear(16, 4), nn.Linear(16, 4)
    steps = [torch.optim.SGD(net.parameters(), 0.1) for net in (sparse, other)]
    handle = attach(sparse, steps[0], L1(0.3), apply="proximal")
    averages, expected = AveragedModel(other, multi_avg_fn=get_ema_multi_avg_fn(0.9)), []
    copied = ModelEmaV2(other)
    for step in range(12):
        x = torch.randn(8, 16)
        for net, optimizer in zip((sparse, other), steps, strict=True):
            optimizer.zero_grad()
            (net(x) - x[:, :4]).square().mean().backward()
            if net is other or step < 6 or not removed:
                optimizer.step()
        average = other.weight.detach()
        expected.append(average.clone() if step == 0 else 0.9 * expected[-1] + 0.1 * average)
        averages.update_parameters(other)
        copied.update(other)
    assert int((sparse.weight == 0).sum()) > 10
    torch.testing.assert_close(averages.module.weight, expected[-1])
    assert not (copied.module.weight == 0).any()
    handle.remove()


@pytest.mark.parametrize("name", ["FaceSwap", "SWANet", "CinemaNet", "Net"])
def test_a_trained_twin_is_no_average_whatever_its_owner_is_called(name: str) -> None:
    def trained(*callbacks: Callback) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        net = type(name, (Twins,), {})()
        fit(net, *callbacks)
        return net.weight, net.other.weight.detach()

    _, expected = trained()
    sparse, twin = trained(L1PenaltyCallback(0.1, select="net.0.weight", apply="proximal"))
    assert (sparse == 0).any()
    assert torch.equal(twin, expected)


class Twins(Net):
    """Two layers of one shape that both train."""

    def _build(self) -> None:
        super()._build()
        self.other = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(x), self.other(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return sum((output - batch[1]).square().mean() for output in self(batch[0]))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("name", "averages"),
    [
        *[
            (name, True)
            for name in ("ModelEMA", "LitEma", "EMA", "EmaV2", "StochasticWeightAveraging", "SWA")
        ],
        *[(name, True) for name in ("AveragedModel", "TimmModelEmaV3", "PolyakCallback", "EMACallback")],
        *[(name, False) for name in ("FaceSwap", "Cinema", "Schema", "SwapAxes", "Swallow", "Emanation")],
    ],
)
def test_words_that_say_so(name: str, averages: bool) -> None:
    assert _is_average(name) == averages


@needs_averaging
@pytest.mark.parametrize("ready", [False, True], ids=["callback", "ready module"])
@pytest.mark.parametrize("first", [True, False], ids=["penalty first", "average first"])
def test_a_moving_average_of_lightning(ready: bool, first: bool, tmp_path: Path) -> None:
    average, penalty = EMAWeightAveraging(decay=0.99), [] if ready else [l1()]
    both = [*penalty, average] if first else [average, *penalty]
    check(fit(Ready() if ready else Net(), *both, folder=tmp_path), "left", "validated", "saved")


@pytest.mark.parametrize("ready", [False, True], ids=["callback", "ready module"])
def test_stochastic_weight_averaging(ready: bool) -> None:
    swa = StochasticWeightAveraging(0.01, swa_epoch_start=2)
    check(fit(Ready() if ready else Net(), *([] if ready else [l1()]), swa), "left")
    assert "update_parameters" not in vars(swa)


def every(steps: int) -> Any:
    class Every(WeightAveraging):  # type: ignore[misc,valid-type]
        def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
            return step_idx is not None and step_idx % steps == 0

    return Every(multi_avg_fn=get_ema_multi_avg_fn(0.9))


@needs_averaging
@pytest.mark.parametrize(
    "acting, average",
    [
        (lambda: [ours.KeepLargest(0.5)], lambda: every(7)),
        (
            lambda: [l1(), Refit(0.5)],
            lambda: EMAWeightAveraging(decay=0.99, update_every_n_steps=0, update_starting_at_epoch=2),
        ),
        (lambda: [l1()], lambda: EMAWeightAveraging(decay=0.99, update_starting_at_step=20)),
    ],
    ids=["every 7 steps", "epochs", "from step 20"],
)
def test_averages_that_are_seldom_updated(acting: Any, average: Any, tmp_path: Path) -> None:
    found = fit(Net(), average(), *acting(), folder=tmp_path)
    check(found, "left", "validated", "saved", least=0.4)


@needs_averaging
@pytest.mark.filterwarnings("ignore:.*is at a share of")  # that of the live weights
def test_a_target_is_reached_by_what_is_saved(tmp_path: Path) -> None:
    found = fit(Net(), every(7), l1(TargetSparsity(0.5, initial=0.01, every=1)), folder=tmp_path)
    check(found, "left", "validated", "saved", least=0.4)


@pytest.mark.parametrize(
    "constraint, inside",
    [
        (ours.UnitNorm(), lambda w: (w.norm(dim=1) - 1).abs().max() < 1e-5),
        (ours.MaxNorm(0.5), lambda w: w.norm(dim=1).max() <= 0.5001),
        (ours.Simplex(), lambda w: abs(w.sum() - 1) < 1e-5 and w.min() >= 0),
        (ours.MaxRank(1), lambda w: torch.linalg.svdvals(w)[1] < 1e-5),
        (ours.L1Ball(1.0), lambda w: w.abs().sum() < 1.0001),
        (ours.Box(0.1, 0.3), lambda w: w.min() >= 0.1 and w.max() <= 0.3),
        (ours.NonNegative(), lambda w: w.min() >= 0),
        (ours.NM(2, 4), lambda w: ((w.view(-1, 4) != 0).sum(1) <= 2).all()),
        (ours.KeepLargest(0.7, of="groups"), lambda w: ((w == 0).all(1)).sum() == 3),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Constraint) else "",
)
def test_an_average_obeys_constraints(constraint: Any, inside: Any) -> None:
    swa = WeightAveraging is None or isinstance(constraint, (ours.Box, ours.MaxNorm))
    average = StochasticWeightAveraging(0.01, swa_epoch_start=1) if swa else EMAWeightAveraging(decay=0.99)
    found = fit(Net(), average, copy.copy(constraint), max_epochs=3)
    assert bool(inside(found["left"]))
    assert swa or bool(inside(found["validated"]))
    assert torch.equal(found["left"] == 0, found["live"] == 0), "with the zeros of the live weights"


@needs_averaging
def test_a_dense_average_without_a_proximal_step_is_left_alone() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = fit(Net(), L1PenaltyCallback(0.1), EMAWeightAveraging(decay=0.99), max_epochs=1)
    assert bool((found["left"] != 0).all())
