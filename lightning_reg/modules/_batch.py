"""What a batch must be, checked before it can spoil a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["check_features", "check_finite", "check_labels", "check_targets", "check_weights", "split_batch"]


def split_batch(batch: Any) -> tuple[Any, Tensor, Tensor | None]:
    """Return inputs, targets and sample weights of ``(x, y)`` or ``(x, y, sample_weight)``.

    Raises:
        TypeError: the batch is neither.
    """
    if isinstance(batch, (tuple, list)) and len(batch) in (2, 3) and isinstance(batch[1], Tensor):
        return batch[0], batch[1], batch[2] if len(batch) == 3 else None
    kind = f"{len(batch)} entries" if isinstance(batch, (tuple, list)) else type(batch).__name__
    raise TypeError(f"a batch must be (x, y) or (x, y, sample_weight), and this one is {kind}")


def check_finite(what: str, value: Any, where: str) -> None:
    """Refuse NaN and infinity, before a forward pass could write them into running statistics.

    Raises:
        ValueError: names what is not finite, and where.
    """
    tensors = value if isinstance(value, (tuple, list)) else [value]
    for tensor in tensors:
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = (~torch.isfinite(tensor)).sum().item()
            raise ValueError(
                f"{what} of {where} have {bad} of {tensor.numel()} values that are NaN or infinite; the "
                "model is as it was before this batch: clean or drop these rows"
            )


def check_features(x: Tensor, in_features: int) -> None:
    """Refuse inputs that are not ``(batch, in_features)``."""
    if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[1] != in_features:
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"the inputs must be of shape (batch, {in_features}), and are {shape}")


def check_labels(y: Tensor, batch_size: int, num_classes: int) -> Tensor:
    """Return class labels as ``(batch,)`` of int64.

    Raises:
        ValueError: another shape, not integers, or a label outside [0, num_classes).
    """
    if y.dim() == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.shape != (batch_size,):
        raise ValueError(f"the labels must be of shape ({batch_size},), one a sample, not {tuple(y.shape)}")
    if y.is_floating_point():
        if not torch.equal(y, y.round()):
            raise ValueError("the labels must be integers, and some are not; is this a regression?")
        y = y.long()
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"the labels must lie in 0, …, {num_classes - 1}, and the batch has {low if low < 0 else high}; "
            "give num_classes= to match, or encode the labels from 0"
        )
    return y.long()


def check_targets(y: Tensor, output: Tensor) -> Tensor:
    """Return regression targets in the shape and type of ``output``; ``(n,)`` and ``(n, 1)`` are the same.

    Raises:
        ValueError: other shapes, which would broadcast into a matrix of all pairs.
    """
    if y.shape != output.shape:
        if y.dim() and y.shape[0] == output.shape[0] and y.numel() == output.numel() == y.shape[0]:
            y = y.reshape(output.shape)
        else:
            raise ValueError(
                f"the targets are of shape {tuple(y.shape)} and the outputs of shape {tuple(output.shape)}; "
                "they must be the same"
            )
    return y.to(output.dtype)


def check_weights(weight: Tensor, batch_size: int) -> Tensor:
    """Return sample weights as ``(batch,)``.

    Raises:
        ValueError: another shape, a negative weight, or no positive one.
    """
    if weight.dim() == 2 and weight.shape[1] == 1:
        weight = weight[:, 0]
    if weight.shape != (batch_size,):
        raise ValueError(
            f"sample weights must be of shape ({batch_size},), one each, not {tuple(weight.shape)}"
        )
    if (weight < 0).any() or not (weight > 0).any():
        raise ValueError("sample weights must be 0 or more, and some of each batch positive")
    return weight
