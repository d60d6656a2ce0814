"""The cells of the conformance table, and the loop in float64 that each is held against.

The loop is plain PyTorch in one process: no Trainer, no callback, and of this library the formulas alone.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg import (
    L0,
    L1,
    L2,
    L2SP,
    MCP,
    SCAD,
    SLOPE,
    ElasticNet,
    GroupLasso,
    GroupMCP,
    GroupSCAD,
    Hoyer,
    HoyerSquare,
    L2Norm,
    LHalf,
    LInf,
    LogSum,
    NuclearNorm,
    Orthogonality,
    OverlappingGroupLasso,
    Penalty,
    SparseGroupLasso,
    SpectralNorm,
    TotalVariation,
)
from lightning_reg.apply import check_apply
from tests.support import data, network

STEPS = 6
BATCH = 8
APPLY = ("gradient", "loss", "decoupled", "proximal")

#: Strong enough that six steps show each of them far above the tolerances.
FAMILIES: dict[str, Penalty] = {
    "L1": L1(0.3),
    "L2": L2(1.0),
    "ElasticNet": ElasticNet(0.5, l1_ratio=0.4),
    "L2Norm": L2Norm(0.9),  # at 0.8 a ReLU switches in bfloat16: 6e-2 under every strategy
    "L2SP": L2SP(2.0, reference={k: 0.5 * v.detach() for k, v in network().double().state_dict().items()}),
    "MCP": MCP(0.4),
    "SCAD": SCAD(0.3),
    "LHalf": LHalf(0.1),
    "L0": L0(0.1),
    "LogSum": LogSum(0.1, eps=0.2),
    "Hoyer": Hoyer(0.5),
    "HoyerSquare": HoyerSquare(0.1),
    "GroupLasso, rows": GroupLasso(0.3, groups="rows"),
    "GroupLasso, columns": GroupLasso(0.3, groups="columns"),
    "GroupMCP": GroupMCP(0.3),
    "GroupSCAD": GroupSCAD(0.3),
    "SparseGroupLasso": SparseGroupLasso(0.3, l1_ratio=0.4),
    "LInf": LInf(0.6, groups="rows"),
    "SLOPE": SLOPE(0.5, last=0.2),
    "TotalVariation": TotalVariation(0.3),
    "NuclearNorm": NuclearNorm(0.5),
    "SpectralNorm": SpectralNorm(0.8, iterations=2000),  # far enough to be compared with the exact one
    "Orthogonality": Orthogonality(0.5),
    "OverlappingGroupLasso": OverlappingGroupLasso(0.2),
}
#: So many of them, the first, take turns in :func:`crossed`: of more, not each would meet every setting.
TURNS = 23
#: Adam's ε is large, else a gradient near 0 would be scaled up with all its rounding.
OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.5),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.03, eps=0.1),
}
CLIPPING: dict[str, dict[str, Any]] = {
    "none": {},
    "norm": {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "norm"},
    "value": {"gradient_clip_val": 0.2, "gradient_clip_algorithm": "value"},
}
#: Relative distance from the loop, with the reason that the page gives.
TOLERANCES = {
    "64-true": (1e-10, "sums in another order, and singular value decompositions"),
    "32-true": (1e-4, "float32 rounding, 6e-8, over six steps and a decomposition in each"),
    "bf16-mixed": (5e-2, "a forward pass in 8 bits, 4e-3 an operation; near 0 a sign turns, a ReLU switches"),
    "16-mixed": (2e-2, "a forward pass in 11 bits, 5e-4 an operation; a ReLU near 0 switches"),
    "bf16-true": (6e-2, "as bf16-mixed, and weights and updates in 8 bits"),
}


@dataclass(frozen=True)
class Cell:
    """One training run of the table."""

    family: str
    apply: Any
    strategy: str
    precision: str
    optimizer: str = "SGD"
    accumulate: int = 1
    clip: str = "none"


def whole(strategy: str, optimizer: str = "SGD") -> list[Cell]:
    """Every family with every ``apply``."""
    precision = "32-true" if sharded(strategy) else "64-true"
    return [Cell(f, a, strategy, precision, optimizer) for f, a in itertools.product(FAMILIES, APPLY)]


def crossed(strategy: str) -> list[Cell]:
    """Every precision, accumulation, clipping and ``apply``; families and optimizers take turns.

    It is the turn of the family that has met the precision least often, and then the other settings, so that
    each of the first 23 meets all of them.
    """
    cells: list[Cell] = []
    met: Counter[tuple[str, Any]] = Counter()
    for i, (precision, accumulate, clip) in enumerate(itertools.product(TOLERANCES, (1, 2), CLIPPING)):
        for j, apply in enumerate(APPLY):
            optimizer = ("SGD", "Adam")[(i + i // 3 + j) % 2]
            able = [family for family in list(FAMILIES)[:TURNS] if takes(family, apply, optimizer)]
            others = (accumulate, clip, optimizer, apply)
            family = min(
                able, key=lambda name: (met[name, precision], sum(met[name, other] for other in others))
            )
            met.update((family, setting) for setting in (precision, *others))
            cells.append(Cell(family, apply, strategy, precision, optimizer, accumulate, clip))
    return cells


def sharded(strategy: str) -> bool:
    """Whether it is one of ``ModelParallelStrategy``."""
    return strategy.startswith("FSDP2")


def takes(family: str, apply: Any, optimizer: str) -> bool:
    """Whether the family goes with them on one device."""
    penalty = FAMILIES[family]
    try:
        check_apply(penalty, apply)
    except ValueError:
        return False
    return apply != "proximal" or optimizer == "SGD" or penalty.prox_in_metric


def reference(cell: Cell) -> Tensor:
    """The weights that the cell should end with."""
    # the two are one thing
    apply = "loss" if cell.apply == "gradient" else cell.apply
    return _loop(cell.family, apply, cell.optimizer, cell.accumulate, cell.clip)


def without(cell: Cell) -> Tensor:
    """The weights that it would end with if nothing were applied."""
    return _loop(cell.family, "none", cell.optimizer, cell.accumulate, cell.clip)


@functools.cache
def _loop(family: str, apply: str, optimizer_name: str, accumulate: int, clip: str) -> Tensor:
    net = network().double()
    optimizer = OPTIMIZERS[optimizer_name](net.parameters())
    value, gradient, prox = _formulas(FAMILIES[family])
    penalized = {name: p for name, p in net.named_parameters() if p.dim() > 1}
    x, y = data(dtype=torch.float64).tensors
    batches: Iterator[Any] = itertools.cycle(zip(x.split(BATCH), y.split(BATCH), strict=True))
    factor, count, memory = 1.0, 0.0, {"SGD": 0.5, "Adam": 0.9}[optimizer_name]
    for _ in range(STEPS):
        optimizer.zero_grad()
        for _ in range(accumulate):
            inputs, targets = next(batches)
            loss = nn.functional.mse_loss(net(inputs), targets)
            if apply == "loss":
                loss = loss + sum(value(name, p) for name, p in penalized.items())
            (loss / accumulate).backward()
        if clip == "norm":
            limit = CLIPPING[clip]["gradient_clip_val"]
            norm = nn.utils.clip_grad_norm_(net.parameters(), limit)
            # a proximal step goes as far as the gradients that the optimizer has in its momentum
            count = memory * count + 1.0
            factor += (min(1.0, limit / (float(norm) + 1e-6)) - factor) / count
        elif clip == "value":
            nn.utils.clip_grad_value_(net.parameters(), CLIPPING[clip]["gradient_clip_val"])
        with torch.no_grad():
            if apply == "decoupled":
                for name, p in penalized.items():
                    p.sub_(gradient(name, p), alpha=optimizer.param_groups[0]["lr"])
            optimizer.step()
            if apply == "proximal":
                for name, p in penalized.items():
                    p.copy_(prox(name, p, factor * _step_size(optimizer, p)))
    return nn.utils.parameters_to_vector(net.parameters()).detach()


def _formulas(penalty: Penalty) -> tuple[Any, Any, Any]:
    """Value, gradient and prox of a named tensor."""
    strength: Any = penalty.strength
    if isinstance(penalty, L2SP):
        start: Any = penalty.reference
        return (
            lambda name, w: strength / 2 * (w - start[name]).square().sum(),
            lambda name, w: strength * (w - start[name]),
            lambda name, w, eta: start[name] + (w - start[name]) / (1 + eta * strength),
        )
    return (
        lambda name, w: penalty.value(w, strength),
        lambda name, w: penalty.gradient(w, strength),
        lambda name, w, eta: penalty.prox(w, strength, eta),
    )


def _step_size(optimizer: torch.optim.Optimizer, p: Tensor) -> float | Tensor:
    group, state = optimizer.param_groups[0], optimizer.state[p]
    if isinstance(optimizer, torch.optim.SGD):
        return group["lr"] / (1 - group["momentum"])
    debiased = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
    return group["lr"] / (debiased.sqrt() + group["eps"])


def renamed(penalty: Penalty, prefix: str) -> Penalty:
    """The penalty on the weights of one network of a module."""
    if isinstance(penalty, L2SP):
        reference = {f"{prefix}.{name}": start for name, start in (penalty.reference or {}).items()}
        penalty = replace(penalty, reference=reference)
    return replace(penalty, select=f"{prefix}.*.weight")
