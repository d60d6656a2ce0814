"""Weights as matrices: their singular values, and the largest by power iteration."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_reg.tensors.precision import wide

__all__ = ["as_matrix", "gram_deviation", "power_step", "start_vector", "svd"]


def as_matrix(weight: Tensor) -> Tensor:
    """Return a weight as ``(out, everything else)``, in float32 or wider; a vector as one row.

    >>> as_matrix(torch.ones(4, 3, 5, 5)).shape
    torch.Size([4, 75])
    """
    weight = wide(weight)
    return weight.flatten(1) if weight.dim() >= 2 else weight.reshape(1, -1)


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return u, σ and v of the thin singular value decomposition.

    Raises:
        RuntimeError: torch's ``LinAlgError``; the matrix holds NaN or infinity, or does not converge.
    """
    try:
        u, sigma, v = torch.linalg.svd(matrix, full_matrices=False)
    except RuntimeError as error:
        if torch.isfinite(matrix).all():
            raise
        raise type(error)(
            f"a weight of shape {tuple(matrix.shape)} holds NaN or infinity, so it has no singular values; "
            "the run has diverged: look at the gradients, or lower the learning rate"
        ) from error
    return u, sigma, v


def start_vector(length: int, like: Tensor) -> Tensor:
    """Return a unit vector to start a power iteration from: random, and always the same."""
    generator = torch.Generator().manual_seed(length)
    vector = torch.randn(length, generator=generator, dtype=torch.float64)
    length = torch.linalg.vector_norm(vector).clamp(min=1e-30)
    return torch.div(vector, length).to(like)


def power_step(matrix: Tensor, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return σ, u and the next v of :math:`u = Wv/\|Wv\|,\ \sigma v' = W^\top u`.

    A zero matrix gives σ = 0, u = 0 and the same v.
    """
    u = torch.nn.functional.normalize(matrix.mv(vector), dim=0, eps=1e-30)
    back = matrix.T.mv(u)
    sigma = torch.linalg.vector_norm(back)
    v = torch.where(sigma > 0, back / torch.where(sigma > 0, sigma, 1.0), vector)
    return sigma, u, v


def gram_deviation(matrix: Tensor) -> Tensor:
    """Return the Gram matrix of the shorter side, less the identity."""
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return gram - torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
