"""The one way from ``groups=`` to groups: for penalties, constraints, metrics and what looks at a run."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from torch import nn

from lightning_reg.groups.coupled import Coupled
from lightning_reg.groups.forms import Groups, layout_of
from lightning_reg.groups.layout import Layout
from lightning_reg.groups.units import Units
from lightning_reg.select.parameters import Select, Selected, matches

__all__ = ["choose", "look_ahead", "partition", "selection", "spans_tensors"]


def selection(select: Select, groups: Groups) -> Select:
    """Return ``select``, or what ``groups`` itself says it applies to where ``select`` is not given."""
    return list(groups.names) if isinstance(groups, Coupled) and select == "weights" else select


def spans_tensors(groups: Groups) -> bool:
    """Whether a group may have weights in several tensors."""
    return isinstance(groups, Coupled) or _units(groups) is not None


def choose(parameters: Sequence[Selected], select: Select, groups: Groups) -> list[Selected]:
    """Return the parameters of a module that ``select``, or ``groups`` where it is not given, is about."""
    found = _units(groups)
    if found is not None and parameters:
        return found.choose(parameters, select)
    return [s for s in parameters if matches(s, selection(select, groups))]


def look_ahead(groups: object, module: nn.Module) -> None:
    """Find units while a module is whole that processes are about to share out; others are told later."""
    units = _units(groups)
    if units is not None:
        with contextlib.suppress(ValueError, ImportError):
            units.find(module)


def partition(selected: Sequence[Selected], groups: Groups) -> list[list[tuple[Selected, Layout]]]:
    """Return sets of tensors, each with its layout; tensors of one set share their groups.

    Of rows and filters, a bias that is selected beside its weight belongs to the same groups.

    Raises:
        ValueError: a parameter has no such groups; the sentence names it and a form that it has.

    >>> from torch import nn
    >>> from lightning_reg.select.parameters import select_parameters
    >>> weights = select_parameters(nn.LSTM(3, 5), "weights")
    >>> [(s.name, layout.count) for ((s, layout),) in partition(weights, "rows")]
    [('weight_ih_l0', 5), ('weight_hh_l0', 5)]
    """
    found = groups if isinstance(groups, Coupled) else _units(groups)
    if found is not None:
        return found.resolve(selected) if selected else []
    sets = [[(s, layout_of(s, groups))] for s in selected]
    return _with_biases(sets) if groups in ("rows", "filters") else sets


def _with_biases(sets: list[list[tuple[Selected, Layout]]]) -> list[list[tuple[Selected, Layout]]]:
    """Put each bias into the set of the weight of its own layer: alone it would be a group for each entry."""
    weights = {(id(s.module), s.attribute): members for members in sets for s, _ in members[:1]}
    joined = []
    for members in sets:
        ((s, layout),) = members[:1]
        own = weights.get((id(s.module), s.attribute.replace("bias", "weight")))
        if own is not None and own is not members and own[0][1].count == layout.count:
            own.append((s, layout))
        else:
            joined.append(members)
    return joined


def _units(groups: object) -> Units | None:
    if isinstance(groups, str) and groups == "units":
        return Units()
    return groups if isinstance(groups, Units) else None
