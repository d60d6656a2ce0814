"""Which parameters a set of selections reaches, and why it leaves the others alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_reg.select.parameters import Select, Selected, matches, named_parameters, why_not_selected

__all__ = ["Covered", "NamedSelect", "coverage"]


@dataclass(frozen=True)
class NamedSelect:
    """The selection of something that acts on parameters.

    Attributes:
        name: as a report calls it, ``"l1 (proximal)"``.
        select: what it applies to.
    """

    name: str
    select: Select


@dataclass(frozen=True)
class Covered:
    """One parameter tensor, and what acts on it.

    Attributes:
        name: the parameter's name.
        entries: how many weights it has, 0 where a lazy one has no shape yet.
        by: the names of what acts on it.
        why: where nothing does, the reason.
    """

    name: str
    entries: int
    by: tuple[str, ...]
    why: str


def coverage(
    module: nn.Module, acting: Sequence[NamedSelect], optimizers: Iterable[Optimizer] | None = None
) -> list[Covered]:
    """Return every parameter of ``module`` with what acts on it, or why nothing does.

    Args:
        module: any module.
        acting: what acts.
        optimizers: those that step; a parameter that none of them holds is left alone. None: all are held.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    >>> for row in coverage(net, [NamedSelect("l1", "weights")]):
    ...     print(row.name, row.by or row.why)
    0.weight ('l1',)
    0.bias bias
    1.weight normalization
    1.bias normalization
    """
    held = None
    if optimizers is not None:
        held = {
            id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]
        }
    rows = []
    for selected in named_parameters(module):
        by = tuple(one.name for one in acting if matches(selected, one.select))
        why = _why_not(selected, acting, bool(by), held)
        entries = 0 if is_lazy(selected.parameter) else selected.parameter.numel()
        rows.append(Covered(selected.name, entries, () if why else by, why))
    return rows


def _why_not(selected: Selected, acting: Sequence[NamedSelect], chosen: bool, held: set[int] | None) -> str:
    if chosen:
        if not selected.parameter.requires_grad:
            return "frozen"
        return "in no optimizer" if held is not None and id(selected.parameter) not in held else ""
    takes_weights = any("weights" in _listed(one.select) for one in acting)
    return (takes_weights and why_not_selected(selected)) or "not selected"


def _listed(select: Select) -> Sequence[object]:
    return select if isinstance(select, (list, tuple)) else (select,)
