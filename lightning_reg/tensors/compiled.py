"""The passes of :mod:`lightning_reg.tensors.kernels` as loops fused by ``torch.compile``; off by default.

Eager torch goes over the data once for each operation; a fused loop goes over it once in all, so that the
gradient of L1 and the proximal step in Adam's metric take about the time that moving their bytes takes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache, lru_cache

import torch
from torch import Tensor

from lightning_reg.tensors.steps import StepSize

__all__ = ["add_sign_", "compile_kernels", "soft_threshold_in_metric_"]

#: Elements above which a tensor is worth its share of a compiled call: by the passes it saves.
LARGE = 2**14
#: Pairs of tensors in one call: a call with one pair takes 19 µs before it does anything, with eight 43.
TOGETHER = 8

_enabled = False


def compile_kernels(enabled: bool = True) -> None:
    """Run the penalties' passes over large tensors through ``torch.compile``, in this process, from now on.

    It concerns the gradients of L1 and elastic net, and the proximal steps of L1, L2 and elastic net in an
    adaptive optimizer's metric, on CPUs; everything else is one pass already. The first step compiles for
    some seconds, once for each dtype. Where there is no compiler one warning says so, and eager passes go on.

    Args:
        enabled: False turns it off again.

    >>> compile_kernels()
    >>> compile_kernels(False)
    """
    global _enabled
    _enabled = enabled


def add_sign_(rows: list[tuple[Tensor, Tensor]], alpha: float, scaled: float) -> list[tuple[Tensor, Tensor]]:
    """``target += alpha · sign(weight) + scaled · weight`` for each row; return the rows left to do."""
    if not _enabled:
        return rows
    left: list[tuple[Tensor, Tensor]] = []
    alike: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
    for row in rows:
        if row[0] is not row[1] and _fits(*row):
            alike.setdefault(row[0].dtype, []).append(row)
        else:
            left.append(row)
    for some in alike.values():
        done = _run(_add_sign_, some, (alpha, scaled), scaled != 0.0)
        left += some[done:]
    return left


def soft_threshold_in_metric_(
    rows: list[tuple[Tensor, StepSize]], threshold: float, shrink: float
) -> list[tuple[Tensor, StepSize]]:
    """``w ← S(w, η·threshold) / (1 + η·shrink)`` for each row; return the rows left to do."""
    if not _enabled:
        return rows
    left: list[tuple[Tensor, StepSize]] = []
    alike: dict[tuple[torch.dtype, float, float], list[tuple[Tensor, StepSize]]] = {}
    for weight, step in rows:
        if len(step.tensors) == 1 and _fits(weight, *step.tensors):
            key = (weight.dtype, step.numerator / step.root_scale, step.eps / step.root_scale)
            alike.setdefault(key, []).append((weight, step))
        else:
            left.append((weight, step))
    for (_, numerator, eps), some in alike.items():
        tensors = [(weight, *step.tensors) for weight, step in some]
        numbers = (numerator, eps, threshold, shrink)
        done = _run(_soft_threshold_, tensors, numbers, threshold != 0.0, shrink != 0.0)
        left += some[done:]
    return left


def _add_sign_(rows: list[tuple[Tensor, Tensor]], numbers: Tensor, both: bool) -> None:
    alpha, scaled = numbers.unbind()
    for target, weight in rows:
        sign = torch.sgn(weight) * alpha
        target.add_(sign + weight * scaled if both else sign)


def _soft_threshold_(rows: list[tuple[Tensor, Tensor]], numbers: Tensor, soft: bool, shrinks: bool) -> None:
    numerator, eps, threshold, shrink = numbers.unbind()
    for weight, moment in rows:
        eta = numerator / (moment.sqrt() + eps)
        result = weight
        if soft:
            tau = eta * threshold
            result = weight - torch.clamp(weight, -tau, tau)
        weight.copy_(result / (1.0 + eta * shrink) if shrinks else result)


def _fits(*tensors: Tensor) -> bool:
    first = tensors[0]
    return (
        first.is_cpu
        and first.numel() > LARGE
        and not first.is_complex()
        and all(tensor.dtype == first.dtype and tensor.is_contiguous() for tensor in tensors)
    )


def _run(
    function: Callable[..., None],
    rows: Sequence[tuple[Tensor, ...]],
    numbers: tuple[float, ...],
    *flags: bool,
) -> int:
    """Act on rows of one dtype, TOGETHER at a time; return how many are done, all where it compiles."""
    dtype, done = rows[0][0].dtype, 0
    try:
        compiled = _compiled(function, dtype, len(numbers), *flags)
        while done < len(rows):
            # data: of a view, dynamo would trace the base, and compile anew for each shape
            some = [tuple(t.view(-1).data for t in row) for row in rows[done : done + TOGETHER]]
            compiled(some + _spare(dtype)[len(some) :], _tensor(numbers), *flags)
            done += len(some)
    except Exception as error:  # dynamo's own, the backend's, a compiler that is not there
        compile_kernels(False)
        warnings.warn(
            f"compile_kernels() found no way to compile ({type(error).__name__}); eager passes go on",
            stacklevel=2,
        )
    return done


@lru_cache(maxsize=64)
def _tensor(numbers: tuple[float, ...]) -> Tensor:
    # floats would be constants of the graph, and one schedule would compile many
    return torch.tensor(numbers, dtype=torch.float64)


@cache
def _spare(dtype: torch.dtype, size: int = 2) -> list[tuple[Tensor, ...]]:
    """Rows that fill up a call, each of its own size: dynamo takes equal ones to be equal ever after."""
    return [tuple(torch.ones(size + i, dtype=dtype) for _ in range(2)) for i in range(TOGETHER)]


@cache
def _compiled(
    function: Callable[..., None], dtype: torch.dtype, count: int, *flags: bool
) -> Callable[..., None]:
    """Compile ``function`` for rows of any sizes, with large ones in mind."""
    compiled = torch.compile(function, dynamic=True)
    compiled(_spare(dtype, LARGE), _tensor((1.0,) * count), *flags)
    return compiled
