"""Rows, or columns, that are orthonormal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from lightning_reg.penalties._each_tensor import each_tensor
from lightning_reg.penalties._factors import Factors
from lightning_reg.penalties._iterated import IteratedPenalty
from lightning_reg.penalties.bound import Bound
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.select.parameters import Select, Selected
from lightning_reg.tensors.spectra import as_matrix, gram_deviation, largest_modulus, unit

__all__ = ["Orthogonality"]

Form = Literal["soft", "double", "srip", "off-diagonal"]


@dataclass(frozen=True)
class Orthogonality(IteratedPenalty):
    r"""How far each weight, as ``(out, rest)``, is from orthonormal rows, or columns if it is tall.

    With :math:`G` the Gram matrix of the shorter side (:math:`WW^\top` of a wide matrix):

    - ``"soft"``: :math:`\lambda\|G - I\|_F^2`;
    - ``"double"``: :math:`\lambda(\|W^\top W - I\|_F^2 + \|WW^\top - I\|_F^2)`;
    - ``"srip"``: :math:`\lambda\sigma_1(G - I)`, the spectral restricted isometry property. In training by a
      power iteration that goes on from step to step, kept in checkpoints; exact on a bare tensor;
    - ``"off-diagonal"``: :math:`\lambda\sum_{i \ne j}G_{ij}^2`: orthogonal, of any length.

    There is no proximal operator.

    Args:
        strength: λ ≥ 0, in units of loss.
        select: what it applies to; real tensors.
        form: which of the four.
        iterations: power iterations a step, for ``"srip"``.
        factors: what λ is multiplied by for each tensor: a dict of numbers by parameter name, or a callable
            ``(name, parameter, module) -> number``.
        name: its name in logs.

    Raises:
        ValueError: a negative, NaN or infinite strength, or another form.

    >>> Orthogonality(1.0).value(torch.diag(torch.tensor([1.0, 2.0])), strength=1.0)
    tensor(9.)

    References:
        Bansal, Chen and Wang, *Can We Gain More from Orthogonality Regularizations in Training Deep CNNs?*,
        NeurIPS 2018; Brock, Donahue and Simonyan, *Large Scale GAN Training for High Fidelity Natural Image
        Synthesis*, ICLR 2019, for ``"off-diagonal"``.
    """

    strength: ScheduleLike
    select: Select = "weights"
    _: KW_ONLY
    form: Form = "soft"
    iterations: int = 2
    factors: Factors | None = field(default=None, repr=False, compare=False)
    name: str | None = None
    takes_complex: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_iterations()
        if self.form not in get_args(Form):
            known = ", ".join(map(repr, get_args(Form)))
            raise ValueError(f"Orthogonality(form={self.form!r}) is unknown; it is one of {known}")

    def value(self, weight: Tensor, strength: float) -> Tensor:
        """Return the penalty of one tensor."""
        matrix = as_matrix(weight)
        if not matrix.numel():
            return matrix.sum()
        if self.form == "srip":
            size = _size(matrix)
            eigenvalues: Tensor = torch.linalg.eigvalsh(gram_deviation(matrix / size, size**-2.0))
            return eigenvalues.abs().amax() * size.square() * strength
        squares = self._deviation(matrix).square().sum()
        if self.form == "double":
            # ‖WᵀW − I‖² and ‖WWᵀ − I‖² share their eigenvalues but for the longer side's extra zeros
            squares = 2.0 * squares + abs(matrix.shape[0] - matrix.shape[1])
        return squares * strength

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`4\lambda(G - I)W`, twice that for ``"double"``; see :meth:`gradient_at`."""
        matrix = as_matrix(weight)
        if not matrix.numel():
            return torch.zeros_like(weight)
        if self.form == "srip":
            size = _size(matrix)
            values, vectors = torch.linalg.eigh(gram_deviation(matrix / size, size**-2.0))
            top = values.abs().argmax()
            gradient = self.gradient_at(matrix, vectors[:, top], strength)
        else:
            deviation = self._deviation(matrix)
            wide = matrix.shape[0] <= matrix.shape[1]
            factor = (8.0 if self.form == "double" else 4.0) * strength
            gradient = (deviation @ matrix if wide else matrix @ deviation) * factor
        return gradient.to(weight.dtype).view(weight.shape)

    def _deviation(self, matrix: Tensor) -> Tensor:
        """G − I, or without its diagonal."""
        deviation = gram_deviation(matrix)
        return deviation - deviation.diag().diag() if self.form == "off-diagonal" else deviation

    def bind(self, selected: Sequence[Selected]) -> Bound:
        """Start a power iteration for each tensor, where one is needed."""
        return super().bind(selected) if self.form == "srip" else each_tensor(self, self, selected)

    def iterate(self, matrix: Tensor, vector: Tensor) -> Tensor:
        """Return the next eigenvector of the deviation."""
        length, following = unit(_times_deviation(matrix, vector))
        return torch.where(length > 0, following, vector)

    def value_at(self, matrix: Tensor, vector: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\lambda|v^\top(G - I)v|`."""
        return vector.dot(_times_deviation(matrix, vector)).abs() * _size(matrix).square() * strength

    def gradient_at(self, matrix: Tensor, vector: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\pm2\lambda vv^\top W`, on the shorter side."""
        sign = torch.sgn(vector.dot(_times_deviation(matrix, vector)))
        if matrix.shape[0] <= matrix.shape[1]:
            return torch.outer(vector, matrix.T.mv(vector)) * (2.0 * strength * sign)
        return torch.outer(matrix.mv(vector), vector) * (2.0 * strength * sign)

    def vector_length(self, matrix: Tensor) -> int:
        """Return the length of the shorter side."""
        return min(matrix.shape)


def _times_deviation(matrix: Tensor, vector: Tensor) -> Tensor:
    """(G − I)v without G, over the square of the matrix's size."""
    size = _size(matrix)
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    return matrix.mv(matrix.T.mv(vector) / size) / size - vector / size / size


def _size(matrix: Tensor) -> Tensor:
    """The largest modulus, by which the squares of a matrix do not overflow, and 1 of most matrices."""
    return largest_modulus(matrix.detach()).clamp(min=1.0)
