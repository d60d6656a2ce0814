"""The passes of :mod:`lightning_reg.tensors.kernels` as loops that numba compiles, where it is installed.

Eager torch goes over the data once for each operation; a fused loop goes over it once in all. It takes dense
CPU tensors of float32 and float64, many in one call, on as many threads as torch uses. Everything else, and
everything where numba is missing, is left to the eager passes, which are the reference.

The first use imports numba and compiles for some seconds; later processes load what the first one made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from lightning_reg.tensors.steps import StepSize

__all__ = [
    "Compiled",
    "act_",
    "act_in_metric_",
    "add_sign_",
    "dtypes_of",
    "fuse_kernels",
    "hold_and_act_",
    "loop_for",
    "soft_threshold_in_metric_",
]

#: Weights in all from which a call is worth the import of numba and some microseconds of its own.
LARGE = 2**14
#: Weights that go to a thread together, where there are several.
SHARE = 2**17

_PLAIN = (torch.nn.Parameter, Tensor)
_DTYPES = {torch.float32: "float32", torch.float64: "float64"}
_enabled = True

_Row = TypeVar("_Row", bound=tuple[Any, ...])
_Tensors = tuple[Tensor | None, ...]
_Part = tuple[list[list[int]], list[tuple[float, ...]]]


def fuse_kernels(enabled: bool = True) -> None:
    """Run the passes over large CPU tensors as loops compiled by numba, in this process; on by default.

    Without numba (``pip install numba``) it changes nothing.

    Args:
        enabled: False leaves everything to eager passes.

    >>> fuse_kernels(False)
    >>> fuse_kernels()
    """
    global _enabled
    _enabled = enabled


def add_sign_(rows: list[tuple[Tensor, Tensor]], alpha: float, scaled: float) -> list[tuple[Tensor, Tensor]]:
    """``target += alpha · sign(weight) + scaled · weight`` for each row; return the rows left to do."""
    return act_("tensors.loops", "add_sign", rows, lambda row: row, lambda row: (), alpha, scaled)


def soft_threshold_in_metric_(
    rows: list[tuple[Tensor, StepSize]], threshold: float, shrink: float
) -> list[tuple[Tensor, StepSize]]:
    """``w ← S(w, η·threshold) / (1 + η·shrink)`` for each row; return the rows left to do."""
    loop = "elastic_net" if shrink else "soft_threshold"
    return act_in_metric_(rows, "tensors.loops", loop, threshold, shrink)


def act_in_metric_(
    rows: list[tuple[Tensor, StepSize]], module: str, loop: str, *numbers: float
) -> list[tuple[Tensor, StepSize]]:
    """Let a loop change each weight by its own step ``n/(√v + ε)``; return the rows left to do."""
    return act_(module, loop, rows, lambda row: _tensors(*row), lambda row: (*row[1].parts, 1.0), *numbers)


def hold_and_act_(
    weights: Sequence[Tensor],
    averages: Sequence[Tensor],
    steps: Sequence[StepSize],
    shares: Sequence[float],
    module: str,
    loop: str,
    *numbers: float,
) -> list[int]:
    """The same where averages do not hold weights at zero; return the positions left to do."""
    if not _enabled or not _is_large(weights):
        return [*range(len(weights))]
    left = act_(
        module,
        loop,
        list(zip(weights, averages, steps, shares, range(len(weights)), strict=True)),
        lambda row: _tensors(row[0], row[2], row[1]),
        lambda row: (*row[2].parts, row[3]),
        *numbers,
    )
    return [row[-1] for row in left]


def _tensors(weight: Tensor, step: StepSize, average: Tensor | None = None) -> _Tensors:
    return () if step.mean is not None else (weight, average, step.second_moment)


def act_(
    module: str,
    loop: str,
    rows: list[_Row],
    tensors: Callable[[_Row], _Tensors],
    described: Callable[[_Row], tuple[float, ...]],
    *numbers: float,
) -> list[_Row]:
    """Run a loop on the rows that it can take, and return the others.

    Args:
        module: where the loop is.
        loop: its name.
        rows: what to act on; the first entry of each is a tensor that changes.
        tensors: gives the tensors of a row, None for one that is not there, () for a row that it can't take.
        described: gives the numbers of a row.
        numbers: those for all rows.
    """
    if not _enabled or not _is_large([row[0] for row in rows]):
        return rows
    left: list[_Row] = []
    alike: dict[torch.dtype, list[tuple[_Row, _Tensors]]] = {}
    for row in rows:
        some = tensors(row)
        if _fits(some):
            alike.setdefault(row[0].dtype, []).append((row, some))
        else:
            left.append(row)
    for dtype, taken in alike.items():
        run = _compiled(module, loop, _DTYPES[dtype])
        if run is None:
            left += [row for row, _ in taken]
            continue
        table = [[*(0 if t is None else t.data_ptr() for t in some), row[0].numel()] for row, some in taken]
        run(table, [described(row) for row, _ in taken], numbers)
        for row, _ in taken:
            increment_version(row[0])  # torch 2.6 takes one tensor
    return left


def loop_for(module: str, loop: str, weights: Sequence[Tensor], tensors: _Tensors) -> Compiled | None:
    """A loop that takes these tensors together, where it is worth a call for these weights; else None."""
    if not _enabled or not _is_large(weights) or not _fits(tensors):
        return None
    return _compiled(module, loop, _DTYPES[weights[0].dtype])


def dtypes_of(weights: Sequence[Tensor]) -> list[torch.dtype]:
    """The dtypes of those weights that loops will run on; none where they are few, or loops are off."""
    taken = [weight for weight in weights if _fits((weight,))]
    if not _enabled or not _is_large(taken):
        return []
    return list(dict.fromkeys(weight.dtype for weight in taken))


def _is_large(weights: Sequence[Tensor]) -> bool:
    total: int = sum(weight.numel() for weight in weights)
    return total >= LARGE


def _fits(tensors: _Tensors) -> bool:
    """Whether a loop can take these together: plain CPU tensors of one dtype, dense and of one order."""
    first = tensors[0] if tensors else None
    if first is None or first.dtype not in _DTYPES:
        return False
    order = None if first.is_contiguous() else first.stride()
    if order and not (first.dim() == 4 and first.is_contiguous(memory_format=torch.channels_last)):
        return False
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in _PLAIN or not tensor.is_cpu or tensor.dtype != first.dtype:
            return False
        if not (tensor.is_contiguous() if order is None else tensor.stride() == order):
            return False
        if tensor.is_inference():  # has no version to count up
            return False
    return True


class Compiled:
    """A loop for one dtype."""

    def __init__(self, function: Callable[..., None], dtype: str) -> None:
        import numpy as np

        self._function = function
        self._like = np.empty(0, dtype=dtype)
        self._array = np.array

    def __call__(
        self, table: list[list[int]], described: list[tuple[float, ...]], numbers: tuple[float, ...]
    ) -> None:
        """Act on the rows of a table, on as many threads as torch uses."""
        threads, total = torch.get_num_threads(), sum(row[-1] for row in table)
        if threads == 1 or total < 2 * SHARE:
            self.run(table, described, numbers)
        else:
            self.share_out(_parts(table, described, self._like.itemsize, -(-total // threads)), numbers)

    def share_out(self, parts: list[_Part], numbers: tuple[float, ...]) -> None:
        """Act on each part in a thread of its own."""
        others = [_pool(len(parts)).submit(self.run, *part, numbers) for part in parts[1:]]
        self.run(*parts[0], numbers)
        for other in others:
            other.result()

    def run(
        self, table: list[list[int]], described: list[tuple[float, ...]], numbers: tuple[float, ...]
    ) -> None:
        """Act on the rows in this thread."""
        self._function(self._array(table), self._array(described), self._like, *numbers)


@cache
def _compiled(module: str, loop: str, dtype: str) -> Compiled | None:
    """The loop, or None where there is none."""
    try:
        found = getattr(import_module(f"lightning_reg.{module}"), loop)
    except ImportError:
        return None
    return Compiled(found, dtype)


def _parts(
    table: list[list[int]], described: list[tuple[float, ...]], itemsize: int, share: int
) -> list[_Part]:
    """Cut a table into parts of about ``share`` weights each."""
    parts: list[_Part] = [([], [])]
    free = share
    for (*addresses, size), numbers in zip(table, described, strict=True):
        start = 0
        while start < size:
            if not free:
                parts.append(([], []))
                free = share
            length = min(free, size - start)
            # on a cache line, but for what a tensor ends with
            moved = [address and address + start * itemsize for address in addresses]
            parts[-1][0].append([*moved, length])
            parts[-1][1].append(numbers)
            start, free = start + length, free - length
    return parts


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads to share the work with; the loops run without Python's lock."""
    return ThreadPoolExecutor(threads - 1, thread_name_prefix="lightning_reg")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads stay behind in the parent
