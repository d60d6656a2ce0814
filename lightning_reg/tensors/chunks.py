"""Tensors cut into pieces, so that no temporary is as large as a model."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["BATCH", "PIECE", "pieces"]

#: Elements in a piece of a CPU tensor: in less, calls cost more than work; more would leave the caches.
PIECE = 2**19
#: Elements of tensors on an accelerator whose temporaries are alive together: two of 4 MiB in float32.
BATCH = 2**20


def pieces(*tensors: Tensor, times: int = 1) -> Iterator[tuple[Tensor, ...]]:
    """Walk tensors of one shape together, in pieces of about ``times`` PIECE, on accelerators of BATCH."""
    first = tensors[0]
    most = PIECE * times if first.is_cpu else BATCH
    if first.numel() <= most:
        yield tensors
    elif all(tensor.is_contiguous() for tensor in tensors):
        size = math.ceil(first.numel() / math.ceil(first.numel() / most))  # no short piece at the end
        yield from zip(*(torch.split(tensor.view(-1), size) for tensor in tensors), strict=True)
    else:  # channels-last and other strides: along the longest dimension
        longest = max(range(first.dim()), key=first.shape.__getitem__)
        size = max(1, most * first.shape[longest] // first.numel())
        yield from zip(*(torch.split(tensor, size, longest) for tensor in tensors), strict=True)
