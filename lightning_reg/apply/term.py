"""A penalty or constraint bound to one module: its tensors, and its strength as the run goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import is_
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_reg.apply.optimizers import note_steps
from lightning_reg.apply.reached import NotReached, averages_in
from lightning_reg.penalties.bound import Bound
from lightning_reg.penalties.in_use import InUse
from lightning_reg.penalties.regularizer import Regularizer
from lightning_reg.schedules.base import evaluate
from lightning_reg.schedules.target_sparsity import Controller, TargetSparsity
from lightning_reg.select.derived import derived_tensors
from lightning_reg.select.parameters import Selected, named_parameters, select_parameters
from lightning_reg.tensors.shards import check_whole, is_sharded, shard

__all__ = ["Apply", "DualAveraging", "Metric", "Term", "found_inf"]

#: How a penalty acts on a step; each word is explained by :class:`~lightning_reg.callbacks.PenaltyCallback`.
Apply: TypeAlias = Literal["gradient", "loss", "decoupled", "proximal"]
Metric: TypeAlias = Literal["optimizer", "euclidean"]
#: True for dual averaging as usual (k = 4), False for the plain proximal step, or k itself, from 1 on.
DualAveraging: TypeAlias = bool | float

_NONE: Mapping[Any, bool] = MappingProxyType({})


class Term:
    """A penalty or a constraint bound to a module.

    The selection is resolved once, and again only when an optimizer turns out to hold a parameter that
    was not there. Whether a tensor is trainable and has a gradient is asked at every step.

    Args:
        penalty: which function or set, on what.
        module: the module whose parameters are named.
        total_steps: length of the run in optimizer steps, where the strength needs it.
        label: a name that no other term at work on the module has; the penalty's where None.
        in_place: whether it acts on what is stored, so that it acts on the norms that ``weight_norm`` keeps.

    Raises:
        ValueError: the selection matches nothing, or a weight that the penalty is not for.
    """

    #: Of a proximal step: what :mod:`lightning_reg.apply.dual_averaging` is told.
    dual_averaging: DualAveraging = True

    def __init__(
        self,
        penalty: Regularizer,
        module: nn.Module,
        total_steps: int | None = None,
        label: str | None = None,
        in_place: bool = False,
    ) -> None:
        self.penalty = penalty
        self._in_place = in_place and penalty.by_norms and getattr(penalty, "factors", None) is None
        self.label = penalty.log_name if label is None else label
        self.module = module
        self.total_steps = total_steps
        self.selected: list[Selected] = []
        self.in_use: InUse
        self.bound: Bound  # what acts on the tensors that are in use as they are stored
        self.sharded = False  # whether processes share out any of them
        self.untrained = NotReached()
        # by identity; the values keep the tensors alive, so an id is never used again
        self._known: dict[int, nn.Parameter] = {}
        self._chosen: dict[int, Selected] = {}
        # by identity of a parameter group: its tensors as last seen, and the chosen ones of them
        self._groups: dict[int, tuple[list[nn.Parameter], list[nn.Parameter]]] = {}
        # by identity of an optimizer: what its step under way acts on
        self._noted: dict[int, list[tuple[dict[str, Any], list[nn.Parameter]]]] = {}
        self._rows: dict[int, Tensor] = {}
        self._held: list[tuple[nn.Module, str]] = []  # the layers that hold what is selected as it is used
        self._resolve()
        target = penalty.strength
        self._controller: Controller | None = None
        if isinstance(target, TargetSparsity):
            self._controller = Controller(target, self._sizes, self.sizes_by_layer)
        self._number = None if callable(target) else evaluate(target, 0, total_steps)

    def strength(self, step: int) -> float:
        """Return λ at ``step``, checked."""
        if self.bound.follows_steps:
            self.bound.at_step_(step)
        if self._number is not None:
            return self._number
        if self._controller is not None:
            return self._controller.strength(step, self.total_steps)
        return evaluate(self.penalty.strength, step, self.total_steps)

    def observe(self) -> None:
        """Let a controller see the weights, after the proximal operator."""
        if self._controller is not None:
            self._controller.observe()

    def state_dict(self) -> dict[str, Tensor]:
        """Return what must survive a checkpoint, what the penalty has learned; mostly nothing."""
        state = self.bound.state_dict()
        return {**state, **self._controller.state_dict()} if self._controller is not None else state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state_dict` returned."""
        self.bound.load_state_dict(state)
        if self._controller is not None:
            self._controller.load_state_dict(state)

    def value(
        self,
        strength: float,
        optimizers: Iterable[Optimizer] | None = None,
        toggled: Mapping[nn.Parameter, bool] | None = None,
    ) -> Tensor:
        """Return the penalty over the trainable tensors, or those of them that ``optimizers`` hold.

        ``toggled`` says which are trainable where ``requires_grad`` is off for the moment. Averages of
        weights, and copies that nothing trains, are left out.
        """
        self._look_for_maps()
        if optimizers is None:
            tensors = [s.parameter for s in self.selected]
        else:
            groups = (group for optimizer in optimizers for group in optimizer.param_groups)
            tensors = list(dict.fromkeys(p for group in groups for p in self._members(group)))
        trainable = self._trained(tensors, toggled or {})
        check_whole(trainable, "a term of the loss")
        used, bound = self.in_use.tensors(trainable) if self.in_use.computed else (trainable, self.bound)
        return bound.total(used, strength, like=next(self.module.parameters()))

    def look(self, others: Iterable[Optimizer]) -> None:
        """Look which tensors have no gradient at a first step, but for those that ``others`` step."""
        theirs = {id(p) for other in others for p in self.trainable(other)}
        self.untrained.look(s.parameter for s in self.selected if id(s.parameter) not in theirs)

    def _trained(self, tensors: Iterable[Any], toggled: Mapping[Any, bool] = _NONE) -> list[nn.Parameter]:
        """Those that are trainable, and no copies that nothing trains."""
        copies = (self._averages, self.untrained.ids)
        told = [t for t in tensors if toggled.get(t, t.requires_grad)]
        return [t for t in told if not any(id(t) in ids for ids in copies)]

    def is_stale(self) -> bool:
        """Whether the module has gained, lost or exchanged parameters since it was looked at."""
        return [id(parameter) for parameter in self.module.parameters()] != self._seen

    def stepped(self, optimizer: Optimizer) -> list[tuple[dict[str, Any], list[nn.Parameter]]]:
        """Return each parameter group of ``optimizer`` with the tensors to act on in this step.

        As torch's optimizers do, it leaves out tensors whose gradient is None; frozen ones too. Between
        :meth:`note` and :meth:`forget` it returns what was noted.
        """
        noted = self._noted.get(id(optimizer))
        if noted is not None:
            return noted
        self._look_for_maps()
        found = []
        for group in optimizer.param_groups:
            parameters = [p for p in self._members(group) if p.grad is not None and p.requires_grad]
            if parameters:
                found.append((group, parameters))
        return found

    def note(self, optimizer: Optimizer) -> None:
        """Note what ``optimizer`` is about to step: some free the gradients in their step."""
        self._noted.pop(id(optimizer), None)
        noted = self._noted[id(optimizer)] = self.stepped(optimizer)
        self._rows.clear()
        for group, parameters in noted:
            note_steps(optimizer, group, parameters)
            for parameter in parameters:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    indices: Any = parameter.grad._indices()
                    self._rows[id(parameter)] = indices[0].unique()

    @property
    def has_rows(self) -> bool:
        """Whether any gradient of the step under way is sparse."""
        return bool(self._rows)

    def rows_of(self, parameter: Tensor) -> Tensor | None:
        """Return the rows that the gradient of the step under way names, where it is sparse."""
        return self._rows.get(id(parameter))

    def forget(self, optimizer: Optimizer) -> None:
        """The step is over."""
        self._noted.pop(id(optimizer), None)

    def place(self, parameter: Tensor) -> str:
        """Return a name for what this term does to ``parameter``, or to the part of it in this process."""
        return f"{self.label} {self.name_of(parameter)} {shard(parameter)}"

    def name_of(self, parameter: Tensor) -> str:
        """Return the name of a tensor of the selection."""
        return self._chosen[id(parameter)].name

    def trained(self) -> list[nn.Parameter]:
        """Return the trainable tensors of the selection, without averages and copies that nothing trains."""
        return self._trained(s.parameter for s in self.selected)

    def mask_(self, parameters: Iterable[Tensor]) -> None:
        """Set to zero what a pruning mask takes out, which would count in the norm of a group."""
        for parameter in parameters if self.in_use.computed else ():
            computed = self.in_use.of(parameter)
            if computed is not None and not self.in_use.through_map(parameter):
                parameter.copy_(computed.used())

    def trainable(self, optimizer: Optimizer) -> list[nn.Parameter]:
        """Return the trainable tensors of the selection that ``optimizer`` holds."""
        members = (p for group in optimizer.param_groups for p in self._members(group))
        return [p for p in dict.fromkeys(members) if p.requires_grad]

    def groups(self, optimizer: Optimizer) -> list[dict[str, Any]]:
        """Return the groups of ``optimizer`` that hold tensors of the selection, or lazy ones that may be."""
        return [g for g in optimizer.param_groups if self._members(g) or any(map(is_lazy, g["params"]))]

    def _members(self, group: dict[str, Any]) -> list[nn.Parameter]:
        """The chosen tensors of a parameter group; found anew only where the group has changed."""
        parameters = group["params"]
        seen, members = self._groups.get(id(group), ([], []))
        if len(seen) == len(parameters) and all(map(is_, seen, parameters)):
            return members
        lazy = any(map(is_lazy, parameters))
        for parameter in parameters:
            if id(parameter) not in self._known and not is_lazy(parameter):
                self._resolve()
                self._known.setdefault(id(parameter), parameter)  # not of this module, if still unknown
        members = [p for p in parameters if id(p) in self._chosen]
        if not lazy:
            self._groups[id(group)] = (list(parameters), members)
        return members

    def sizes_by_layer(self) -> list[tuple[str, Tensor]]:
        """Return what a controller steers by, for each layer: norms of groups, or moduli of weights."""
        trainable = self.trained()
        used, bound = self.in_use.tensors(trainable)
        target = self.penalty.strength
        grouped = getattr(bound, "sizes_by_layer", None)
        if grouped is None or (isinstance(target, TargetSparsity) and target.of == "weights"):
            return [(self.name_of(p), Bound.sizes(bound, [w])) for p, w in zip(trainable, used, strict=True)]
        return list(grouped(used))

    def _sizes(self) -> Tensor:
        """The sizes that the penalty's controller steers by."""
        used, bound = self.in_use.tensors(self.trained())
        target = self.penalty.strength
        if isinstance(target, TargetSparsity) and target.of == "weights":
            return Bound.sizes(bound, used)
        return bound.pressed_sizes(used)

    def _look_for_maps(self) -> None:
        """Look whether a layer that held a weight computes it by now, as one that has been pruned does."""
        for module, name in self._held:
            if name not in module._parameters and any(d.attribute == name for d in derived_tensors(module)):
                self._resolve()
                return

    def _resolve(self) -> None:
        self._groups.clear()
        first = not self._known
        parameters = named_parameters(self.module)
        self._averages = averages_in(self.module)
        self._seen = [id(parameter) for parameter in self.module.parameters()]
        self.selected = self.penalty.choose(parameters)
        if self._in_place:
            self.selected = [s.as_norms() for s in self.selected]
        if not self.selected and first:
            select_parameters(self.module, self.penalty.select)  # raises, as nothing matches
        self.penalty.check_weights(self.selected)
        # a lazy tensor takes its shape at the first forward, and is looked at again then
        self._known.update((id(s.parameter), s.parameter) for s in parameters if not is_lazy(s.parameter))
        self._chosen.update((id(s.parameter), s) for s in self.selected if not is_lazy(s.parameter))
        state = {} if first else self.bound.state_dict()
        # tensors that have left the module and stay in an optimizer are bound as well
        self.in_use = InUse(self.penalty, list(self._chosen.values()))
        self.bound = self.in_use.bound
        self._held = [(s.module, s.attribute) for s in self.selected if s.derived is None and not s.norms_of]
        self.sharded = any(is_sharded(s.parameter) for s in self._chosen.values())
        if state:
            self.bound.load_state_dict(state)


def found_inf(optimizer: Optimizer) -> bool:
    """Whether a GradScaler has told an optimizer that unscales by itself to leave this step out."""
    flag = getattr(optimizer, "found_inf", None)
    return isinstance(flag, torch.Tensor) and bool(flag.item())
