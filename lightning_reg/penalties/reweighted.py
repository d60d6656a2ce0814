"""Factors that follow the weights: the adaptive lasso, at times of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from lightning_reg.tensors.safe_globals import allow_in_checkpoints

__all__ = ["Reweighted"]


@dataclass(frozen=True)
class Reweighted:
    r"""For ``factors=``: from given times on, λ is multiplied by :math:`\epsilon/(|w_i| + \epsilon)`.

    What has grown is shrunk less, and what is small as before: the zeros of L1, with less bias. Until the
    first of the times the penalty acts as it is; at each of them the factors are taken from the weights of
    that moment, and they stay till the next. Of a group, the size is the root mean square of its weights.

    Repeated, this is the algorithm of Candès, Wakin and Boyd for :class:`~lightning_reg.LogSum` of strength
    λε. The factors are kept in checkpoints. Sharded weights are refused.

    Args:
        eps: ε > 0, in units of weights: what is much smaller counts as zero.
        at: the optimizer steps at which the factors are taken, rising.

    Raises:
        ValueError: ``eps`` that is not positive, or steps that do not rise.

    >>> from lightning_reg import L1
    >>> L1(1e-3, factors=Reweighted(0.01, at=(500, 1000))).factors
    Reweighted(eps=0.01, at=(500, 1000))

    References:
        Candès, Wakin and Boyd, *Enhancing Sparsity by Reweighted ℓ1 Minimization*, J. Fourier Anal. Appl.
        14(5), 2008; Zou, *The Adaptive Lasso and Its Oracle Properties*, JASA 101(476), 2006.
    """

    eps: float
    at: Sequence[int]

    def __post_init__(self) -> None:
        if not 0.0 < self.eps < float("inf"):
            raise ValueError(f"Reweighted(eps={self.eps}) is out of range; give a finite number above 0")
        steps = list(self.at) if isinstance(self.at, Sequence) else []
        whole = all(type(step) is int and step >= 0 for step in steps)
        if not steps or not whole or any(a >= b for a, b in pairwise(steps)):
            raise ValueError(
                f"Reweighted(at={self.at!r}) are no rising steps; give optimizer steps such as at=(500, 1000)"
            )

    def __call__(self, name: str, parameter: nn.Parameter, module: nn.Module) -> float:
        """Return the factor until the first time."""
        return 1.0

    def passed(self, step: int) -> int:
        """Return how many of the steps have come."""
        return sum(step >= time for time in self.at)

    def factor(self, size: Tensor) -> Tensor:
        r"""Return :math:`\epsilon/(t + \epsilon)` of each size."""
        return self.eps / (size + self.eps)


allow_in_checkpoints(Reweighted)
