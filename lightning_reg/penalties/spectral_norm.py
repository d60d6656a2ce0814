"""The largest singular value."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lightning_reg.groups.layout import Slices
from lightning_reg.penalties._factors import Factors
from lightning_reg.penalties._iterated import IteratedPenalty
from lightning_reg.prox.group_maxima import lower_maxima_
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.select.parameters import Select
from lightning_reg.tensors.spectra import as_matrix, power_step, svd
from lightning_reg.tensors.steps import StepSize

__all__ = ["SpectralNorm"]


@dataclass(frozen=True)
class SpectralNorm(IteratedPenalty):
    r"""The largest singular value of each weight as a matrix ``(out, rest)``: :math:`\lambda\sigma_1(W)`.

    At work in training :math:`\sigma_1` comes from a power iteration that goes on from step to step; its
    vectors are kept in checkpoints. On a bare tensor it is exact. The prox, exact too and for one step a
    tensor, cuts the largest singular values off at one level.

    This penalizes; to divide a weight by its norm in the forward pass, use
    ``torch.nn.utils.parametrizations.spectral_norm``.

    Args:
        strength: λ ≥ 0, in units of loss per unit of weight.
        select: what it applies to; real tensors.
        iterations: power iterations a step.
        factors: what λ is multiplied by for each tensor: a dict of numbers by parameter name, or a callable
            ``(name, parameter, module) -> number``.
        name: its name in logs.

    Raises:
        ValueError: a negative, NaN or infinite strength, or no iteration.

    >>> SpectralNorm(1.0).value(torch.diag(torch.tensor([3.0, 0.5])), strength=1.0)
    tensor(3.)

    References:
        Yoshida and Miyato, *Spectral Norm Regularization for Improving the Generalizability of Deep
        Learning*, 2017 (there squared and halved).
    """

    kind: ClassVar[str] = "spectrum"
    turn: ClassVar[int] = 37
    makes_zeros = False

    strength: ScheduleLike
    select: Select = "weights"
    _: KW_ONLY
    iterations: int = 1
    factors: Factors | None = field(default=None, repr=False, compare=False)
    name: str | None = None
    takes_complex: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_iterations()

    def value(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\lambda\sigma_1`, exactly."""
        matrix = as_matrix(weight)
        if not matrix.numel():
            return matrix.sum()
        sigma: Tensor = torch.linalg.svdvals(matrix)
        return torch.where(sigma[0] > 0, sigma[0], sigma[0].detach()) * strength

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\lambda u_1v_1^\top`, and 0 at 0."""
        matrix = as_matrix(weight)
        if not matrix.numel():
            return torch.zeros_like(weight)
        u, sigma, v = svd(matrix)
        gradient: Tensor = torch.outer(u[:, 0], v[0]) * ((sigma[0] > 0).to(sigma) * strength)
        return gradient.to(weight.dtype).view(weight.shape)

    def prox(self, weight: Tensor, strength: float, step: float | Tensor) -> Tensor:
        """Return the weight with its largest singular values lowered to one level."""
        if strength == 0.0 or not weight.numel():
            return weight.clone()
        u, sigma, v = svd(as_matrix(weight))
        lower_maxima_([sigma], [Slices(tuple(sigma.shape), ())], [StepSize(float(step))], strength)
        result: Tensor = (u * sigma) @ v
        return result.to(weight.dtype).view(weight.shape)

    @property
    def prox_in_metric(self) -> bool:
        """No; it couples its weights through a decomposition."""
        return False

    def iterate(self, matrix: Tensor, vector: Tensor) -> Tensor:
        """Return the next right singular vector."""
        return power_step(matrix, vector)[2]

    def value_at(self, matrix: Tensor, vector: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\lambda u^\top Wv`, whose gradient is :math:`\lambda uv^\top`."""
        _, u, _ = power_step(matrix.detach(), vector)
        return u.dot(matrix.mv(vector)) * strength

    def gradient_at(self, matrix: Tensor, vector: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\lambda uv^\top`."""
        _, u, _ = power_step(matrix, vector)
        return torch.outer(u, vector) * strength

    def vector_length(self, matrix: Tensor) -> int:
        """Return the number of columns."""
        return matrix.shape[1]
