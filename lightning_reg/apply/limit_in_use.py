r"""A limit on the norms of groups, for the weight that a layer with a spectral norm uses.

The layer stores V and uses :math:`W = V/\sigma(V)`, with σ the largest singular value. To shorten a row of V
makes σ smaller, and so all other rows of W longer. Wanted is the matrix near W with

.. math::
    \|W_g\|_2 \le c \quad\text{for each group}, \qquad \sigma(W) = 1,

which is found by projecting on both sets in turn: groups that are too long are shortened, then the largest
singular value alone is set to 1. It exists from :math:`c = 1/\sqrt{n}` on for n groups, since
:math:`\sigma^2 \le \sum_g \|W_g\|_2^2 \le n c^2`; from 1 on every W is in it.

References:
    Miyato et al., *Spectral Normalization for Generative Adversarial Networks*, ICLR 2018.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_reg.groups.partition import partition
from lightning_reg.penalties.in_use import InUse
from lightning_reg.penalties.regularizer import Regularizer
from lightning_reg.select.parameters import Selected
from lightning_reg.tensors.grad_mode import without_grad
from lightning_reg.tensors.precision import wide
from lightning_reg.tensors.shards import is_sharded
from lightning_reg.tensors.spectra import svd

__all__ = ["least_limit", "limit_in_use_"]

#: Passes over both sets at most; a limit a twentieth above the least takes about 100, others fewer.
PASSES = 200
#: What is shortened by less lies in the set.
CLOSE = 1e-6


def least_limit(constraint: Regularizer, selected: Selected) -> float | None:
    """Return the least limit that can hold beside a spectral norm; None where there is no such thing."""
    derived = selected.derived
    limited = constraint.is_constraint and getattr(constraint, "longest", None) is not None
    if not limited or derived is None or derived.vectors is None or is_sharded(selected.parameter):
        return None
    (((_, layout),),) = partition([selected.as_used()], constraint.groups)  # type: ignore[attr-defined]
    return float(layout.count**-0.5)


@without_grad
def limit_in_use_(in_use: InUse, parameter: nn.Parameter) -> None:
    """Change a stored weight, and the singular vectors beside it, so that the limit holds for the one in use.

    The largest singular value of what is stored stays as it is.
    """
    selected = in_use.of(parameter)
    assert selected is not None and selected.derived is not None
    derived, vectors = selected.derived, selected.derived.vectors
    assert vectors is not None

    def shorten(weight: Tensor) -> float:
        before = weight.clone()
        in_use.standing_in([parameter], [weight]).prox_([weight], 1.0, ())
        return float((before - weight).abs().max() / before.abs().max())

    if not shorten(selected.used().clone()) > CLOSE:  # by vectors of the last forward, which tell σ too small
        return
    weight = wide(derived.sources[0].detach()).movedim(derived.front, 0)
    weight = weight.clone(memory_format=torch.contiguous_format)
    matrix = weight.view(len(weight), -1)
    u, sigma, v = svd(matrix)
    size = float(sigma[0])
    matrix.div_(size)
    for _ in range(PASSES):
        if shorten(weight.movedim(0, derived.front)) <= CLOSE:
            break
        u, sigma, v = svd(matrix)
        matrix.addr_(u[:, 0], v[0], alpha=1.0 - float(sigma[0]))
    derived.sources[0].copy_(weight.mul_(size).movedim(0, derived.front))
    left, right = vectors()
    left.copy_(u[:, 0])
    right.copy_(v[0])
