"""The ways in, each a function that trains the same task: callback, module, attach, Fabric, Hugging Face."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from lightning_reg import RegularizedModule, attach
from lightning_reg.callbacks import PenaltyCallback
from tests.support import QUIET, data, network

Batch = tuple[Tensor, Tensor]


def mean_squared_error(net: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.mse_loss(net(batch[0]), batch[1])


@dataclass
class Task:
    """What is trained, and what becomes of it; ``penalty`` None is the run without one."""

    penalty: Any
    apply: str = "gradient"
    make: Callable[[Iterable[nn.Parameter]], Optimizer] = lambda parameters: SGD(parameters, lr=0.01)
    net: nn.Module = field(default_factory=lambda: network().double())
    loss: Callable[[nn.Module, Batch], Tensor] = mean_squared_error
    steps: int = 6
    #: Called ahead of each step with its number, the network and the optimizer.
    before: Callable[[int, nn.Module, Optimizer], Any] = lambda step, net, optimizer: None
    #: A gradient scaler, and the step at which the loss overflows.
    overflows_at: int | None = None
    #: Left by the run: the optimizer, and the weights ahead of each step.
    optimizer: Optimizer | None = None
    seen: list[Tensor] = field(default_factory=list)

    def batches(self) -> list[Batch]:
        dtype = next(self.net.parameters()).dtype
        x, y = data(8 * self.steps, torch.float64).tensors
        return list(zip(x.to(dtype).split(8), y.to(dtype).split(8), strict=True))

    def look(self, step: int, optimizer: Any) -> None:
        while isinstance(
            getattr(optimizer, "optimizer", None), Optimizer
        ):  # as Accelerate and Fabric wrap it
            optimizer = optimizer.optimizer
        self.optimizer = optimizer
        if not any(isinstance(p, nn.UninitializedParameter) for p in self.net.parameters()):
            self.seen.append(self.weights())
        self.before(step, self.net, optimizer)

    def loss_at(self, step: int, net: nn.Module, batch: Batch) -> Tensor:
        loss = self.loss(net, batch)
        return loss * float("inf") if step == self.overflows_at else loss

    def weights(self) -> Tensor:
        return nn.utils.parameters_to_vector(p.detach() for p in self.net.parameters())

    def scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=self.overflows_at is not None)


class Plain(pl.LightningModule):
    """A task as a module of Lightning's."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task, self.net = task, task.net

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.task.loss_at(batch_idx, self.net, batch)

    def configure_optimizers(self) -> Optimizer:
        return self.task.make(self.net.parameters())


class Regularized(RegularizedModule):
    def __init__(self, task: Task) -> None:
        super().__init__(task.penalty, task.apply)
        self.task, self.net = task, task.net

    def task_loss(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.task.loss_at(batch_idx, self.net, batch)

    configure_optimizers = Plain.configure_optimizers


class Look(pl.Callback):
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.task.look(batch_idx, trainer.optimizers[0])


def _lightning(module: pl.LightningModule, task: Task, *callbacks: pl.Callback) -> None:
    options: dict[str, Any] = {}
    if task.overflows_at is not None:
        options["plugins"] = [pl.plugins.MixedPrecision("16-mixed", "cpu", task.scaler())]
    elif next(task.net.parameters()).dtype == torch.float64:
        options["precision"] = "64-true"
    trainer = pl.Trainer(callbacks=[Look(), *callbacks], max_steps=task.steps, **QUIET, **options)
    trainer.fit(module, DataLoader(task.batches(), batch_size=None))


def callback(task: Task) -> None:
    penalties = [] if task.penalty is None else [PenaltyCallback(task.penalty, apply=task.apply)]
    _lightning(Plain(task), task, *penalties)


def module(task: Task) -> None:
    _lightning(Plain(task) if task.penalty is None else Regularized(task), task)


def _loop(task: Task, net: nn.Module, optimizer: Any, backward: Any, step: Any) -> None:
    handle = None
    if task.penalty is not None:
        handle = attach(net, optimizer, task.penalty, task.apply, total_steps=task.steps)
    for i, batch in enumerate(task.batches()):
        task.look(i, optimizer)
        optimizer.zero_grad()
        backward(task.loss_at(i, net, batch))
        step(optimizer)
    if handle is not None:
        handle.remove()


def plain_loop(task: Task) -> None:
    scaler = task.scaler()

    def step(optimizer: Optimizer) -> None:
        scaler.step(optimizer)
        scaler.update()

    _loop(task, task.net, task.make(task.net.parameters()), lambda loss: scaler.scale(loss).backward(), step)


def fabric(task: Task) -> None:
    options: dict[str, Any] = {}
    dtype = next(task.net.parameters()).dtype
    if task.overflows_at is not None:
        options["plugins"] = [MixedPrecision("16-mixed", "cpu", task.scaler())]
    elif dtype == torch.float64:
        options["precision"] = "64-true"
    host = Fabric(accelerator="cpu", devices=1, **options)
    net, optimizer = host.setup(task.net, task.make(task.net.parameters()))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # to which Fabric casts what a network puts out
    try:
        _loop(
            task,
            net,
            optimizer,
            lambda loss: host.backward(loss, model=net),
            lambda optimizer: optimizer.step(),
        )
    finally:
        torch.set_default_dtype(before)


def hugging_face(task: Task) -> None:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from lightning_reg.hosts.hugging_face import PenaltyTrainerCallback

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = task.net

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": task.loss(self.net, (x, labels))}

    class InOrder(Trainer):
        def get_train_dataloader(self) -> DataLoader:
            batches = [{"x": x, "labels": y} for x, y in task.batches()]
            return self.accelerator.prepare(DataLoader(batches, batch_size=None))

    class Steady(LRScheduler):
        def get_lr(self) -> list[float]:
            return [group["lr"] for group in self.optimizer.param_groups]

    class Before(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, *, optimizer: Any, **_: Any) -> None:
            task.look(state.global_step, optimizer)

    optimizer = task.make(task.net.parameters())
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            use_cpu=True,
            max_steps=task.steps,
            max_grad_norm=0.0,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        callbacks = [Before()]
        if task.penalty is not None:
            callbacks.append(PenaltyTrainerCallback(task.penalty, task.apply))
        optimizers = optimizer, Steady(optimizer)
        InOrder(Net(), arguments, callbacks=callbacks, optimizers=optimizers).train()


@dataclass(frozen=True)
class Way:
    """A way in: what runs a task, and what its host allows."""

    name: str
    run: Callable[[Task], None]
    modes: tuple[str, ...]
    has_scaler: bool = True
    takes_lazy: bool = True

    def __str__(self) -> str:
        return self.name

    def __call__(self, penalty: Any, apply: str = "gradient", **options: Any) -> Task:
        torch.manual_seed(0)
        task = Task(penalty, apply, **options)
        self.run(task)
        return task


MODES = ("gradient", "decoupled", "proximal")
WAYS = [
    Way("callback", callback, (*MODES, "loss")),
    Way("module", module, (*MODES, "loss")),
    Way("attach", plain_loop, MODES),
    Way("fabric", fabric, MODES),
    *([Way("hugging_face", hugging_face, MODES, False, False)] if find_spec("transformers") else []),
]


def in_every_mode() -> list[tuple[Way, str]]:
    return [(way, mode) for way in WAYS for mode in way.modes]
