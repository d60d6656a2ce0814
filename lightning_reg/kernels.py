"""In-place passes over lists of tensors that copy no model.

Each function goes over its tensors once. Large CPU tensors are walked in pieces that stay in a core's
cache, through buffers that are reused, so that no temporary reaches main memory; elsewhere torch's
multi-tensor (``foreach``) functions run on batches of bounded size. Everything is element-wise, runs
without grad and changes nothing but its first argument.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_reg.step_size import StepSize

__all__ = ["add_scaled_", "add_sign_", "pieces", "scale_", "soft_threshold_", "soft_threshold_in_metric_"]

#: Elements in a piece of a CPU tensor: in less, calls cost more than work; more would leave the cache.
PIECE = 2**18
#: Elements up to which a CPU tensor goes with others into one multi-tensor call.
SMALL = 2**14
#: Elements in a batch of tensors whose temporaries may be alive together (16 MiB in float32).
BATCH = 2**22


@torch.no_grad()
def add_scaled_(targets: Sequence[Tensor], weights: Sequence[Tensor], alpha: float) -> None:
    """``targets += alpha · weights``, the gradient of L2 where ``alpha`` is λ."""
    if targets:
        torch._foreach_add_(list(targets), list(weights), alpha=alpha)


@torch.no_grad()
def scale_(weights: Sequence[Tensor], factor: float) -> None:
    """``weights *= factor``."""
    if weights:
        torch._foreach_mul_(list(weights), factor)


@torch.no_grad()
def add_sign_(
    targets: Sequence[Tensor], weights: Sequence[Tensor], alpha: float, scaled: float = 0.0
) -> None:
    """``targets += alpha · sign(weights) + scaled · weights``, the gradient of L1 and of elastic net.

    The sign of 0 is 0, of a complex number ``w/|w|``. A target may be the weight itself.
    """
    others: tuple[list[Tensor], list[Tensor]] = ([], [])
    buffers = _Buffers()
    for target, weight in zip(targets, weights, strict=True):
        if weight.is_cpu and weight.numel() > SMALL:
            for target_piece, weight_piece in pieces(target, weight):
                sign = torch.sgn(weight_piece, out=buffers(0, weight_piece))
                if scaled:
                    target_piece.add_(weight_piece, alpha=scaled)
                target_piece.add_(sign, alpha=alpha)
        else:
            others[0].append(target)
            others[1].append(weight)
    for some_targets, some_weights in _batches(*others):
        if some_weights[0].is_complex():
            signs = [torch.sgn(weight) for weight in some_weights]
        else:
            signs = list(torch._foreach_sign(some_weights))
        if scaled:
            torch._foreach_add_(some_targets, some_weights, alpha=scaled)
        torch._foreach_add_(some_targets, signs, alpha=alpha)


@torch.no_grad()
def soft_threshold_(weights: Sequence[Tensor], threshold: float) -> None:
    """``w ← sign(w)·max(|w| − threshold, 0)``, in one pass.

    A complex weight keeps its argument and loses ``threshold`` of its modulus.
    """
    for weight in weights:
        if weight.is_complex():
            modulus = weight.abs()
            weight.mul_(torch.where(modulus > threshold, 1 - threshold / modulus, 0.0))
        else:
            torch.ops.aten.softshrink.out(weight, threshold, out=weight)


@torch.no_grad()
def soft_threshold_in_metric_(
    weights: Sequence[Tensor], steps: Sequence[StepSize], threshold: float, shrink: float = 0.0
) -> None:
    """Soft-threshold each weight by its own step: ``w ← S(w, η·threshold) / (1 + η·shrink)``.

    Args:
        weights: changed in place.
        steps: for each tensor the step size η of every weight.
        threshold: the factor of |w|, λ for L1 and λ·ρ for elastic net.
        shrink: the factor of w²/2, λ·(1 − ρ) for elastic net.
    """
    buffers = _Buffers()
    for weight, step in zip(weights, steps, strict=True):
        if step.second_moment is None:
            soft_threshold_([weight], step.numerator * threshold)
            if shrink:
                weight.div_(1.0 + step.numerator * shrink)
            continue
        for piece, *moments in pieces(weight, *step.tensors):
            if not threshold:
                piece.div_(step.on(moments, out=buffers(0, piece), factor=shrink).add_(1.0))
                continue
            tau = step.on(moments, out=buffers(0, piece), factor=threshold)
            other = torch.neg(tau, out=buffers(1, piece))
            # w − clamp(w, −τ, τ) is S(w, τ) without rounding the weights it leaves alone
            piece.sub_(torch.clamp(piece, other, tau, out=other))
            if shrink:
                piece.div_(tau.mul_(shrink / threshold).add_(1.0))


class _Buffers:
    """Scratch tensors of one piece, made once a call and handed out again."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def __call__(self, index: int, like: Tensor) -> Tensor:
        key = (index, like.dtype, like.device)
        buffer = self._made.get(key)
        if buffer is None or buffer.numel() < like.numel():
            size = max(like.numel(), PIECE) if like.is_cpu else like.numel()
            buffer = self._made[key] = torch.empty(size, dtype=like.dtype, device=like.device)
        return buffer[: like.numel()].view(like.shape)


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Walk tensors of one shape together, in pieces of about PIECE elements on the CPU."""
    first = tensors[0]
    if not first.is_cpu or first.numel() <= PIECE:
        yield tensors
    elif all(tensor.is_contiguous() for tensor in tensors):
        size = math.ceil(first.numel() / math.ceil(first.numel() / PIECE))  # no short piece at the end
        yield from zip(*(torch.split(tensor.view(-1), size) for tensor in tensors), strict=True)
    else:  # channels-last and other strides: along the longest dimension
        longest = max(range(first.dim()), key=first.shape.__getitem__)
        size = max(1, PIECE * first.shape[longest] // first.numel())
        yield from zip(*(torch.split(tensor, size, longest) for tensor in tensors), strict=True)


def _batches(targets: list[Tensor], weights: list[Tensor]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Batches of one dtype and device, of about BATCH elements."""
    if not weights:
        return
    dtype, device = weights[0].dtype, weights[0].device
    if sum(w.numel() if w.dtype == dtype and w.device == device else BATCH for w in weights) < BATCH:
        yield targets, weights  # a small network, where every microsecond is seen
        return
    groups: dict[tuple[torch.dtype, torch.device], tuple[list[Tensor], list[Tensor]]] = {}
    sizes: dict[tuple[torch.dtype, torch.device], int] = {}
    for target, weight in zip(targets, weights, strict=True):
        key = (weight.dtype, weight.device)
        some_targets, some_weights = groups.setdefault(key, ([], []))
        some_targets.append(target)
        some_weights.append(weight)
        sizes[key] = sizes.get(key, 0) + weight.numel()
        if sizes[key] >= BATCH:
            yield groups.pop(key)
            sizes[key] = 0
    yield from groups.values()
