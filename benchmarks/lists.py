"""What a penalty costs on a list of parameters, against floors and rivals.

Two floors, for two kinds of work: ``axpy``, ``torch._foreach_add_(grads, params, alpha)``, reads two lists
and writes one, as a gradient does; ``mul_`` reads and writes one, as a Euclidean proximal step does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import rivals
from benchmarks.harness import Row, interleaved, lift_of_peak, peak_of, rows
from benchmarks.shapes import NETWORKS, Shape
from lightning_reg import L1, L2, ElasticNet, GroupLasso
from lightning_reg.prox.hierarchical import hierarchical_prox
from lightning_reg.select.parameters import Selected
from lightning_reg.tensors.compiled import compile_kernels
from lightning_reg.tensors.steps import StepSize

STRENGTH = 1e-9  # so small that repetition does not change what is measured
AXPY, MUL = "axpy", "mul_"
FASTER = 3.0  # than what people write by hand
Cases = dict[str, Callable[[], object]]

#: What each case is compared with, and the ratio that is wanted.
WANTED: dict[str, tuple[str, float | None]] = {
    AXPY: (AXPY, None),
    MUL: (MUL, None),
    "L2 gradient": (AXPY, 1.05),
    "L1 gradient": (AXPY, 1.6),
    "L1 gradient, compiled": (AXPY, 1.2),
    "elastic net gradient": ("L1 gradient", 1.2),
    "L1 gradient, then L2 gradient": ("elastic net gradient", 1.0),
    "elastic net gradient, compiled": (AXPY, None),
    "L1 value, to be logged": ("L1 gradient", None),
    "L1 proximal, Euclidean": (MUL, 1.15),
    "L1 proximal, Adam's metric": (AXPY, 3.0),
    "L1 proximal, Adam's metric, compiled": (AXPY, 1.5),
    "elastic net proximal, Adam's metric": (AXPY, None),
    "group lasso proximal, Euclidean": (AXPY, 2.0),
    "tutorial's loop, torch.norm(p, 1)": ("L1 gradient", FASTER),
    "tutorial's loop, torch.norm(p, 2)": ("L2 gradient", FASTER),
    "sum(p.abs().sum())": ("L1 gradient", FASTER),
    "add_loss, squares": ("L2 gradient", FASTER),
    "proxtorch L1": ("L1 proximal, Euclidean", None),
}


@dataclass
class Lists:
    """Parameters with gradients, and a second moment for each."""

    params: list[Tensor]
    grads: list[Tensor]
    moments: list[Tensor]


def make(shapes: Sequence[Shape], moments: bool = True) -> Lists:
    torch.manual_seed(0)
    params = [torch.empty(shape).uniform_(-0.1, 0.1).requires_grad_() for shape in shapes]
    grads = [torch.empty(shape).uniform_(-1, 1) for shape in shapes]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    return Lists(params, grads, [torch.empty(s).uniform_(0.1, 1) for s in shapes] if moments else [])


def compiled(run: Callable[[], object]) -> Callable[[], object]:
    """``run`` with fused passes."""

    def with_kernels() -> None:
        compile_kernels()
        run()
        compile_kernels(False)

    return with_kernels


@torch.no_grad()
def value(penalty: L1, weights: list[Tensor]) -> Tensor:
    return penalty.total(weights, STRENGTH, like=weights[0])


def ours(lists: Lists) -> Cases:
    params, grads = lists.params, lists.grads
    weights = [param.detach() for param in params]
    l1, l2, elastic_net = L1(STRENGTH), L2(STRENGTH), ElasticNet(STRENGTH)
    adam = [StepSize(1e-3, moment, 1.0, 1e-8) for moment in lists.moments]

    def l1_gradient() -> None:
        l1.add_gradient_(grads, weights, STRENGTH)

    def both_gradients() -> None:
        elastic_net.add_gradient_(grads, weights, STRENGTH)

    def one_after_the_other() -> None:
        l1.add_gradient_(grads, weights, STRENGTH)
        l2.add_gradient_(grads, weights, STRENGTH)

    def l1_in_metric() -> None:
        l1.prox_(weights, STRENGTH, adam)

    cases: Cases = {
        AXPY: lambda: torch._foreach_add_(grads, weights, alpha=STRENGTH),
        MUL: lambda: torch._foreach_mul_(weights, 1.0 - STRENGTH),
        "L2 gradient": lambda: l2.add_gradient_(grads, weights, STRENGTH),
        "L1 gradient": l1_gradient,
        "L1 gradient, compiled": compiled(l1_gradient),
        "elastic net gradient": both_gradients,
        "elastic net gradient, compiled": compiled(both_gradients),
        "L1 gradient, then L2 gradient": one_after_the_other,
        "L1 value, to be logged": lambda: value(l1, weights),
        "L1 proximal, Euclidean": lambda: l1.prox_(weights, STRENGTH, [StepSize(0.1)] * len(weights)),
    }
    if adam:
        cases |= {
            "L1 proximal, Adam's metric": l1_in_metric,
            "L1 proximal, Adam's metric, compiled": compiled(l1_in_metric),
            "elastic net proximal, Adam's metric": lambda: elastic_net.prox_(weights, STRENGTH, adam),
        }
    cases["tutorial's loop, torch.norm(p, 1)"] = lambda: rivals.tutorial(params, STRENGTH, 1)
    cases["tutorial's loop, torch.norm(p, 2)"] = lambda: rivals.tutorial(params, STRENGTH, 2)
    cases["sum(p.abs().sum())"] = lambda: rivals.absolute_sum(params, STRENGTH)
    cases["add_loss, squares"] = lambda: rivals.add_loss(params, STRENGTH)
    cases["proxtorch L1"] = rivals.proxtorch_l1(weights, STRENGTH)
    return cases


def group_cases(shapes: Sequence[Shape]) -> Cases:
    """Filters as groups, in the tensors of two or more dimensions."""
    lists = make([shape for shape in shapes if len(shape) > 1], moments=False)
    weights = [param.detach() for param in lists.params]
    module = torch.nn.Module()
    penalty = GroupLasso(STRENGTH)
    bound = penalty.bind([Selected("weight", w, module, ("weight",), (module,)) for w in weights])
    steps = [StepSize(0.1)] * len(weights)
    return {
        AXPY: lambda: torch._foreach_add_(lists.grads, weights, alpha=STRENGTH),
        "group lasso proximal, Euclidean": lambda: bound.prox_(weights, STRENGTH, steps),
        "a loop over groups": lambda: rivals.group_loop(weights, STRENGTH),
        "proxtorch GroupLasso": rivals.proxtorch_groups(weights, STRENGTH),
        "torch-pruning regularize": rivals.torch_pruning(weights),
    }


def lassonet_cases() -> Cases:
    """The proximal step of LassoNet: 2,048 features, 512 hidden units."""
    from lassonet.prox import prox

    torch.manual_seed(0)
    skip, hidden = torch.randn(1, 2048), torch.randn(512, 2048)
    return {
        "hierarchical_prox": lambda: hierarchical_prox(skip, hidden, 0.5, 10.0),
        "lassonet.prox": lambda: prox(skip, hidden, lambda_=0.5, lambda_bar=0.0, M=10.0),
    }


def measure(network: str, threads: int, rounds: int = 20) -> list[Row]:
    """Every case on one list of parameters."""
    shapes = NETWORKS[network]()
    cases = ours(make(shapes, moments=network != "one billion"))
    if network not in ("ResNet-50", "tutorial", "10,000 tiny"):  # the rivals that take a minute there
        cases = {n: run for n, run in cases.items() if n in WANTED and n not in SLOW_RIVALS}
    against = {name: WANTED[name][0] for name in cases}
    wanted = {name: target for name in cases if (target := WANTED[name][1]) is not None}
    if network in ("tutorial", "10,000 tiny"):  # bandwidth is not what takes time there
        wanted = {name: target for name, target in wanted.items() if target == FASTER}
    found = rows(network, interleaved(cases, threads, rounds), threads, against, wanted)
    if network == "ResNet-50":
        ours_name = "group lasso proximal, Euclidean"
        times = interleaved(group_cases(shapes), threads, rounds)
        references = dict.fromkeys(times, ours_name) | {AXPY: AXPY, ours_name: AXPY}
        found += rows("ResNet-50, filters", times, threads, references, {ours_name: 2.0})
        found += rows(
            "LassoNet", interleaved(lassonet_cases(), threads, rounds), threads, "hierarchical_prox"
        )
    return found


SLOW_RIVALS = {"sum(p.abs().sum())", "add_loss, squares", "proxtorch L1", "tutorial's loop, torch.norm(p, 2)"}


def memory(network: str = "ResNet-50") -> list[Row]:
    """The peak of each case, in a process of its own."""
    names = ["L2 gradient", "L1 gradient", "elastic net gradient", "L1 proximal, Euclidean"]
    names += ["L1 proximal, Adam's metric", "elastic net proximal, Adam's metric"]
    names += ["tutorial's loop, torch.norm(p, 1)", "proxtorch L1"]
    return [
        Row(group=network, case=name, threads=1, peak=peak_of("-m", "benchmarks.lists", network, name))
        for name in names
    ]


if __name__ == "__main__":  # a child of memory()
    torch.set_num_threads(1)
    ours(make([(300, 300), (300,)]))[sys.argv[2]]()  # load code first
    held = make(NETWORKS[sys.argv[1]]())  # a list that is let go would hide what a call takes
    print(json.dumps(lift_of_peak(ours(held)[sys.argv[2]])))
