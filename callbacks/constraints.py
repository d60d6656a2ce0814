"""Constraints as callbacks: each is the constraint itself, wired into Lightning's hooks."""

from __future__ import annotations

from typing import Any, final

from lightning_reg import constraints
from lightning_reg.callbacks.regularizer import RegularizerCallback

__all__ = [
    "NM",
    "Box",
    "KeepLargest",
    "L1Ball",
    "MaxNorm",
    "MaxRank",
    "NonNegative",
    "NormBudget",
    "Refit",
    "Simplex",
    "UnitNorm",
]


class _ConstraintCallback(RegularizerCallback):
    """The wiring of a constraint that is the callback itself: it can be given wherever a constraint can."""

    # two callbacks of the same arguments are two
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def acting(self) -> Any:
        """The constraint: this object."""
        return self


@final
class MaxNorm(_ConstraintCallback, constraints.MaxNorm):
    """Keep the norm of every unit's incoming weights at a limit or below, see :class:`lightning_reg.MaxNorm`.

    >>> MaxNorm(3.0).limit
    3.0
    """


@final
class UnitNorm(_ConstraintCallback, constraints.UnitNorm):
    """Keep the norm of every unit's incoming weights at 1, see :class:`lightning_reg.UnitNorm`.

    >>> UnitNorm("head.*").select
    'head.*'
    """


@final
class Box(_ConstraintCallback, constraints.Box):
    """Keep every weight in ``[low, high]``, see :class:`lightning_reg.Box`.

    >>> Box(-1.0, 1.0).high
    1.0
    """


@final
class NonNegative(_ConstraintCallback, constraints.NonNegative):
    """Keep every weight at 0 or above, see :class:`lightning_reg.NonNegative`.

    >>> NonNegative().select
    'weights'
    """


@final
class L1Ball(_ConstraintCallback, constraints.L1Ball):
    """Keep the sum of the moduli of every tensor at a radius or below, see :class:`lightning_reg.L1Ball`.

    >>> L1Ball(2.0).radius
    2.0
    """


@final
class Simplex(_ConstraintCallback, constraints.Simplex):
    """Keep the weights of every tensor at 0 or above, and their sum, see :class:`lightning_reg.Simplex`.

    >>> Simplex(2.0).radius
    2.0
    """


@final
class MaxRank(_ConstraintCallback, constraints.MaxRank):
    """Keep the rank of every tensor at a limit or below, see :class:`lightning_reg.MaxRank`.

    >>> MaxRank(8).rank
    8
    """


@final
class NormBudget(_ConstraintCallback, constraints.NormBudget):
    """Decay each tensor just enough to keep it within its budget, see :class:`lightning_reg.NormBudget`.

    >>> NormBudget(2.0, warmup_steps=500).warmup_steps
    500
    """

    def multipliers(self) -> dict[str, float]:
        """Return λ by parameter name: which tensors press against their budgets, and how hard."""
        suffix = ":multiplier"
        state = self.learned()
        return {n.removesuffix(suffix): float(v) for n, v in state.items() if n.endswith(suffix)}


@final
class Refit(_ConstraintCallback, constraints.Refit):
    """Hold the zeros and train on without the penalty that made them, see :class:`lightning_reg.Refit`.

    >>> Refit(0.75).begin
    0.75
    """


@final
class KeepLargest(_ConstraintCallback, constraints.KeepLargest):
    """Cut the smallest weights until a share is zero, see :class:`lightning_reg.KeepLargest`.

    >>> KeepLargest(0.9, scope="all").share
    0.9
    """


@final
class NM(_ConstraintCallback, constraints.NM):
    """Keep the n largest of every m consecutive input weights, see :class:`lightning_reg.NM`.

    >>> NM(2, 4).n
    2
    """
