"""What each pass of a step costs on ResNet-50's parameters, fused by numba and eager."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import Row, interleaved, rows
from benchmarks.lists import AXPY, STRENGTH, Cases, make
from benchmarks.shapes import NETWORKS
from lightning_reg import L1, MCP, SCAD, ElasticNet, GroupLasso, L2Norm, LHalf, Penalty
from lightning_reg.penalties.bound import Bound, Held
from lightning_reg.select.parameters import Selected
from lightning_reg.tensors.fused import fuse_kernels
from lightning_reg.tensors.steps import StepSize

#: Ratios to axpy that were wanted before anything was measured: fused, eager.
WANTED: dict[str, tuple[float | None, float | None]] = {
    "L1, gradient": (1.25, 1.6),
    "elastic net, gradient": (1.3, 2.0),
    "L1, dual averaged, SGD": (1.45, 3.0),
    "L1, dual averaged, Adam": (1.8, 5.0),
    "group lasso, proximal, SGD": (1.3, 2.0),
    "group lasso, proximal, Adam": (5.0, 15.0),
    "L2Norm, proximal, Adam": (5.0, 15.0),
    "MCP, proximal, Adam": (2.5, None),
    "SCAD, proximal, Adam": (2.5, None),
    "LHalf, proximal, Adam": (8.0, None),
}


def step_(penalty: Bound, weights: list[Tensor], averages: list[Tensor], steps: list[StepSize]) -> None:
    """A dual averaged proximal step, as the engine takes it."""
    shares = [0.01] * len(weights)
    left = penalty.hold_zeros_(Held(weights, averages, steps, shares), STRENGTH)
    if left:
        penalty.prox_([weights[i] for i in left], STRENGTH, [steps[i] for i in left])


def bound(penalty: Penalty, weights: list[Tensor]) -> Bound:
    module = torch.nn.Module()
    return penalty.bind([Selected("weight", w, module, ("weight",), (module,)) for w in weights])


def cases() -> Cases:
    lists = make([shape for shape in NETWORKS["ResNet-50"]() if len(shape) > 1])
    weights = [param.detach() for param in lists.params]
    averages = [torch.zeros_like(weight) for weight in weights]
    sgd = [StepSize(1e-3)] * len(weights)
    adam = [StepSize(1e-3, moment, 1.0, 1e-8) for moment in lists.moments]
    l1, elastic_net = L1(STRENGTH), ElasticNet(STRENGTH)
    groups = bound(GroupLasso(STRENGTH), weights)
    passes: dict[str, Callable[[], object]] = {
        "L1, gradient": lambda: l1.add_gradient_(lists.grads, weights, STRENGTH),
        "elastic net, gradient": lambda: elastic_net.add_gradient_(lists.grads, weights, STRENGTH),
        "L1, dual averaged, SGD": partial(step_, l1, weights, averages, sgd),
        "L1, dual averaged, Adam": partial(step_, l1, weights, averages, adam),
        "group lasso, proximal, SGD": lambda: groups.prox_(weights, STRENGTH, sgd),
        "group lasso, proximal, Adam": lambda: groups.prox_(weights, STRENGTH, adam),
    }
    for penalty in (L2Norm(STRENGTH), MCP(STRENGTH), SCAD(STRENGTH), LHalf(STRENGTH)):
        passes[f"{type(penalty).__name__}, proximal, Adam"] = partial(penalty.prox_, weights, STRENGTH, adam)
    found: Cases = {AXPY: lambda: torch._foreach_add_(lists.grads, weights, alpha=STRENGTH)}
    for name, run in passes.items():
        found[name] = run
        found[f"{name}, eager"] = partial(eagerly, run)
    return found


def eagerly(run: Callable[[], object]) -> None:
    fuse_kernels(False)
    run()
    fuse_kernels()


def measure(threads: int, rounds: int = 20) -> list[Row]:
    """Every pass, fused and eager."""
    wanted = {name: fused for name, (fused, _) in WANTED.items() if fused is not None}
    wanted |= {f"{name}, eager": eager for name, (_, eager) in WANTED.items() if eager is not None}
    every = cases()
    for run in every.values():  # load code first
        run()
    return rows("ResNet-50, fused and eager", interleaved(every, threads, rounds), threads, AXPY, wanted)
