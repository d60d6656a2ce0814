"""The passes of :mod:`lightning_reg.kernels` as loops that ``torch.compile`` fuses; off unless asked for.

Eager torch goes over the data once for each operation; a fused loop goes over it once in all, so that the
gradient of L1 and the proximal step in Adam's metric take about the time that moving their bytes takes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, lru_cache

import torch
from torch import Tensor

from lightning_reg.step_size import StepSize

__all__ = ["add_sign_", "compile_kernels", "soft_threshold_in_metric_"]

#: Elements from which a tensor is worth the call of a compiled function, some 30 µs: by the passes it saves.
LARGE_SIGN, LARGE_METRIC = 2**17, 2**15

_enabled = False


def compile_kernels(enabled: bool = True) -> None:
    """Run the penalties' passes over large tensors through ``torch.compile``, in this process, from now on.

    It concerns the gradients of L1 and elastic net, and the proximal steps of L1, L2 and elastic net in an
    adaptive optimizer's metric; everything else is one pass already. The first step compiles for some
    seconds, once for each dtype. Where there is no compiler one warning says so, and eager passes go on.

    Args:
        enabled: False turns it off again.

    >>> compile_kernels()
    >>> compile_kernels(False)
    """
    global _enabled
    _enabled = enabled


def add_sign_(target: Tensor, weight: Tensor, alpha: float, scaled: float) -> bool:
    """``target += alpha · sign(weight) + scaled · weight``; False where nothing was done."""
    if not _enabled or target is weight or not _fits(LARGE_SIGN, target, weight):
        return False
    return _run(_add_sign_, (target, weight), (alpha, scaled), scaled != 0.0)


def soft_threshold_in_metric_(weight: Tensor, step: StepSize, threshold: float, shrink: float) -> bool:
    """``w ← S(w, η·threshold) / (1 + η·shrink)``; False where nothing was done."""
    moment = step.second_moment
    if not _enabled or moment is None or step.mean is not None or not _fits(LARGE_METRIC, weight, moment):
        return False
    numbers = (step.numerator / step.root_scale, step.eps / step.root_scale, threshold, shrink)
    return _run(_soft_threshold_, (weight, moment), numbers, threshold != 0.0, shrink != 0.0)


def _add_sign_(target: Tensor, weight: Tensor, alpha: Tensor, scaled: Tensor, both: bool) -> None:
    sign = torch.sgn(weight) * alpha
    target.add_(sign + weight * scaled if both else sign)


def _soft_threshold_(
    weight: Tensor,
    moment: Tensor,
    numerator: Tensor,
    eps: Tensor,
    threshold: Tensor,
    shrink: Tensor,
    soft: bool,
    shrinks: bool,
) -> None:
    eta = numerator / (moment.sqrt() + eps)
    result = weight
    if soft:
        tau = eta * threshold
        result = weight - torch.clamp(weight, -tau, tau)
    weight.copy_(result / (1.0 + eta * shrink) if shrinks else result)


def _fits(large: int, *tensors: Tensor) -> bool:
    first = tensors[0]
    return (
        first.numel() > large
        and not first.is_complex()
        and all(t.dtype == first.dtype and t.is_contiguous() for t in tensors)
    )


def _run(
    function: Callable[..., None], tensors: tuple[Tensor, ...], numbers: tuple[float, ...], *flags: bool
) -> bool:
    flat = [tensor.detach().view(-1) for tensor in tensors]
    # as tensors: a float would be a constant of the graph, and one schedule would compile many
    scalars = [_scalar(number) for number in numbers]
    try:
        _compiled(function)(*flat, *scalars, *flags)
    except Exception as error:  # dynamo's own, the backend's, a compiler that is not there
        compile_kernels(False)
        warnings.warn(
            f"compile_kernels() found no way to compile ({type(error).__name__}); eager passes go on",
            stacklevel=2,
        )
        return False
    return True


@lru_cache(maxsize=64)
def _scalar(number: float) -> Tensor:
    return torch.tensor(number, dtype=torch.float64)


@cache
def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    return torch.compile(function, dynamic=True)
