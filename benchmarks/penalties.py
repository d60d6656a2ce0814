"""What a penalty costs on lists of parameters, against the memory bandwidth floor and the tutorials' loop.

    python benchmarks/penalties.py                       # times, one thread and two, and peak memory
    python benchmarks/penalties.py --networks ResNet-50 --rounds 50 --only L1

A list is timed in portions of about PORTION numbers, one after the other, so that none finds its data in a
cache. Each round runs every case once, in turn, so that a busy moment of the machine meets all of them; each
portion's minimum over the rounds counts, and a list's time is the sum of its portions'.

Ratios are against ``torch._foreach_add_(grads, params, alpha)``, which reads two lists, writes one and does
what L2 asks for: nothing that touches the same memory can be faster. ``mul_`` shows the same for what reads
and writes the weights alone, as a Euclidean proximal step does.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from shapes import NETWORKS, Shape
from torch import Tensor

from lightning_reg import L1, L2, ElasticNet
from lightning_reg.step_size import StepSize

STRENGTH = 1e-9  # so small that repetition does not change what is measured
PORTION = 4_000_000
FLOOR = "floor: _foreach_add_"


Cases = dict[str, Callable[[], object]]


@dataclass
class Lists:
    params: list[Tensor]
    grads: list[Tensor]
    second_moments: list[Tensor]


def make(shapes: Sequence[Shape]) -> Lists:
    torch.manual_seed(0)
    params = [torch.empty(shape).uniform_(-0.1, 0.1).requires_grad_() for shape in shapes]
    grads = [torch.empty(shape).uniform_(-1, 1) for shape in shapes]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    return Lists(params, grads, [torch.empty(shape).uniform_(0.1, 1) for shape in shapes])


def cases(lists: Lists) -> Cases:
    params, grads = lists.params, lists.grads
    weights = [param.detach() for param in params]
    l1, l2, elastic_net = L1(STRENGTH), L2(STRENGTH), ElasticNet(STRENGTH)
    euclidean = [StepSize(0.1) for _ in weights]
    adam = [StepSize(1e-3, v, 1.0, 1e-8) for v in lists.second_moments]

    def tutorial(order: int) -> None:
        (STRENGTH * sum(torch.norm(param, order) for param in params)).backward()

    return {
        FLOOR: lambda: torch._foreach_add_(grads, weights, alpha=STRENGTH),
        "mul_": lambda: torch._foreach_mul_(weights, 1.0 - STRENGTH),
        "L2 gradient": lambda: l2.add_gradient_(grads, weights, STRENGTH),
        "L1 gradient": lambda: l1.add_gradient_(grads, weights, STRENGTH),
        "elastic net gradient": lambda: elastic_net.add_gradient_(grads, weights, STRENGTH),
        "L1 proximal, Euclidean": lambda: l1.prox_(weights, STRENGTH, euclidean),
        "L1 proximal, Adam's metric": lambda: l1.prox_(weights, STRENGTH, adam),
        "elastic net proximal, Adam's metric": lambda: elastic_net.prox_(weights, STRENGTH, adam),
        "tutorial's loop, torch.norm(p, 1)": lambda: tutorial(1),
        "tutorial's loop, torch.norm(p, 2)": lambda: tutorial(2),
    }


def portions(shapes: list[Shape]) -> list[list[Shape]]:
    """Neighbouring shapes of about PORTION numbers together."""
    parts: list[list[Shape]] = [[]]
    for shape in shapes:
        if sum(map(prod, parts[-1])) >= PORTION:
            parts.append([])
        parts[-1].append(shape)
    return parts


def times(parts: list[Cases], names: Sequence[str], rounds: int) -> dict[str, float]:
    best = {name: [float("inf")] * len(parts) for name in names}
    for _ in range(rounds):
        for name in names:
            for index, run in enumerate(parts):
                start = time.perf_counter()
                run[name]()
                best[name][index] = min(best[name][index], time.perf_counter() - start)
    return {name: sum(seconds) for name, seconds in best.items()}


def status(field: str) -> float:
    """A memory figure of this process in MiB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) / 1024


def extra_memory(network: str, case: str) -> float:
    """How far one call lifts this process's peak above what it held before, in MiB."""
    cases(make([(300, 300), (300,)]))[case]()  # load code and start threads
    lists = make(NETWORKS[network]())
    run = cases(lists)[case]
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, help="default: 50, and 12 on the larger network")
    parser.add_argument("--only", default="", help="cases whose names contain this, and the floor")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory-of", nargs=2, metavar=("NETWORK", "CASE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(extra_memory(*arguments.memory_of))
        return
    print(f"torch {torch.__version__}, float32\n")
    for network in arguments.networks:
        rows = {name: [name] for name in cases(make([(1,)])) if name == FLOOR or arguments.only in name}
        head = [network]
        parts = [cases(make(part)) for part in portions(NETWORKS[network]())]
        rounds = arguments.rounds or (12 if network == "GPT-2 small" else 50)
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            best = times(parts, list(rows), rounds)
            head += [f"ms, {threads} thread{'s'[: threads > 1]}", "× floor"]
            for name, row in rows.items():
                row += [f"{best[name] * 1e3:.1f}", f"{best[name] / best[FLOOR]:.2f}"]
        del parts
        if not arguments.no_memory:
            head.append("extra peak, MiB")
            for name, row in rows.items():
                command = [sys.executable, __file__, "--memory-of", network, name]
                output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                row.append(f"{max(0.0, float(output)):.1f}")
        print(f"| {' | '.join(head)} |")
        print(f"|---|{'---:|' * (len(head) - 1)}")
        for row in rows.values():
            print(f"| {' | '.join(row)} |")
        print(flush=True)


if __name__ == "__main__":
    main()
