"""A budget for the norm of each tensor, and the decay that it takes to keep to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_reg.constraints.base import BoundConstraint, Constraint
from lightning_reg.prox.projections import spend_budget_
from lightning_reg.select.parameters import Select, Selected
from lightning_reg.tensors.precision import sum_of_squares
from lightning_reg.tensors.shards import over_shards

__all__ = ["NormBudget"]


@dataclass(frozen=True)
class NormBudget(Constraint):
    r"""Constrained parameter regularization: weight decay that finds its own strength for every tensor.

    Each tensor has a budget :math:`\kappa` for :math:`R(w) = \tfrac12\|w\|_2^2`. Above it a multiplier grows,
    :math:`\lambda \leftarrow \max(0, \lambda + \tfrac\mu\kappa(R(w) - \kappa))`, and decays the tensor by
    :math:`\lambda w` a step; within it the multiplier falls back to 0. It replaces the optimizer's
    ``weight_decay``. The multipliers and budgets are kept in checkpoints.

    Args:
        factor: the budget as a share of what :math:`R` is when it is set.
        select: what it applies to, the weights where not given.
        warmup_steps: optimizer steps after which the budget is set; 0 is before the first, from the initial
            weights.
        rate: μ > 0.
        name: its name in checkpoints.

    Raises:
        ValueError: a factor or rate that is not positive, or fewer than 0 steps.

    >>> NormBudget(2.0, warmup_steps=500).warmup_steps
    500

    References:
        Franke, Hefenbrock, Koehler and Hutter, *Improving Deep Learning Optimization through Constrained
        Parameter Regularization*, NeurIPS 2024.
    """

    turn: ClassVar[int] = 45

    factor: float = 1.0
    select: Select = "weights"
    _: KW_ONLY
    warmup_steps: int = 0
    rate: float = 1.0
    name: str | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        inside = 0.0 < self.factor < float("inf") and 0.0 < self.rate < float("inf")
        if not inside or self.warmup_steps < 0:
            raise ValueError(
                f"NormBudget(factor={self.factor}, warmup_steps={self.warmup_steps}, rate={self.rate}) is "
                "out of range; give a factor and a rate above 0, and 0 steps or more"
            )

    def bind(self, selected: Sequence[Selected]) -> BoundConstraint:
        """Return what holds these tensors to their budgets."""
        return _Budgets(self, selected)


class _Budgets(BoundConstraint):
    """The budgets of some tensors: steps taken, κ and λ by parameter name."""

    constraint: NormBudget

    def __init__(self, constraint: NormBudget, selected: Sequence[Selected]) -> None:
        super().__init__(constraint)
        self._names = {id(s.parameter): s.name for s in selected}
        self._steps = dict.fromkeys(self._names.values(), 0)
        self._budgets: dict[str, Tensor] = {}
        self._multipliers: dict[str, Tensor] = {}
        for s in selected:
            if constraint.warmup_steps == 0:
                self._set_budget(s.name, s.parameter)

    def project_(self, weights: Sequence[Tensor]) -> None:
        for weight in weights:
            name = self._names[id(weight)]
            if name in self._budgets:
                budget, multiplier = (d[name].to(weight.device) for d in (self._budgets, self._multipliers))
                self._budgets[name], self._multipliers[name] = budget, multiplier
                spend_budget_(weight, multiplier, budget, self.constraint.rate)
            self._steps[name] += 1
            if self._steps[name] == self.constraint.warmup_steps:
                self._set_budget(name, weight)

    @torch.no_grad()
    def _set_budget(self, name: str, weight: Tensor) -> None:
        energy = over_shards(sum_of_squares, weight) * 0.5
        self._budgets[name] = self.constraint.factor * energy
        self._multipliers[name] = torch.zeros_like(energy)

    def state_dict(self) -> dict[str, Tensor]:
        state = {f"{name}:steps": torch.tensor(steps) for name, steps in self._steps.items()}
        state |= {f"{name}:budget": budget for name, budget in self._budgets.items()}
        return state | {f"{name}:multiplier": value for name, value in self._multipliers.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name in self._steps:
            if f"{name}:steps" in state:
                self._steps[name] = int(state[f"{name}:steps"])
            if f"{name}:budget" in state:
                self._budgets[name] = state[f"{name}:budget"].clone()
                self._multipliers[name] = state[f"{name}:multiplier"].clone()
            elif f"{name}:steps" in state:  # saved before its budget was set
                self._budgets.pop(name, None)
