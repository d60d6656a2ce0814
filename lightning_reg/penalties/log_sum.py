"""The sum of logarithms."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lightning_reg.penalties._factors import Factors
from lightning_reg.penalties.elementwise import ElementwisePenalty
from lightning_reg.prox import nonconvex as prox_nonconvex
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.select.parameters import Select
from lightning_reg.tensors.precision import wide

__all__ = ["LogSum"]


@dataclass(frozen=True)
class LogSum(ElementwisePenalty):
    r"""The sum of logarithms: :math:`\lambda\sum_i\log(1 + |w_i|/\epsilon)`.

    The lasso of strength :math:`\lambda/\epsilon` near 0, and ever flatter from there on: a weight of size t
    is shrunk with :math:`\lambda/(t + \epsilon)`. It is what reweighted L1 minimises. Not convex.

    The prox is exact at any step :math:`\eta`: where :math:`\eta\lambda > \epsilon^2` the better one of 0 and
    the stationary point is taken, and the result jumps. A long step is a high threshold, about
    :math:`\sqrt{2\eta\lambda\log(\eta\lambda/\epsilon^2)}`.

    Args:
        strength: λ ≥ 0, in units of loss.
        select: what it applies to; real tensors.
        eps: ε > 0, below the size of the weights that should stay; the lasso of strength λ/ε as it grows.
        factors: what λ is multiplied by for each weight, a tensor, a dict of tensors or numbers by parameter
            name, or a callable ``(name, parameter, module) -> tensor``; 0 leaves a weight alone.
        name: its name in logs.

    Raises:
        ValueError: a negative, NaN or infinite strength, or ``eps`` that is not positive.

    >>> LogSum(1.0, eps=1.0).prox(torch.tensor([0.5, 2.0, 9.0]), strength=1.0, step=1.0)
    tensor([0.0000, 1.6180, 8.8990])

    References:
        Candès, Wakin and Boyd, *Enhancing Sparsity by Reweighted ℓ1 Minimization*, J. Fourier Anal. Appl.
        14(5), 2008; Prater-Bennette, Shen and Tripp, *The Proximity Operator of the Log-Sum Penalty*, J. Sci.
        Comput. 93(3), 2022, for the prox.
    """

    holds_zeros = True

    kind: ClassVar[str] = "concave"
    turn: ClassVar[int] = 11

    strength: ScheduleLike
    select: Select = "weights"
    _: KW_ONLY
    eps: float = 0.1
    factors: Factors | None = field(default=None, repr=False, compare=False)
    name: str | None = None
    takes_complex: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.eps < float("inf"):
            raise ValueError(f"LogSum(eps={self.eps}) is out of range; give a finite number above 0")

    def value(self, weight: Tensor, strength: float) -> Tensor:
        """Return the sum over all weights, in float32 or wider."""
        return self.each(wide(weight), strength).sum()

    def each(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\lambda\log(1 + |w_i|/\epsilon)`."""
        return torch.log1p(weight.abs() / self.eps) * strength

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\operatorname{sign}(w)\lambda/(|w| + \epsilon)`, and 0 at 0."""
        return torch.sgn(weight) * strength / (weight.abs() + self.eps)

    def prox(self, weight: Tensor, strength: float, step: float | Tensor) -> Tensor:
        """Return the stationary point of each weight, or 0 where that is better."""
        return prox_nonconvex.log_threshold(wide(weight), step * strength, self.eps).to(weight.dtype)

    def threshold(self, strength: float, step: float | Tensor) -> float | Tensor:
        """Return the modulus at which 0 and the stationary point are equally good."""
        amount = step * strength
        if isinstance(amount, Tensor):
            return prox_nonconvex.log_jump(amount, self.eps)
        return float(prox_nonconvex.log_jump(torch.tensor(amount, dtype=torch.float64), self.eps))
