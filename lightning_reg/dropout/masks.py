r"""Masks whose entries stand or fall together: locked, word, block and weight dropout.

Each function keeps with probability :math:`1 - p` and multiplies by ``scale``, :math:`1/(1-p)` for an output
of unchanged mean. ``rate`` and ``scale`` are numbers, or tensors of one entry in a compiled graph.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["block", "locked", "weight", "word"]

Number: TypeAlias = "float | Tensor"


def _kept(input: Tensor, shape: list[int], rate: Number) -> Tensor:
    return torch.rand(shape, device=input.device) >= rate


def locked(input: Tensor, rate: Number, scale: Number, time: int = 1) -> Tensor:
    r"""Drop features of a sequence, the same ones at each time: :math:`y_{ntc} = m_{nc}\,x_{ntc}/(1-p)`.

    Args:
        input: ``(N, T, C)``, or ``(T, N, C)`` with ``time=0``.
        rate: p.
        scale: what is kept is multiplied by it.
        time: the dimension of time.

    >>> dropped = locked(torch.ones(1, 5, 8), 0.5, 2.0) == 0
    >>> bool((dropped == dropped[:, :1]).all())
    True

    References:
        Gal and Ghahramani, *A Theoretically Grounded Application of Dropout in Recurrent Neural Networks*,
        NeurIPS 2016; Merity, Keskar and Socher, ICLR 2018.
    """
    shape = list(input.shape)
    shape[time] = 1
    return input * _kept(input, shape, rate) * scale


def word(output: Tensor, ids: Tensor, words: int, rate: Number, scale: Number) -> Tensor:
    r"""Drop words of the vocabulary, wherever they stand in the batch: :math:`y_i = m_{w_i}\,x_i/(1-p)`.

    Args:
        output: embeddings, ``(*ids.shape, C)``.
        ids: which word each is, whole numbers below ``words``.
        words: the size of the vocabulary.
        rate: p.
        scale: what is kept is multiplied by it.

    >>> out = word(torch.ones(1, 3, 2), torch.tensor([[4, 1, 4]]), 5, 0.5, 2.0)
    >>> torch.equal(out[0, 0], out[0, 2]) and torch.equal(out[..., 0], out[..., 1])
    True

    References:
        Gal and Ghahramani, NeurIPS 2016, section 4.2.
    """
    kept = _kept(output, [words], rate)
    return output * kept[ids].unsqueeze(-1) * scale


def block(input: Tensor, size: int, rate: Number, scale: Number) -> Tensor:
    r"""Drop squares of each feature map: a position falls if one of the blocks around it is drawn.

    Blocks are drawn with :math:`\gamma = 1 - (1-p)^{1/b^d}` for every place that overlaps the map, the edges
    included, so that each position falls with probability :math:`1 - (1-\gamma)^{b^d} = p`. The paper draws
    inside the map alone, and drops less than p near the edges.

    Args:
        input: ``(N, C, ...)`` with d = 1, 2 or 3 more dimensions.
        size: b, the width of a block.
        rate: p.
        scale: what is kept is multiplied by it.

    >>> _ = torch.manual_seed(0)
    >>> round(float((block(torch.ones(64, 8, 20, 20), 3, 0.2, 1.25) == 0).float().mean()), 1)
    0.2

    References:
        Ghiasi, Lin and Le, *DropBlock*, NeurIPS 2018.
    """
    d = input.dim() - 2
    gamma = 1.0 - (1.0 - rate) ** (1.0 / size**d)
    shape = [*input.shape[:2], *[n + size - 1 for n in input.shape[2:]]]
    centres = (torch.rand(shape, device=input.device) < gamma).to(input.dtype)
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[d - 1]
    return input * (1.0 - pool(centres, size, stride=1)) * scale


def weight(weights: Tensor, rate: Number, scale: Number) -> Tensor:
    r"""Drop single weights: :math:`W_{ij}\,m_{ij}/(1-p)`, one draw for the whole batch.

    Args:
        weights: any shape.
        rate: p.
        scale: what is kept is multiplied by it.

    >>> set(weight(torch.ones(100), 0.5, 2.0).tolist()) == {0.0, 2.0}
    True

    References:
        Wan et al., *Regularization of Neural Networks using DropConnect*, ICML 2013; Merity, Keskar and
        Socher, ICLR 2018, for recurrent weights.
    """
    return weights * _kept(weights, list(weights.shape), rate) * scale
