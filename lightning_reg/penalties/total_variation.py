"""Total variation: neighbours that are equal, as in the fused lasso."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lightning_reg.penalties._factors import Factors
from lightning_reg.penalties.base import Penalty
from lightning_reg.penalties.bound import Bound
from lightning_reg.prox.fused import smooth_lines
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.select.parameters import Select, Selected
from lightning_reg.tensors.precision import wide

__all__ = ["TotalVariation"]


@dataclass(frozen=True)
class TotalVariation(Penalty):
    r"""Total variation along one dimension, or several: :math:`\lambda\sum_i|w_{i+1} - w_i|`.

    For weights with an order: filters over time or frequency, embeddings of positions, a linear model of a
    signal. They become constant in pieces. Beside :class:`~lightning_reg.L1`, with both proximal, it is the
    fused lasso.

    The prox is exact along one dimension, for one step a tensor (SGD, or ``metric="euclidean"``). Along
    several the sum over them (anisotropic) has none in closed form, and acts by a gradient. Each step walks
    the lines in Python, some microseconds a weight: for small tensors. Sharded tensors are gathered.

    Args:
        strength: λ ≥ 0, in units of loss per unit of weight.
        select: what it applies to; real tensors.
        dim: the dimension along which weights are neighbours, or several such as ``(-2, -1)``.
        factors: what λ is multiplied by for each step between neighbours, a tensor that is one shorter than
            the weight along ``dim``, a dict of tensors or numbers by parameter name, or a callable ``(name,
            parameter, module) -> tensor``; 0 lets neighbours part. Along several dimensions a number for
            each tensor: for more, give a penalty to each dimension.
        name: its name in logs.

    Raises:
        ValueError: a negative, NaN or infinite strength, or no dimension, or one that a tensor lacks.

    >>> penalty = TotalVariation(1.0)
    >>> penalty.value(torch.tensor([[0.0, 1.0, 5.0, 6.0]]), strength=1.0)
    tensor(6.)
    >>> penalty.prox(torch.tensor([[0.0, 1.0, 5.0, 6.0]]), strength=1.0, step=1.0)
    tensor([[1., 1., 5., 5.]])

    References:
        Rudin, Osher and Fatemi, *Nonlinear Total Variation Based Noise Removal Algorithms*, Physica D 60,
        1992; Tibshirani, Saunders, Rosset, Zhu and Knight, *Sparsity and Smoothness via the Fused Lasso*,
        JRSS B 67(1), 2005; Friedman, Hastie, Höfling and Tibshirani, *Pathwise Coordinate Optimization*, Ann.
        Appl. Stat. 1(2), 2007, for L1 after it.
    """

    kind: ClassVar[str] = "differences"
    turn: ClassVar[int] = 5
    makes_zeros = False

    strength: ScheduleLike
    select: Select = "weights"
    _: KW_ONLY
    dim: int | Sequence[int] = -1
    factors: Factors | None = field(default=None, repr=False, compare=False)
    name: str | None = None
    takes_complex: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self._dims or any(type(dim) is not int for dim in self._dims):
            raise ValueError(
                f"TotalVariation(dim={self.dim!r}) is no dimension; give one such as -1, or several"
            )

    @property
    def _dims(self) -> tuple[int, ...]:
        return tuple(self.dim) if isinstance(self.dim, Sequence) else (self.dim,)

    def value(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\lambda\sum|w_{i+1} - w_i|` over all dimensions, in float32 or wider."""
        values = wide(weight if weight.dim() else weight[None])  # which has no neighbours
        return torch.stack([(values.diff(dim=dim).abs() * strength).sum() for dim in self._dims]).sum()

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        """Return λ times the signs of the steps to both neighbours, 0 for a step of 0."""
        gradient = torch.zeros_like(weight)
        for dim in self._dims if weight.dim() else ():
            steps = (torch.sgn(weight.diff(dim=dim)) * strength).to(weight.dtype)
            length = steps.shape[dim]
            if weight.shape[dim] > 1:
                gradient.narrow(dim, 1, length).add_(steps)
                gradient.narrow(dim, 0, length).sub_(steps)
        return gradient

    def prox(self, weight: Tensor, strength: float, step: float | Tensor) -> Tensor:
        """Return the weight with neighbours drawn together, and those that meet equal."""
        if not self.has_prox:
            return super().prox(weight, strength, step)
        return smooth_lines(weight, strength * float(step), self._dims[0]) if weight.dim() else weight.clone()

    @property
    def has_prox(self) -> bool:
        """Whether it is along one dimension."""
        return len(self._dims) == 1

    @property
    def prox_in_metric(self) -> bool:
        """No; it is for one step a tensor."""
        return False

    def factor_shape(self, weight: Tensor) -> tuple[int, ...]:
        """Return the shape of the steps between neighbours; one number along several dimensions."""
        if len(self._dims) > 1 or not weight.dim():
            return ()
        (dim,) = self._dims
        return tuple(max(n - (i == dim % weight.dim()), 0) for i, n in enumerate(weight.shape))

    def bind(self, selected: Sequence[Selected]) -> Bound:
        """Return this itself, or what gives each step a strength of its own.

        Raises:
            ValueError: a tensor without the dimension, or factors that do not fit.
        """
        for s in selected:
            count = s.parameter.dim()
            lacking = [dim for dim in self._dims if not -count <= dim < count]
            if lacking:
                raise ValueError(
                    f"TotalVariation(dim={self.dim!r}) needs dimension {lacking[0]}, and {s.name} is of "
                    f"shape {tuple(s.parameter.shape)}; leave it out with select="
                )
        return super().bind(selected)
