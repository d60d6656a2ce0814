"""The sum of singular values."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lightning_reg.penalties._factors import Factors
from lightning_reg.penalties.base import Penalty
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.select.parameters import Select
from lightning_reg.tensors.spectra import as_matrix, svd

__all__ = ["NuclearNorm"]


@dataclass(frozen=True)
class NuclearNorm(Penalty):
    r"""The sum of singular values of each weight as ``(out, rest)``: :math:`\lambda\sum_i\sigma_i(W)`.

    Its prox soft-thresholds the singular values, so that ranks fall. It is known for one step a tensor (SGD,
    or ``metric="euclidean"``): in a metric with a step for each weight there is no closed form. Each call
    takes a singular value decomposition.

    Args:
        strength: λ ≥ 0, in units of loss per unit of weight.
        select: what it applies to; real tensors.
        factors: what λ is multiplied by for each tensor: a dict of numbers by parameter name, or a callable
            ``(name, parameter, module) -> number``.
        name: its name in logs.

    Raises:
        ValueError: a negative, NaN or infinite strength.

    >>> weight = torch.diag(torch.tensor([3.0, 0.5]))
    >>> NuclearNorm(1.0).value(weight, strength=1.0)
    tensor(3.5000)
    >>> NuclearNorm(1.0).prox(weight, strength=1.0, step=1.0)
    tensor([[2., 0.],
            [0., 0.]])

    References:
        Cai, Candès and Shen, *A Singular Value Thresholding Algorithm for Matrix Completion*, SIAM J. Optim.
        20(4), 2010.
    """

    kind: ClassVar[str] = "spectrum"
    turn: ClassVar[int] = 36
    makes_zeros = False

    strength: ScheduleLike
    select: Select = "weights"
    _: KW_ONLY
    factors: Factors | None = field(default=None, repr=False, compare=False)
    name: str | None = None
    takes_complex: ClassVar[bool] = False

    def value(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\lambda\sum_i\sigma_i`."""
        sigma: Tensor = torch.linalg.svdvals(as_matrix(weight))
        # where one is zero, so is its gradient
        return torch.where(sigma > rounding(weight, sigma), sigma, sigma.detach()).sum() * strength

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\lambda UV^\top` over the singular values that are not zero."""
        u, sigma, v = svd(as_matrix(weight))
        live = sigma > rounding(weight, sigma)
        gradient: Tensor = (u * live) @ v * strength
        return gradient.to(weight.dtype).view(weight.shape)

    def prox(self, weight: Tensor, strength: float, step: float | Tensor) -> Tensor:
        """Return the weight with its singular values soft-thresholded."""
        if strength == 0.0:
            return weight.clone()
        u, sigma, v = svd(as_matrix(weight))
        shrunk = (sigma - float(step) * strength).clamp(min=0.0)
        result: Tensor = (u * shrunk) @ v
        return result.to(weight.dtype).view(weight.shape)

    @property
    def prox_in_metric(self) -> bool:
        """No; it couples its weights through a decomposition."""
        return False


def rounding(weight: Tensor, sigma: Tensor) -> Tensor:
    """Return below what a singular value is zero, as ``torch.linalg.matrix_rank`` has it."""
    largest = sigma.detach().amax() if sigma.numel() else sigma.new_zeros(())
    return largest * (max(as_matrix(weight).shape) * torch.finfo(sigma.dtype).eps)
