"""Constraints on weights, applied after every optimizer step."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_reg.apply.term import found_inf
from lightning_reg.groups.forms import Groups, check_groups
from lightning_reg.groups.layout import Layout
from lightning_reg.groups.partition import partition, spans_tensors
from lightning_reg.groups.spanning import local_layout
from lightning_reg.hosts.both_namespaces import BothCallback
from lightning_reg.prox import projections as constraints
from lightning_reg.select.parameters import (
    Select,
    Selected,
    check_select,
    matches,
    named_parameters,
    select_parameters,
)
from lightning_reg.tensors.precision import sum_of_squares
from lightning_reg.tensors.shards import check_whole, over_shards

__all__ = ["Box", "MaxNorm", "NonNegative", "NormBudget", "UnitNorm"]


class _Constraint(BothCallback):
    """The wiring of a constraint: which tensors, and when."""

    #: Whether it looks at more than single weights.
    _whole = True

    def __init__(self, select: Select) -> None:
        super().__init__()
        check_select(select)
        self.select = select
        self._module: LightningModule | None = None
        self._known: dict[int, Selected | None] = {}
        self._hooks: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_module": None, "_known": {}, "_hooks": {}}

    @abstractmethod
    def _bind(self, selected: list[Selected]) -> None:
        """Look at the tensors before training starts."""

    @abstractmethod
    def _apply(self, selected: Selected) -> None:
        """Put one tensor back into the set."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the tensors, or say that there are none."""
        self._detach()
        self._module = pl_module
        if "DeepSpeed" in type(trainer.strategy).__name__:
            raise ValueError(
                f"DeepSpeed steps an optimizer of its own, out of reach of {type(self).__name__}; use ddp "
                "or ModelParallelStrategy (FSDP2)"
            )
        chosen = select_parameters(pl_module, self.select)  # raises where nothing matches
        if self._whole:
            check_whole((s.parameter for s in chosen), type(self).__name__)
        self._look()
        for optimizer in trainer.optimizers:
            self._hook(optimizer)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Attach to an optimizer that was made since the fit started."""
        self._hook(optimizer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no trace."""
        self._detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave no trace."""
        if stage == "fit":
            self._detach()

    def _hook(self, optimizer: Optimizer) -> None:
        if id(optimizer) not in self._hooks:
            self._hooks[id(optimizer)] = optimizer.register_step_post_hook(self._after_step)

    def _detach(self) -> None:
        for hook in self._hooks.values():
            hook.remove()
        self._module, self._known, self._hooks = None, {}, {}

    def _look(self) -> None:
        assert self._module is not None
        # a lazy tensor is looked at when it is first stepped
        parameters = [s for s in named_parameters(self._module) if not is_lazy(s.parameter)]
        self._known = {id(s.parameter): s if matches(s, self.select) else None for s in parameters}
        self._bind([s for s in self._known.values() if s is not None])

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, *_: object) -> None:
        if found_inf(optimizer):
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None or not parameter.requires_grad:
                    continue
                if id(parameter) not in self._known:
                    self._look()
                selected = self._known.setdefault(id(parameter), None)
                if selected is not None:
                    self._apply(selected)


class _GroupConstraint(_Constraint):
    """A constraint on each group of weights."""

    def __init__(self, select: Select, groups: Groups) -> None:
        super().__init__(select)
        check_groups(groups)
        if spans_tensors(groups):
            raise ValueError(
                f"{type(self).__name__} works on groups within a tensor, and groups={groups!r} couples "
                "several; use groups='rows'"
            )
        self.groups = groups
        self._layouts: dict[int, Layout] = {}

    def _bind(self, selected: list[Selected]) -> None:
        sets = partition(selected, self.groups)
        self._layouts = {
            id(s.parameter): local_layout(s.parameter, layout) for members in sets for s, layout in members
        }


@final
class MaxNorm(_GroupConstraint):
    r"""Keep the norm of every unit's incoming weights at a limit or below: :math:`\|w_g\|_2 \le c`.

    Args:
        limit: c > 0.
        select: what it applies to, the weights where not given.
        groups: which weights make a group, see :mod:`lightning_reg.groups.forms`.

    Raises:
        ValueError: a limit that is not positive.

    >>> MaxNorm(3.0).limit
    3.0

    References:
        Srivastava et al., *Dropout*, JMLR 15, 2014.
    """

    def __init__(self, limit: float, select: Select = "weights", *, groups: Groups = "rows") -> None:
        super().__init__(select, groups)
        if not 0.0 < limit < float("inf"):
            raise ValueError(f"MaxNorm(limit={limit}) is out of range; give a finite number above 0")
        self.limit = limit

    def _apply(self, selected: Selected) -> None:
        constraints.max_norm_(selected.parameter, self._layouts[id(selected.parameter)], self.limit)


@final
class UnitNorm(_GroupConstraint):
    r"""Keep the norm of every unit's incoming weights at 1; a unit whose weights are all zero stays zero.

    Args:
        select: what it applies to, the weights where not given.
        groups: which weights make a group, see :mod:`lightning_reg.groups.forms`.

    >>> UnitNorm("head.*").select
    'head.*'
    """

    def __init__(self, select: Select = "weights", *, groups: Groups = "rows") -> None:
        super().__init__(select, groups)

    def _apply(self, selected: Selected) -> None:
        constraints.unit_norm_(selected.parameter, self._layouts[id(selected.parameter)])


@final
class Box(_Constraint):
    """Keep every weight in ``[low, high]``.

    Args:
        low: the least a weight may be; ``-inf`` for no such end.
        high: the most; ``inf`` for no such end.
        select: what it applies to, the weights where not given.

    Raises:
        ValueError: NaN, or an empty box.

    >>> Box(-1.0, 1.0).high
    1.0
    """

    _whole = False

    def __init__(self, low: float, high: float, select: Select = "weights") -> None:
        super().__init__(select)
        if not low <= high:
            raise ValueError(f"Box(low={low}, high={high}) is empty; give low <= high")
        self.low, self.high = low, high

    def _bind(self, selected: list[Selected]) -> None:
        pass

    def _apply(self, selected: Selected) -> None:
        constraints.box_(selected.parameter, self.low, self.high)


@final
class NonNegative(_Constraint):
    """Keep every weight at 0 or above.

    Args:
        select: what it applies to, the weights where not given.

    >>> NonNegative().select
    'weights'
    """

    _whole = False

    def __init__(self, select: Select = "weights") -> None:
        super().__init__(select)

    def _bind(self, selected: list[Selected]) -> None:
        pass

    def _apply(self, selected: Selected) -> None:
        constraints.box_(selected.parameter, 0.0, float("inf"))


@final
class NormBudget(_Constraint):
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

    Raises:
        ValueError: a factor or rate that is not positive, or fewer than 0 steps.

    >>> NormBudget(2.0, warmup_steps=500).warmup_steps
    500

    References:
        Franke, Hefenbrock, Koehler and Hutter, *Improving Deep Learning Optimization through Constrained
        Parameter Regularization*, NeurIPS 2024.
    """

    def __init__(
        self, factor: float = 1.0, select: Select = "weights", *, warmup_steps: int = 0, rate: float = 1.0
    ) -> None:
        super().__init__(select)
        if not 0.0 < factor < float("inf") or not 0.0 < rate < float("inf") or warmup_steps < 0:
            raise ValueError(
                f"NormBudget(factor={factor}, warmup_steps={warmup_steps}, rate={rate}) is out of range; "
                "give a factor and a rate above 0, and 0 steps or more"
            )
        self.factor, self.warmup_steps, self.rate = factor, warmup_steps, rate
        self._steps: dict[str, int] = {}
        self._multipliers: dict[str, Tensor] = {}
        self._budgets: dict[str, Tensor] = {}

    @property
    def state_key(self) -> str:
        """Tells instances apart by what they were made of."""
        return self._generate_state_key(
            factor=self.factor, select=_stable(self.select), warmup_steps=self.warmup_steps, rate=self.rate
        )

    def state_dict(self) -> dict[str, Any]:
        """Return steps, multipliers and budgets by parameter name."""
        return {"steps": self._steps, "multipliers": self._multipliers, "budgets": self._budgets}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` returned."""
        self._steps = dict(state_dict["steps"])
        self._multipliers = {name: value.clone() for name, value in state_dict["multipliers"].items()}
        self._budgets = {name: value.clone() for name, value in state_dict["budgets"].items()}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start anew in a new run: Lightning restores a checkpoint after this."""
        if stage == "fit" and trainer.global_step == 0:
            self._steps, self._multipliers, self._budgets = {}, {}, {}

    def multipliers(self) -> dict[str, float]:
        """Return λ by parameter name: which tensors press against their budgets, and how hard."""
        return {name: float(value) for name, value in self._multipliers.items()}

    def _bind(self, selected: list[Selected]) -> None:
        for s in selected:
            if self._steps.setdefault(s.name, 0) >= self.warmup_steps:
                self._set_budget(s)

    @torch.no_grad()
    def _set_budget(self, selected: Selected) -> None:
        if selected.name not in self._budgets:
            energy = over_shards(sum_of_squares, selected.parameter) * 0.5
            self._budgets[selected.name] = self.factor * energy
            self._multipliers[selected.name] = torch.zeros_like(energy)

    def _apply(self, selected: Selected) -> None:
        name, parameter = selected.name, selected.parameter
        if name in self._budgets:
            budget, multiplier = (d[name].to(parameter.device) for d in (self._budgets, self._multipliers))
            self._budgets[name], self._multipliers[name] = budget, multiplier
            constraints.spend_budget_(parameter, multiplier, budget, self.rate)
        self._steps[name] += 1
        if self._steps[name] >= self.warmup_steps:
            self._set_budget(selected)


def _stable(select: Select) -> str:
    """The selection in words that are the same in every process: no addresses."""
    if isinstance(select, (list, tuple, set, frozenset)):
        return str([_stable(form) for form in select])
    if isinstance(select, str):
        return select
    return getattr(select, "__qualname__", type(select).__qualname__)
