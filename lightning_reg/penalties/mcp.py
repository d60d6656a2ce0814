"""The minimax concave penalty."""

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

__all__ = ["MCP"]


@dataclass(frozen=True)
class MCP(ElementwisePenalty):
    r"""Minimax concave penalty: :math:`\sum_i \lambda|w_i| - w_i^2/2\gamma` up to :math:`\gamma\lambda`.

    From there on it is :math:`\gamma\lambda^2/2`. As the lasso near 0, and flat for large weights: it
    selects without shrinking what it keeps. Not convex.

    The prox needs :math:`\gamma > \eta` for the step of each weight. A safe form is used where an optimizer's
    step is longer, as Adam's become for weights whose gradient vanishes: it counts as :math:`\gamma`, a hard
    threshold at :math:`\gamma\lambda`.

    Args:
        strength: λ ≥ 0, in units of loss per unit of weight.
        select: what it applies to; real tensors.
        gamma: γ > 0; the lasso as it grows.
        factors: what λ is multiplied by for each weight, a tensor, a dict of tensors or numbers by parameter
            name, or a callable ``(name, parameter, module) -> tensor``; 0 leaves a weight alone.
        name: its name in logs.

    Raises:
        ValueError: a negative, NaN or infinite strength, or ``gamma`` that is not positive.

    >>> MCP(1.0, gamma=3.0).prox(torch.tensor([0.5, 2.0, 9.0]), strength=1.0, step=1.0)
    tensor([0.0000, 1.5000, 9.0000])

    References:
        Zhang, *Nearly Unbiased Variable Selection under Minimax Concave Penalty*, Ann. Statist. 38(2), 2010.
    """

    holds_zeros = True

    kind: ClassVar[str] = "concave"
    turn: ClassVar[int] = 12

    strength: ScheduleLike
    select: Select = "weights"
    _: KW_ONLY
    gamma: float = 3.0
    factors: Factors | None = field(default=None, repr=False, compare=False)
    name: str | None = None
    takes_complex: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.gamma < float("inf"):
            raise ValueError(f"MCP(gamma={self.gamma}) is out of range; give a finite number above 0")

    def value(self, weight: Tensor, strength: float) -> Tensor:
        """Return the sum over all weights, in float32 or wider."""
        return prox_nonconvex.mcp(wide(weight).abs(), strength, self.gamma).sum()

    def each(self, weight: Tensor, strength: float) -> Tensor:
        """Return the formula of each weight."""
        return prox_nonconvex.mcp(weight.abs(), strength, self.gamma)

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\operatorname{sign}(w)(\lambda - |w|/\gamma)_+`, and 0 at 0."""
        return torch.sgn(weight) * prox_nonconvex.mcp_slope(weight.abs(), strength, self.gamma)

    def prox(self, weight: Tensor, strength: float, step: float | Tensor) -> Tensor:
        """Return the weight firmly thresholded, or hard at γλ, where the step is longer than γ."""
        return prox_nonconvex.firm_threshold(wide(weight), step, strength, self.gamma).to(weight.dtype)

    def loop(self, strength: float) -> tuple[str, str, float, float]:
        """The loop that is :meth:`prox`, and its parameters."""
        return "prox._loops", "firm_threshold", strength, self.gamma

    def threshold(self, strength: float, step: float | Tensor) -> float | Tensor:
        r"""Return :math:`\min(\eta, \gamma)\lambda`."""
        return strength * (step.clamp(max=self.gamma) if isinstance(step, Tensor) else min(step, self.gamma))
