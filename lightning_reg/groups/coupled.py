"""Groups that span tensors: a unit's incoming weights, its bias, its norm, what the next layer reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_reg.groups.forms import GroupForm, check_groups, layout_of
from lightning_reg.groups.layout import Layout, Slices
from lightning_reg.select.parameters import Selected

__all__ = ["Coupled", "align"]


@dataclass(frozen=True)
class Coupled:
    """Groups over several tensors: group i takes slice i of each tensor of a set.

    As ``groups=`` of a group penalty, it also says what the penalty applies to, where ``select`` is not
    given. Where a set's columns are a multiple of its other groups (a convolution flattened into a linear
    layer), each group takes as many of them, in order.

    Args:
        sets: for each set of coupled tensors, parameter names and how each one is cut: ``"rows"``,
            ``"columns"``, ``"filters"``, ``"channels"`` or ``"heads"``.

    Raises:
        ValueError: no sets, an empty one, an unknown word, or a name in two sets.

    >>> unit = Coupled([{"0.weight": "rows", "0.bias": "rows", "2.weight": "columns"}])
    >>> unit.names
    ('0.weight', '0.bias', '2.weight')
    """

    sets: Sequence[Mapping[str, GroupForm]]

    def __post_init__(self) -> None:
        if isinstance(self.sets, Mapping) or not all(isinstance(forms, Mapping) for forms in self.sets):
            raise ValueError(
                f"Coupled(sets={self.sets!r}) is no list of sets; give a list of dicts by parameter name"
            )
        if not self.sets or not all(self.sets):
            raise ValueError("Coupled(sets=...) needs a list of sets of parameter names, none of them empty")
        for forms in self.sets:
            for form in forms.values():
                check_groups(form)
        twice = {name for name in self.names if self.names.count(name) > 1}
        if twice:
            raise ValueError(f"Coupled(sets=...) has {min(twice)} in two sets; a weight is in one group")

    @property
    def names(self) -> tuple[str, ...]:
        """Every name, in order."""
        return tuple(name for forms in self.sets for name in forms)

    def resolve(self, selected: Sequence[Selected]) -> list[list[tuple[Selected, Layout]]]:
        """Return each set's tensors with layouts of as many groups.

        Raises:
            ValueError: a name that is not selected, a tensor that is in no set, or counts that do not agree.
        """
        by_name = {alias: s for s in selected for alias in s.aliases}
        missing = [name for name in self.names if name not in by_name]
        if missing:
            raise ValueError(
                f"Coupled(sets=...) names {missing[0]}, which the module lacks or select= leaves out; "
                f"there are {', '.join(s.name for s in selected[:6])}"
            )
        left = [s.name for s in selected if not set(s.aliases) & set(self.names)]
        if left:
            raise ValueError(f"select= takes {left[0]}, which is in no set of Coupled(...); leave it out")
        return [
            align([(by_name[n], layout_of(by_name[n], form)) for n, form in s.items()]) for s in self.sets
        ]


def align(members: list[tuple[Selected, Layout]]) -> list[tuple[Selected, Layout]]:
    """Return layouts of as many groups as the one that has the fewest.

    Raises:
        ValueError: another's number of groups is no multiple of that.
    """
    count = min(layout.count for _, layout in members)
    aligned = []
    for selected, layout in members:
        if layout.count != count:
            if layout.count % count or not isinstance(layout, Slices) or len(layout.keep) != 1:
                counts = ", ".join(f"{s.name} {one.count}" for s, one in members)
                raise ValueError(f"coupled tensors differ in their number of groups: {counts}")
            (dim,) = layout.keep
            shape = (*layout.shape[:dim], count, layout.count // count, *layout.shape[dim + 1 :])
            layout = Slices(shape, (dim,))
        aligned.append((selected, layout))
    return aligned
