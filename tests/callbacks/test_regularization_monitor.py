from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, Logger
from rich.console import Console
from torch import Tensor, nn

from lightning_reg import (
    L1,
    L2SP,
    Coupled,
    GroupLasso,
    Linear,
    LinearRegression,
    SparseGroupLasso,
    SpectralNorm,
    TargetSparsity,
)
from lightning_reg.apply import Term
from lightning_reg.callbacks import DropoutScheduler, PenaltyCallback, RegularizationMonitor
from tests.support import Net, RegularizedNet, batches, fit, network


class Dropping(Net):
    def __init__(self) -> None:
        super().__init__()
        self.net.insert(2, nn.Dropout(0.25))


def first_gradients() -> tuple[nn.Sequential, list[torch.Tensor]]:
    net = network()
    x, y = next(iter(batches()))
    nn.functional.mse_loss(net(x), y).backward()
    return net, [net[0].weight.grad, net[2].weight.grad]


def ratio_by_hand(strength: float) -> float:
    net, gradients = first_gradients()
    penalty = [strength * np.sign(net[i].weight.detach().numpy()) for i in (0, 2)]
    above = np.sqrt(sum((p**2).sum() for p in penalty))
    return float(above / np.sqrt(sum((g.numpy() ** 2).sum() for g in gradients)))


@pytest.mark.parametrize("apply", ["gradient", "loss", "decoupled", "proximal"])
@pytest.mark.parametrize("order", ["before", "after"])
def test_the_gradient_ratio_is_that_by_hand_wherever_the_penalty_acts(apply: Any, order: str) -> None:
    monitor, penalty = RegularizationMonitor(table=False), PenaltyCallback(L1(0.3), apply=apply)
    callbacks = [monitor, penalty] if order == "before" else [penalty, monitor]
    optimizer: Any = lambda p: torch.optim.SGD(p, lr=0.01)  # noqa: E731
    fit(Net(optimizer), *callbacks, steps=1, log_every_n_steps=1)
    assert monitor.history[0]["gradient_ratio/l1"] == pytest.approx(ratio_by_hand(0.3), rel=1e-4)


def test_the_gradient_ratio_of_penalties_in_the_module() -> None:
    monitor = RegularizationMonitor(table=False)
    fit(RegularizedNet([L1(0.3)]), monitor, steps=1, log_every_n_steps=1)
    assert monitor.history[0]["gradient_ratio/l1"] == pytest.approx(ratio_by_hand(0.3), rel=1e-4)


class Attending(Net):
    def __init__(self) -> None:
        super().__init__(lambda parameters: torch.optim.SGD(parameters, lr=0.01))
        self.attention = nn.MultiheadAttention(10, 2)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x = batch[0][None]
        return nn.functional.mse_loss(self.net(self.attention(x, x, x)[0][0]), batch[1])


def pairs(name: str, parameter: Tensor, module: nn.Module) -> Tensor:
    return torch.arange(parameter.numel()).view(parameter.shape) // 2


@pytest.mark.parametrize(
    "penalty",
    [
        GroupLasso(0.3, groups=pairs),
        GroupLasso(0.3, "attention*weight", groups="heads"),
        GroupLasso(
            0.3, groups=Coupled([{"net.0.weight": "rows", "net.0.bias": "rows", "net.2.weight": "columns"}])
        ),
        SparseGroupLasso(0.3, groups=pairs),
        SpectralNorm(0.3),
    ],
    ids=["labels", "heads", "coupled", "sparse", "spectral"],
)
def test_the_gradient_ratio_is_that_of_autograd_whatever_the_groups(penalty: Any) -> None:
    module, monitor = Attending(), RegularizationMonitor(table=False)
    term = Term(penalty, module)
    chosen = [selected.parameter for selected in term.selected]
    terms = torch.autograd.grad(term.value(0.3), chosen)
    losses = torch.autograd.grad(module.training_step(next(iter(batches())), 0), chosen)
    above, below = (nn.utils.parameters_to_vector(found).norm() for found in (terms, losses))
    fit(module, PenaltyCallback(penalty), monitor, steps=1, log_every_n_steps=1)
    ratio = monitor.history[0][f"gradient_ratio/{penalty.log_name}"]
    assert ratio == pytest.approx(float(above / below), rel=1e-4)


@pytest.mark.parametrize("where", ["callback", "module"])
def test_the_gradient_ratio_of_l2_sp_is_from_the_starting_weights(where: str) -> None:
    class Losses(Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            layers = [module.net[0].weight, module.net[2].weight]
            distance = torch.cat([(w - s).detach().flatten() for w, s in zip(layers, starts, strict=True)])
            total = torch.cat([w.grad.flatten() for w in layers])
            self.ratio = float((5.0 * distance).norm() / (total - 5.0 * distance).norm())

    penalty, losses, monitor = L2SP(5.0), Losses(), RegularizationMonitor(table=False)
    module = RegularizedNet(penalty) if where == "module" else Net()
    starts = [module.net[i].weight.detach().clone() for i in (0, 2)]
    penalties = [] if where == "module" else [PenaltyCallback(penalty)]
    fit(module, *penalties, losses, monitor, steps=3, log_every_n_steps=1)
    ratios = [row["gradient_ratio/l2_sp"] for row in monitor.history]
    assert ratios[0] == 0.0
    assert ratios[2] == pytest.approx(losses.ratio, rel=1e-4)


@pytest.mark.filterwarnings("ignore:TargetSparsity")  # too short a run to settle
@pytest.mark.parametrize("order", ["before", "after"])
def test_the_strength_of_a_target_sparsity_is_the_one_found(order: str) -> None:
    monitor = RegularizationMonitor(table=False)
    penalty = PenaltyCallback(L1(TargetSparsity(0.5, initial=1e-6)), apply="proximal")
    found, tables = [], []

    class Watching(Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            strength = penalty._work.term.strength(trainer.global_step)
            layers = [module.net[0].weight, module.net[2].weight]
            above = nn.utils.parameters_to_vector(layers).detach().sign().norm() * strength
            found.append(float(above / torch.cat([w.grad.flatten() for w in layers]).norm()))

        def on_fit_end(self, trainer: Any, module: Any) -> None:
            strength = penalty._work.term.strength(trainer.global_step)
            tables.append((f"l1 {strength:.3g} (proximal)", monitor.as_table(trainer, module)))

    callbacks = [monitor, penalty] if order == "before" else [penalty, monitor]
    module = Net(lambda parameters: torch.optim.SGD(parameters, lr=0.01))
    trainer = fit(module, *callbacks, Watching(), steps=60, max_epochs=-1, log_every_n_steps=1)
    ratios = [row["gradient_ratio/l1"] for row in monitor.history]
    assert ratios == pytest.approx(found, rel=1e-4)
    ((expected, table),) = tables
    for at in (table, monitor.as_table(trainer, module)):
        console = Console(file=io.StringIO(), width=160)
        console.print(at)
        assert expected in console.file.getvalue()


@pytest.mark.parametrize("where", ["callback", "module"])
def test_two_penalties_of_a_name_have_a_ratio_each(where: str) -> None:
    monitor, penalties = RegularizationMonitor(table=False), [L1(0.1, "net.0.*"), L1(10.0, "net.2.*")]
    module = RegularizedNet(penalties) if where == "module" else Net()
    callbacks = [] if where == "module" else [PenaltyCallback(penalty) for penalty in penalties]
    trainer = fit(module, *callbacks, monitor, steps=1, log_every_n_steps=1)
    ratios = monitor.history[0]
    assert ratios["gradient_ratio/l1"] < ratios["gradient_ratio/l1_2"]
    console = Console(file=io.StringIO(), width=160)
    console.print(monitor.as_table(trainer, module))
    table = console.file.getvalue()
    for expected in ("l1 0.1", "l1_2 10", "‖∇l1_2‖", " l1_2 "):
        assert expected in table


def test_looking_at_a_power_iteration_does_not_move_it_on() -> None:
    monitored, plain = Net(), Net()
    callbacks = PenaltyCallback(SpectralNorm(0.3)), RegularizationMonitor(table=False)
    fit(monitored, *callbacks, steps=5, log_every_n_steps=1)
    fit(plain, PenaltyCallback(SpectralNorm(0.3)), steps=5, log_every_n_steps=1)
    assert all(torch.equal(a, b) for a, b in zip(monitored.parameters(), plain.parameters(), strict=True))


def test_history_is_numpys_and_only_on_logged_steps() -> None:
    module, monitor = Dropping(), RegularizationMonitor(table=False)
    with torch.no_grad():
        module.net[0].weight[:, 0] = 0.0
    expected = np.linalg.norm(module.net[0].weight.detach().numpy())
    fit(module, monitor, steps=12, log_every_n_steps=5)
    assert [row["step"] for row in monitor.history] == [4.0, 9.0]
    assert monitor.history[0]["dropout/net.2.p"] == 0.25
    again = RegularizationMonitor(table=False)
    module = Dropping()
    with torch.no_grad():
        module.net[0].weight[:, 0] = 0.0
    fit(module, again, steps=1, log_every_n_steps=1)
    (row,) = again.history
    assert row["sparsity/net.0.weight"] == pytest.approx(0.1)
    assert row["norm/net.0.weight"] == pytest.approx(expected, rel=1e-6)
    assert row["sparsity"] == pytest.approx(5 / 55)


def test_no_logger_no_penalty_no_harm() -> None:
    monitored, plain = Net(), Net()
    fit(monitored, RegularizationMonitor(table=False), steps=5, log_every_n_steps=1)
    fit(plain, steps=5)
    assert all(torch.equal(a, b) for a, b in zip(monitored.parameters(), plain.parameters(), strict=True))


def monitored(logger: Logger) -> None:
    callbacks = PenaltyCallback(L1(0.3)), RegularizationMonitor(table=False)
    fit(Net(), *callbacks, logger=logger, log_every_n_steps=5)


def test_csv(tmp_path: Any) -> None:
    logger = CSVLogger(tmp_path)
    monitored(logger)
    with open(f"{logger.log_dir}/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["sparsity"]]
    assert [int(row["step"]) for row in rows] == [4, 9, 14, 19]
    assert float(rows[0]["gradient_ratio/l1"]) > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_tensorboard(tmp_path: Any) -> None:
    pytest.importorskip("tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    monitored(logger)
    events = EventAccumulator(logger.log_dir).Reload()
    assert [event.step for event in events.Scalars("gradient_ratio/l1")] == [4, 9, 14, 19]
    assert events.Scalars("sparsity/net.0.weight")[0].value == 0.0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    monitored(logger)
    summary = dict(logger.experiment.summary)
    wandb.finish()
    assert summary["gradient_ratio/l1"] > 0
    assert summary["trainer/global_step"] == 19


def test_the_table_says_what_how_strongly_and_what_came_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    module = LinearRegression(10, l1_strength=Linear(0.0, 0.4), l2_strength=0.1)
    monitor = RegularizationMonitor()
    fit(module, monitor, steps=40, loader=batches(), max_epochs=-1, log_every_n_steps=10)
    printed = capsys.readouterr().out
    assert "Regularization after 40 steps" in printed
    console = Console(file=io.StringIO(), width=160)
    console.print(monitor.as_table(module.trainer, module))
    text = console.file.getvalue()
    zeros = float((module.linear.weight == 0).float().mean())
    assert 0 < zeros < 1
    penalized = ("linear.weight", "l1, l2", "l1 0.4 (proximal)", "l2 0.1 (proximal)")
    for expected in (*penalized, f"{zeros:.1%}", "0 → "):
        assert expected in text


class Validated(Dropping):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def val_dataloader(self) -> Any:
        return batches()


def test_the_table_has_the_rates_of_training_and_not_those_that_validation_runs_with() -> None:
    module, monitor = Validated(), RegularizationMonitor(table=False)
    trainer = fit(module, DropoutScheduler(lambda step, total: 0.5), monitor, steps=4)
    assert module.net[2].p == 0.25
    console = Console(file=io.StringIO(), width=80)
    console.print(monitor.as_table(trainer, module))
    assert "dropout (element) 0.5 at net.2.p" in console.file.getvalue()


def test_bad_selection_is_said_at_fit_start() -> None:
    with pytest.raises(ValueError, match="matches none"):
        fit(Net(), RegularizationMonitor("encoder.*"))


def test_it_takes_any_logger() -> None:
    seen = []

    class Recording(Logger):
        name, version = "recording", 0

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            seen.append((step, metrics))

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
            pass

    monitored(Recording())
    ours = [(step, metrics) for step, metrics in seen if "sparsity" in metrics]
    assert [step for step, _ in ours] == [4, 9, 14, 19]
