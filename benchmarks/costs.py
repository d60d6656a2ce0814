"""What the penalties cost that ``lists`` leaves out; constraints; penalties on the forward pass; dropout.

Weights and filters are those of ResNet-50's 54 tensors of two or more dimensions. Singular value
decompositions and sorting, of which a step over that whole list would take many seconds, are timed on its
last layer alone. What acts on a batch is timed as part of a training step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from itertools import pairwise

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.harness import Row, interleaved, rows
from benchmarks.lists import AXPY, Cases, Lists, make
from benchmarks.networks import Timed, transformer
from benchmarks.shapes import NETWORKS
from benchmarks.steps import SGD, fit, quiet
from lightning_reg import (
    L0,
    L1,
    L2SP,
    MCP,
    SCAD,
    SLOPE,
    ActivityPenalty,
    ConfidencePenalty,
    Cosine,
    ForwardPenalty,
    GroupLasso,
    GroupMCP,
    GroupSCAD,
    Hoyer,
    HoyerSquare,
    JacobianPenalty,
    L2Norm,
    LHalf,
    LInf,
    LogSum,
    NuclearNorm,
    Orthogonality,
    OverlappingGroupLasso,
    Penalty,
    RDrop,
    SparseGroupLasso,
    SpectralNorm,
    TargetSparsity,
    TotalVariation,
)
from lightning_reg.callbacks import DropoutInjector, DropoutScheduler
from lightning_reg.groups.layout import Slices
from lightning_reg.penalties import Bound
from lightning_reg.prox.projections import box_, max_norm_, spend_budget_, unit_norm_
from lightning_reg.schedules.target_sparsity import Controller
from lightning_reg.select.parameters import Selected
from lightning_reg.tensors.steps import StepSize

STRENGTH = 1e-5  # repeated, it moves weights of 0.1 by less than a hundredth
ROUNDS = 20
NATIVE = "three nn.Dropout"

SINGLE = {
    "L2SP": L2SP(STRENGTH),
    "L2Norm": L2Norm(STRENGTH),
    "MCP": MCP(STRENGTH),
    "SCAD": SCAD(STRENGTH),
    "L0": L0(STRENGTH),
    "LHalf": LHalf(STRENGTH),
    "LogSum": LogSum(STRENGTH),
    "Hoyer": Hoyer(STRENGTH),
    "HoyerSquare": HoyerSquare(STRENGTH),
}
GROUPED = {
    "GroupLasso": GroupLasso(STRENGTH),
    "GroupMCP": GroupMCP(STRENGTH),
    "GroupSCAD": GroupSCAD(STRENGTH),
    "SparseGroupLasso": SparseGroupLasso(STRENGTH),
    "LInf": LInf(STRENGTH, groups="rows"),
}
MATRICES = {
    "SpectralNorm": SpectralNorm(STRENGTH),
    "Orthogonality, soft": Orthogonality(STRENGTH),
    "Orthogonality, double": Orthogonality(STRENGTH, form="double"),
    "Orthogonality, srip": Orthogonality(STRENGTH, form="srip"),
}


def bind(penalty: Penalty, weights: list[Tensor]) -> Bound:
    module = nn.Module()
    return penalty.bind(
        [Selected(f"{i}.weight", w, module, (f"{i}.weight",), (module,)) for i, w in enumerate(weights)]
    )


def of_penalties(penalties: Mapping[str, Penalty], lists: Lists, prox: bool = True) -> Cases:
    """The gradient and the proximal steps of each penalty, as far as it has them, and ``axpy``."""
    weights = [param.detach() for param in lists.params]
    euclidean = [StepSize(0.1)] * len(weights)
    adam = [StepSize(1e-3, moment, 1.0, 1e-8) for moment in lists.moments]
    cases: Cases = {AXPY: lambda: torch._foreach_add_(lists.grads, weights, alpha=1e-9)}
    for name, penalty in penalties.items():
        bound = bind(penalty, weights)
        if penalty.has_gradient:
            cases[f"{name} gradient"] = partial(bound.add_gradient_, lists.grads, weights, STRENGTH)
        if prox and penalty.has_prox:
            cases[f"{name} proximal, Euclidean"] = partial(bound.prox_, weights, STRENGTH, euclidean)
        if prox and penalty.prox_in_metric:
            cases[f"{name} proximal, Adam's metric"] = partial(bound.prox_, weights, STRENGTH, adam)
    return cases


def of_constraints(lists: Lists) -> Cases:
    """Constraints, and one look of TargetSparsity; by default it takes one in five steps."""
    weights = [param.detach() for param in lists.params]
    rows_of = [Slices(tuple(weight.shape), keep=(0,)) for weight in weights]
    zero, budget = torch.zeros(()), torch.ones(())

    def each(act: Callable[..., None], *arguments: float) -> Callable[[], None]:
        def run() -> None:
            for weight, layout in zip(weights, rows_of, strict=True):
                act(weight, layout, *arguments)

        return run

    def boxes() -> None:
        for weight in weights:
            box_(weight, 0.0, float("inf"))

    def budgets() -> None:
        for weight in weights:
            spend_budget_(weight, zero, budget, 0.0)

    cases: Cases = {
        AXPY: lambda: torch._foreach_add_(lists.grads, weights, alpha=1e-9),
        "MaxNorm": each(max_norm_, 3.0),
        "UnitNorm": each(unit_norm_),
        "NonNegative": boxes,
        "NormBudget": budgets,
    }
    for of, penalty in {"weights": L1(STRENGTH), "groups": GroupLasso(STRENGTH)}.items():
        bound = bind(penalty, weights)
        control = Controller(TargetSparsity(0.5, every=1), partial(bound.sizes, weights))

        def look(control: Controller = control) -> None:
            control.strength(control._now[0] + 1, 1_000_000)
            control.observe()

        cases[f"TargetSparsity, a look at {of}"] = look
    return cases


def forward_cases() -> Cases:
    """Steps of one transformer, by itself and with what acts on its batch.

    Attention is computed by ``SDPBackend.MATH``: the others lack the second derivative that the Jacobian's
    penalty takes.
    """
    torch.manual_seed(0)
    x, y = torch.randn(2, 64, 256), torch.randint(10, (2,))
    plain = transformer()
    plain(x)  # lazy layers take their shape

    def train(net: nn.Module, penalty: ForwardPenalty | None) -> Callable[[], None]:
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-9)

        def run() -> None:
            optimizer.zero_grad()
            with sdpa_kernel(SDPBackend.MATH), penalty.record(net) if penalty else nullcontext() as term:
                loss = F.cross_entropy(net(x), y)
                if term is not None:
                    loss = loss + term.value()
                loss.backward()
            optimizer.step()

        return run

    penalties: dict[str, ForwardPenalty | None] = {
        "without": None,
        "ActivityPenalty on every linear1": ActivityPenalty(L1(STRENGTH), modules="*.linear1"),
        "ConfidencePenalty": ConfidencePenalty(0.1),
        "JacobianPenalty": JacobianPenalty(0.01),
        "RDrop": RDrop(1.0),
    }
    return {name: train(copy.deepcopy(plain), penalty) for name, penalty in penalties.items()}


class ByHand(pl.Callback):
    """A rate a step, written to every dropout."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        for module in pl_module.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.3 * trainer.global_step / 1000


def small(dropout: bool) -> nn.Module:
    layers = [[nn.Linear(10, 10), nn.ReLU(), *[nn.Dropout(0.1)] * dropout] for _ in range(3)]
    return nn.Sequential(*(module for layer in layers for module in layer), nn.Linear(10, 1))


def dropout_steps(rounds: int = 12, steps: int = 150) -> list[Row]:
    """What callbacks on dropout add to a step in which nothing but overhead takes time.

    The time that one step in ten stays below counts, as in ``steps.tutorial_steps``.
    """
    quiet()
    batch = (torch.randn(32, 10), torch.randn(32, 1))
    variants: dict[str, tuple[bool, Callable[[], list[pl.Callback]]]] = {
        "no dropout": (False, list),
        NATIVE: (True, list),
        "module.p = rate, by hand": (True, lambda: [ByHand()]),
        "DropoutScheduler, a new rate a step": (True, lambda: [DropoutScheduler(Cosine(0.0, 0.3))]),
        "DropoutScheduler, one rate": (True, lambda: [DropoutScheduler(0.3)]),
        "DropoutInjector, one rate": (False, lambda: [DropoutInjector(0.1, after=nn.ReLU)]),
    }
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, (dropout, callbacks) in variants.items():
            torch.manual_seed(0)
            module = Timed(small(dropout), SGD)
            fit(module, callbacks(), batch, steps)
            taken[name] += [later - earlier for earlier, later in pairwise(module.begun)]
    low = {name: sorted(times)[len(times) // 10] for name, times in taken.items()}
    base = {
        name: low[NATIVE if dropout and name != NATIVE else "no dropout"]
        for name, (dropout, _) in variants.items()
    }
    added = {name: [low[name] - base[name]] for name in variants if name != "no dropout"}
    return rows("three places that drop, added to a step", added, 1, NATIVE)


def measure(threads: int = 1, only: str = "") -> list[Row]:
    torch.set_num_threads(threads)
    weights = [shape for shape in NETWORKS["ResNet-50"]() if len(shape) > 1]
    last = make([(1000, 2048)])
    decomposed = {
        "NuclearNorm": NuclearNorm(STRENGTH),
        "SpectralNorm": SpectralNorm(STRENGTH),
        "SLOPE": SLOPE(STRENGTH),  # sorted, rather
        "OverlappingGroupLasso": OverlappingGroupLasso(STRENGTH),  # iterated, rather
    }
    groups: dict[str, tuple[Cases, str]] = {
        "ResNet-50, other penalties": (of_penalties(SINGLE, make(weights)), AXPY),
        "ResNet-50, filters, other penalties": (of_penalties(GROUPED, make(weights)), AXPY),
        "ResNet-50, as matrices": (of_penalties(MATRICES, make(weights, moments=False), prox=False), AXPY),
        "ResNet-50's last layer, decomposed": (of_penalties(decomposed, last), AXPY),
        "a layer of 100 × 512, walked": (
            of_penalties({"TotalVariation": TotalVariation(STRENGTH)}, make([(100, 512)])),
            AXPY,
        ),
        "ResNet-50, constraints and TargetSparsity": (of_constraints(make(weights, moments=False)), AXPY),
        "transformer, 6 layers, a step by hand": (forward_cases(), "without"),
    }
    found: list[Row] = []
    for name, (cases, against) in groups.items():
        chosen = {case: run for case, run in cases.items() if case == against or only in case}
        if len(chosen) > 1:
            measured = rows(name, interleaved(chosen, threads, ROUNDS), threads, against)
            found += [row for row in measured if not only or row["case"] != against]
    return found if only else found + dropout_steps()
