"""Weights as matrices: their singular values, and the largest by power iteration."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_reg.tensors.precision import wide

__all__ = ["as_matrix", "gram_deviation", "largest_modulus", "power_step", "start_vector", "svd", "unit"]


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
    _, u = unit(matrix.mv(vector))
    sigma, v = unit(matrix.T.mv(u))
    return sigma, u, torch.where(sigma > 0, v, vector)


def unit(vector: Tensor) -> tuple[Tensor, Tensor]:
    """Return the length of a vector and the vector of length 1 of its direction; 0 and 0 for a zero vector.

    >>> unit(torch.tensor([3e30, 4e30]))
    (tensor(5.0000e+30), tensor([0.6000, 0.8000]))
    """
    largest = largest_modulus(vector)
    scaled = vector / torch.where(largest > 0, largest, 1.0)  # so that squares neither overflow nor vanish
    length = torch.linalg.vector_norm(scaled)
    return length * largest, scaled / torch.where(length > 0, length, 1.0)


def largest_modulus(tensor: Tensor) -> Tensor:
    """Return the largest modulus, 0 of an empty tensor."""
    return tensor.abs().amax() if tensor.numel() else tensor.new_zeros(())


def gram_deviation(matrix: Tensor, identity: Tensor | float = 1.0) -> Tensor:
    """Return the Gram matrix of the shorter side, less the identity or a multiple of it."""
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return gram - torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device) * identity
