"""What a network costs: parameters, multiplications, time."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lightning_reg.groups.tracing import call_with

__all__ = ["Sizes", "size_table", "sizes_of"]


@dataclass(frozen=True)
class Sizes:
    """What a network costs.

    Attributes:
        parameters: how many numbers it has to learn.
        macs: multiplications with addition of one forward, in linear layers, convolutions and attention.
        milliseconds: of one forward, the median of several.
    """

    parameters: int
    macs: int
    milliseconds: float


def sizes_of(model: nn.Module, example_input: Any, repeats: int = 20) -> Sizes:
    """Measure a forward in ``eval`` mode, on the device and with the threads that it has.

    Args:
        model: not changed.
        example_input: a tensor, a tuple of arguments or a dict of them by name, of the batch size to measure.
        repeats: forwards to take the median of.

    >>> sizes_of(nn.Linear(10, 5), torch.zeros(2, 10)).macs
    100
    """
    twin = copy.deepcopy(model).eval()
    times = []
    with torch.no_grad():
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # operators for a whole layer count nothing
        try:
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                call_with(twin, example_input)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
        for _ in range(repeats):
            _wait(twin)
            start = perf_counter()
            call_with(twin, example_input)
            _wait(twin)
            times.append(perf_counter() - start)
    parameters = sum(p.numel() for p in twin.parameters())
    return Sizes(parameters, counter.get_total_flops() // 2, 1e3 * median(times))


def size_table(before: nn.Module, after: nn.Module, example_input: Any, repeats: int = 20) -> str:
    """Return a table of what two networks cost, to print.

    >>> print(size_table(nn.Linear(10, 8), nn.Linear(10, 4), torch.zeros(2, 10)))  # doctest: +ELLIPSIS
                        before       after   share
    parameters               88          44    0.50
    MACs                    160          80    0.50
    milliseconds ...
    """
    one, other = sizes_of(before, example_input, repeats), sizes_of(after, example_input, repeats)
    return "\n".join(
        [
            f"{'':14}{'before':>12}{'after':>12}{'share':>8}",
            *_row("parameters", one.parameters, other.parameters, ",d"),
            *_row("MACs", one.macs, other.macs, ",d"),
            *_row("milliseconds", one.milliseconds, other.milliseconds, ".3f"),
        ]
    )


def _row(name: str, before: float, after: float, form: str) -> Iterable[str]:
    yield f"{name:14}{before:>12{form}}{after:>12{form}}{after / before if before else 1.0:>8.2f}"


def _wait(model: nn.Module) -> None:
    if any(parameter.is_cuda for parameter in model.parameters()):
        torch.cuda.synchronize()
