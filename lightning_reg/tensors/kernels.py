"""In-place passes over lists of tensors that copy no model.

Each function goes over its tensors once. Large CPU tensors are walked in pieces that stay in a cache,
through buffers that each thread keeps, so that no temporary reaches main memory. All other tensors go
through torch's multi-tensor (``foreach``) functions in batches of bounded size. Everything is element-wise,
runs without grad and changes nothing but its first argument. :mod:`lightning_reg.tensors.compiled` has the
same as fused loops, for those who ask for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import softshrink

from lightning_reg.tensors import compiled, fused
from lightning_reg.tensors.chunks import BATCH, pieces
from lightning_reg.tensors.grad_mode import without_grad
from lightning_reg.tensors.packs import PACK, SMALL, in_bounds, is_small, packs, scratch
from lightning_reg.tensors.steps import StepSize, in_one_metric

__all__ = [
    "add_scaled_",
    "add_sign_",
    "scale_",
    "soft_threshold_",
    "soft_threshold_in_metric_",
    "soft_threshold_piece_",
]

#: Small tensors that are one batch whatever their sizes.
FEW = PACK // SMALL


@without_grad
def add_scaled_(targets: Sequence[Tensor], weights: Sequence[Tensor], alpha: float) -> None:
    """``targets += alpha · weights``, the gradient of L2 where ``alpha`` is λ."""
    if targets:
        torch._foreach_add_(list(targets), list(weights), alpha=alpha)


@without_grad
def scale_(weights: Sequence[Tensor], factor: float) -> None:
    """``weights *= factor``."""
    if weights:
        torch._foreach_mul_(list(weights), factor)


@without_grad
def add_sign_(
    targets: Sequence[Tensor], weights: Sequence[Tensor], alpha: float, scaled: float = 0.0
) -> None:
    """``targets += alpha · sign(weights) + scaled · weights``, the gradient of L1 and of elastic net.

    The sign of 0 is 0, of a complex number ``w/|w|``. A target may be the weight itself.
    """
    rows = list(zip(targets, weights, strict=True))
    if not _are_large(weights):
        _add_signs_(rows, alpha, scaled)
        return
    together: list[tuple[Tensor, Tensor]] = []
    for row in fused.add_sign_(compiled.add_sign_(rows, alpha, scaled), alpha, scaled):
        if not _is_large(row[1]):
            together.append(row)
            continue
        for target_piece, weight_piece in pieces(*row, times=2):  # there is one buffer only
            sign, factor = _sign(weight_piece, alpha)
            if scaled:
                target_piece.add_(weight_piece, alpha=scaled)
            target_piece.add_(sign, alpha=factor)
    _add_signs_(together, alpha, scaled)


@without_grad
def soft_threshold_(weights: Sequence[Tensor], threshold: float) -> None:
    """``w ← sign(w)·max(|w| − threshold, 0)``, in one pass.

    A complex weight keeps its argument and loses ``threshold`` of its modulus.
    """
    for weight in weights:
        _soft_threshold_(weight, threshold)


@without_grad
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
    rows = list(zip(weights, steps, strict=True))
    if _are_large(weights):
        rows = compiled.soft_threshold_in_metric_(rows, threshold, shrink)
        rows = fused.soft_threshold_in_metric_(rows, threshold, shrink)
    together: list[tuple[Tensor, StepSize]] = []
    for weight, step in rows:
        if step.second_moment is None:
            soft_threshold_piece_(weight, step.numerator * (threshold or shrink), threshold, shrink)
        elif step.mean is None and not _is_large(weight) and weight.element_size() > 2:
            # 16-bit numbers are rounded in each operation, and the other way takes fewer
            together.append((weight, step))
        else:
            for piece, *moments in pieces(weight, *step.tensors):
                eta = step.on(moments, out=scratch(0, piece), factor=threshold or shrink)
                soft_threshold_piece_(piece, eta, threshold, shrink)
    for shared, alike in in_one_metric([row[0] for row in together], [row[1] for row in together]):
        for weight, *moments in packs(alike, changed=1) if alike[0][0].is_cpu else ():
            eta = shared.on(moments, out=scratch(0, weight), factor=threshold or shrink)
            soft_threshold_piece_(weight, eta, threshold, shrink)
        for some_weights, moments in () if alike[0][0].is_cpu else _batches(alike):
            etas = list(torch._foreach_sqrt(moments))
            torch._foreach_add_(etas, shared.eps / shared.root_scale)
            torch._foreach_reciprocal_(etas)
            torch._foreach_mul_(etas, (threshold or shrink) * shared.numerator / shared.root_scale)
            _soft_threshold_batch_(some_weights, etas, threshold, shrink)


def _sign(weight: Tensor, alpha: float) -> tuple[Tensor, float]:
    """A multiple of the sign in a buffer, and the factor that makes it ``alpha · sign(weight)``."""
    buffer = scratch(0, weight)
    if weight.dtype in (torch.float32, torch.float64):
        # a power of two, so nothing is rounded; a clamp takes three quarters of the time of sgn, and differs
        # from it in weights below the smallest normal number only, whose gradient goes to 0 with them
        tiny = torch.finfo(weight.dtype).tiny
        if abs(alpha) <= torch.finfo(weight.dtype).max * tiny:
            return torch.clamp(weight, -tiny, tiny, out=buffer), alpha / tiny
    return torch.sgn(weight, out=buffer), alpha


def _add_signs_(rows: Sequence[tuple[Tensor, Tensor]], alpha: float, scaled: float) -> None:
    """The same as :func:`add_sign_`, on lists."""
    for targets, weights in _batches(rows):
        if weights[0].is_complex():
            signs = [torch.sgn(weight) for weight in weights]
        else:
            signs = list(torch._foreach_sign(weights))
        if scaled:
            torch._foreach_add_(targets, weights, alpha=scaled)
        torch._foreach_add_(targets, signs, alpha=alpha)


def _soft_threshold_(weight: Tensor, threshold: float) -> None:
    if weight.is_complex():
        modulus = weight.abs()
        weight.mul_(torch.where(modulus > threshold, 1 - threshold / modulus, 0.0))
    else:
        softshrink(weight, threshold, out=weight)  # type: ignore[call-arg]  # not in its stub


def soft_threshold_piece_(piece: Tensor, eta: float | Tensor, threshold: float, shrink: float) -> None:
    """Soft-threshold by ``eta``, which is scaled by ``threshold``, or by ``shrink`` where that is 0."""
    if not isinstance(eta, Tensor):
        if threshold:
            _soft_threshold_(piece, eta)
        if shrink:
            piece.div_(1.0 + eta * shrink / (threshold or shrink))
        return
    if threshold:
        moved = torch.neg(eta, out=scratch(1, piece))
        # w − clamp(w, −τ, τ) is S(w, τ) without rounding the weights it leaves alone
        piece.sub_(torch.clamp(piece, moved, eta, out=moved))
        if shrink:
            eta.mul_(shrink / threshold)
    if shrink:
        piece.div_(eta.add_(1.0))


def _soft_threshold_batch_(
    weights: list[Tensor], etas: list[Tensor], threshold: float, shrink: float
) -> None:
    """The same on lists."""
    if threshold:
        moved = list(torch._foreach_neg(etas))
        torch._foreach_clamp_min_(moved, weights)
        torch._foreach_clamp_max_(moved, etas)
        torch._foreach_sub_(weights, moved)
        if shrink:
            torch._foreach_mul_(etas, shrink / threshold)
    if shrink:
        torch._foreach_add_(etas, 1.0)
        torch._foreach_div_(weights, etas)


def _is_large(tensor: Tensor) -> bool:
    return tensor.is_cpu and not is_small(tensor)


def _are_large(tensors: Sequence[Tensor]) -> bool:
    """Whether there are enough weights for a pass that takes them apart."""
    return sum([tensor.numel() for tensor in tensors]) >= SMALL


def _batches(rows: Sequence[tuple[Tensor, ...]]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Columns of rows of one dtype and device: packs of CPU tensors, elsewhere batches of pieces."""
    if 0 < len(rows) <= FEW:  # a small network: every microsecond is seen
        targets, weights = map(list, zip(*rows, strict=True))
        dtype = weights[0].dtype
        if all([weight.is_cpu and weight.dtype is dtype for weight in weights]):
            yield targets, weights
            return
    groups: dict[tuple[torch.dtype, torch.device], list[tuple[Tensor, ...]]] = {}
    for row in rows:
        groups.setdefault((row[1].dtype, row[1].device), []).append(row)
    for (_, device), group in groups.items():
        most = PACK
        if device.type != "cpu":
            most, group = BATCH, [piece for row in group for piece in pieces(*row)]
        for some in in_bounds(group, most):
            yield [row[0] for row in some], [row[1] for row in some]
