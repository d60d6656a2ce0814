"""What a penalty adds to whole steps of the Trainer, to an optimizer's step, to building and to importing."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.harness import Row, interleaved, rows
from benchmarks.lists import make
from benchmarks.networks import Timed, resnet18, tiny, transformer, tutorial
from benchmarks.shapes import NETWORKS
from lightning_reg import L1, L2, L2Norm, attach
from lightning_reg.apply import Term, add_gradient_, decay_, prox_
from lightning_reg.callbacks import L1PenaltyCallback, L2PenaltyCallback, PenaltyCallback
from lightning_reg.tensors.compiled import compile_kernels

STRENGTH = 1e-6
SGD = partial(torch.optim.SGD, lr=1e-3, momentum=0.9)


def fit(
    module: pl.LightningModule, callbacks: list[pl.Callback], batch: tuple[Tensor, Tensor], steps: int
) -> None:
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=callbacks,
    )
    trainer.fit(module, DataLoader([batch] * steps, batch_size=None))  # type: ignore[arg-type]


def quiet() -> None:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


# --- the tutorial's network, where nothing but overhead takes time ---------------------------------------


class Idle(pl.Callback):
    """What Lightning itself asks for the hook that a penalty acts in."""

    def on_before_optimizer_step(self, *args: object) -> None:
        pass


def norms(order: int) -> Callable[[nn.Module], Tensor]:
    return lambda module: STRENGTH * sum(torch.norm(p, order) for p in module.parameters())


def variants() -> dict[str, tuple[Callable[[nn.Module], Tensor] | None, Callable[[], list[pl.Callback]]]]:
    """Name, penalty by hand, callbacks."""
    l1 = partial(L1PenaltyCallback, STRENGTH, select="all")
    l2 = partial(L2PenaltyCallback, STRENGTH, select="all")
    return {
        "no penalty": (None, list),
        "a Callback that does nothing": (None, lambda: [Idle()]),
        "tutorial's loop, torch.norm(p, 1)": (norms(1), list),
        "tutorial's loop, torch.norm(p, 2)": (norms(2), list),
        "L1PenaltyCallback": (None, lambda: [l1()]),
        "L2PenaltyCallback": (None, lambda: [l2()]),
        "L2Norm": (None, lambda: [PenaltyCallback(L2Norm(STRENGTH, select="all"))]),
        "L1, loss": (None, lambda: [l1(apply="loss")]),
        "L2, decoupled": (None, lambda: [l2(apply="decoupled")]),
        "L1, proximal": (None, lambda: [l1(apply="proximal")]),
    }


def tutorial_steps(rounds: int = 12, steps: int = 150) -> list[Row]:
    """Each round fits every variant once, in turn.

    The time that one step in ten stays below counts, so that neither a busy moment of the machine nor the
    steps that log weigh in.
    """
    quiet()
    torch.set_num_threads(1)
    batch = (torch.randn(32, 10), torch.randn(32, 1))
    taken: dict[str, list[float]] = {name: [] for name in variants()}
    for _ in range(rounds):
        for name, (penalty, callbacks) in variants().items():
            torch.manual_seed(0)
            module = Timed(tutorial(), SGD, penalty)
            fit(module, callbacks(), batch, steps)
            taken[name] += [later - earlier for earlier, later in pairwise(module.begun)]
    best = {name: sorted(times)[len(times) // 10] for name, times in taken.items()}
    added = {name: [value - best["no penalty"]] for name, value in best.items() if name != "no penalty"}
    found = rows("tutorial's network, added to a step", added, 1, "tutorial's loop, torch.norm(p, 1)")
    for row in found:
        if "L1" in row["case"] or "L2" in row["case"]:
            row["wanted"] = 1.0 / 3.0
    return found


# --- networks with work to do ----------------------------------------------------------------------------


def every_other_step(step: int, total_steps: int | None) -> float:
    return STRENGTH * (step % 2)


def large_steps(threads: int, steps: int = 46) -> list[Row]:
    """A penalty that acts on every other step of one fit: steps with it and without see the same machine."""
    quiet()
    torch.set_num_threads(threads)
    image = (torch.randn(32, 3, 64, 64), torch.randint(1000, (32,)))
    text = (torch.randn(16, 64, 256), torch.randint(10, (16,)))
    networks = {"ResNet-18": (resnet18, image), "transformer, 6 layers": (transformer, text)}
    found: list[Row] = []
    for name, (net, batch) in networks.items():
        for case, optimizer, callback, fused in (
            ("L1, gradient, SGD", SGD, partial(L1PenaltyCallback), False),
            ("L1, proximal, Adam", torch.optim.Adam, partial(L1PenaltyCallback, apply="proximal"), False),
            (
                "L1, proximal, Adam, compiled",
                torch.optim.Adam,
                partial(L1PenaltyCallback, apply="proximal"),
                True,
            ),
        ):
            torch.manual_seed(0)
            module = Timed(net(), optimizer)
            module.net(batch[0][:2])  # lazy layers take their shape
            compile_kernels(fused)
            fit(module, [callback(every_other_step)], batch, steps)
            compile_kernels(False)
            seconds = [later - earlier for earlier, later in pairwise(module.begun)][4:]
            without = f"without: {case}"
            times = {without: seconds[::2], case: seconds[1::2]}
            found += rows(f"{name}, a step", times, threads, without, {case: 1.02})
    return found


# --- beside the optimizer's own weight decay -------------------------------------------------------------


def weight_decay(threads: int, rounds: int = 20) -> list[Row]:
    """One step of SGD on ResNet-50's list, with its own weight decay and with ours."""
    found: list[Row] = []
    for form in ({"foreach": True}, {"fused": True}):
        name = f"SGD({next(iter(form))}=True)"
        cases: dict[str, Callable[[], object]] = {}
        for case, decay in (
            ("no decay", 0.0),
            ("weight_decay", STRENGTH),
            ("L2, gradient", 0.0),
            ("L2, decoupled", 0.0),
        ):
            plain = make(NETWORKS["ResNet-50"](), moments=False)
            params = [nn.Parameter(param.detach()) for param in plain.params]
            for param, grad in zip(params, plain.grads, strict=True):
                param.grad = grad
            optimizer = torch.optim.SGD(params, lr=1e-9, weight_decay=decay, **form)
            if case.startswith("L2"):
                model = nn.ParameterList(params)
                attach(model, optimizer, L2(STRENGTH, select="all"), apply=case.split(", ")[1])
            cases[case] = optimizer.step
        found += rows(f"ResNet-50, {name}", interleaved(cases, threads, rounds), threads, "weight_decay")
    return found


# --- many tiny tensors, building, importing --------------------------------------------------------------


def many_tensors(rounds: int = 20) -> list[Row]:
    """The work of one step on tensors of nine numbers; times are by tensor."""
    times: dict[str, list[float]] = {}
    against: dict[str, str] = {}
    for count in (2_500, 5_000, 10_000):
        module = tiny(count)
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        sgd, adam = (
            torch.optim.SGD(module.parameters(), lr=1e-9),
            torch.optim.Adam(module.parameters(), lr=1e-9),
        )
        adam.step()
        l1, l2 = Term(L1(STRENGTH), module), Term(L2(STRENGTH), module)
        cases = {
            "L1, gradient": partial(add_gradient_, l1, sgd, STRENGTH),
            "L2, gradient": partial(add_gradient_, l2, sgd, STRENGTH),
            "L2, decoupled": partial(decay_, l2, sgd, STRENGTH, int),
            "L1, proximal, SGD": partial(prox_, l1, sgd, STRENGTH, int),
            "L1, proximal, Adam": partial(prox_, l1, adam, STRENGTH, int),
        }
        for name, seconds in interleaved(cases, 1, rounds).items():
            times[f"{name}, {count:,} tensors"] = [total / count for total in seconds]
            against[f"{name}, {count:,} tensors"] = f"{name}, 2,500 tensors"
    return rows("tiny tensors, by tensor", times, 1, against)


class Building(pl.Callback):
    """Starts a penalty callback again and again, and times it."""

    def __init__(self, callback: L1PenaltyCallback) -> None:
        self.callback = callback
        self.seconds: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for _ in range(20):
            start = time.perf_counter()
            L1PenaltyCallback(STRENGTH).on_fit_start(trainer, pl_module)
            self.seconds.append(time.perf_counter() - start)


def building() -> list[Row]:
    quiet()
    building = Building(L1PenaltyCallback(STRENGTH))
    module = Timed(nn.Sequential(nn.Linear(10, 1), tiny(10_000)), SGD)
    module.net.forward = module.net[0].forward  # type: ignore[method-assign]
    fit(module, [building], (torch.randn(4, 10), torch.randn(4, 1)), 1)
    return rows(
        "on a module of 10,000 tensors", {"building a callback": building.seconds}, 1, "building a callback"
    )


IMPORT = (
    "import time, lightning.pytorch; start = time.perf_counter()\n"
    "import {}\n"
    "print(time.perf_counter() - start)"
)


def importing(rounds: int = 7) -> list[Row]:
    """What an import adds; ``callbacks`` also brings the other namespace, ``pytorch_lightning``."""
    seconds: dict[str, list[float]] = {"lightning_reg": [], "lightning_reg.callbacks": []}
    for _ in range(rounds):
        for name, taken in seconds.items():
            command = [sys.executable, "-c", IMPORT.format(name)]
            taken.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    cases = {f"import {name}": taken for name, taken in seconds.items()}
    return rows("after import lightning", cases, 1, "import lightning_reg")


def overhead() -> Iterator[Row]:
    """Where nothing but Python takes time."""
    yield from tutorial_steps()
    yield from many_tensors()
    yield from building()
    yield from importing()
