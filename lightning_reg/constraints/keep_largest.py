"""A share of zeros that is reached by cutting the smallest weights, or groups, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lightning_reg.constraints.base import BoundConstraint, Constraint
from lightning_reg.groups.forms import Groups, check_groups
from lightning_reg.groups.layout import Layout
from lightning_reg.groups.partition import choose, partition, selection
from lightning_reg.penalties.guards import A_CONSTANT, check_no_biases, warn_of_norm_alone
from lightning_reg.prox.group import group_norms, group_weights
from lightning_reg.schedules.base import Position, ScheduleLike, check_position
from lightning_reg.schedules.floors import check_floor, check_share, floor_of
from lightning_reg.schedules.shapes import Polynomial
from lightning_reg.select.parameters import Select, Selected
from lightning_reg.tensors.shards import local, part, whole

__all__ = ["KeepLargest"]


@dataclass(frozen=True)
class KeepLargest(Constraint):
    r"""Gradual magnitude pruning: keep the largest weights, and set a growing share of them to zero.

    The share of zeros at step :math:`t` is :math:`s_t = s\,(1 - (1 - u)^3)` with
    :math:`u = (t - t_0)/(t_1 - t_0)`, from ``begin`` :math:`t_0` to ``until`` :math:`t_1`. After every
    optimizer step the :math:`\mathrm{round}(s_t n)` smallest of :math:`n` are set to zero.

    Until ``until`` they are chosen anew after every step, and a weight that outgrows another comes back.
    Before the first step at or after ``until`` they are chosen for the last time. From then on those are held
    at zero: neither momentum nor weight decay revives them.

    Of equal weights, those that come first are kept: in the order of the modules, and row by row in a tensor.
    Every process makes the same choice. Of sharded tensors each process gathers one at a time, at every step
    of the ramp.

    Args:
        share: s in (0, 1), the share of *zeros* at the end, as in :class:`~lightning_reg.TargetSparsity`: 0.9
            keeps the largest tenth.
        of: cut single ``"weights"`` or whole ``"groups"``, whose size is their root mean square.
        scope: compare the weights (or groups) of each ``"tensor"`` (or layer), or of ``"all"`` that are
            trainable.
        begin: where the share starts to grow, a fraction of the run or an optimizer step.
        until: where it is reached. ``until=1`` cuts once, before the second step.
        groups: which weights make a group, see :mod:`lightning_reg.groups.forms`; ``"units"`` are what
            :func:`~lightning_reg.compact` cuts.
        floor: how many groups of each layer, or weights of each tensor, always stay, a number or a share of
            them; where None, as for :class:`~lightning_reg.TargetSparsity`, but of weights in ``"all"`` none,
            as in torch's ``global_unstructured``. At 0 a whole layer may be cut.
        select: what it applies to, the weights where not given.
        name: its name in checkpoints.

    Raises:
        ValueError: one of these out of its range.

    >>> KeepLargest(0.9, scope="all").strength(25, 100)
    0.7875

    References:
        Zhu and Gupta, *To Prune, or Not to Prune: Exploring the Efficacy of Pruning for Model Compression*,
        2017.
    """

    turn: ClassVar[int] = 95  # after Refit, so that what it holds takes no place

    share: float
    _: KW_ONLY
    of: Literal["weights", "groups"] = "weights"
    scope: Literal["tensor", "all"] = "tensor"
    begin: Position = 0.0
    until: Position = 0.5
    groups: Groups = "rows"
    floor: int | float | None = None
    select: Select = "weights"
    name: str | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        if not 0.0 < self.share < 1.0:
            raise ValueError(
                f"KeepLargest(share={self.share}) is out of range; give the share of zeros, in (0, 1)"
            )
        if self.of not in ("weights", "groups"):
            raise ValueError(f"KeepLargest(of={self.of!r}) is unknown; it is 'weights' or 'groups'")
        if self.scope not in ("tensor", "all"):
            raise ValueError(f"KeepLargest(scope={self.scope!r}) is unknown; it is 'tensor' or 'all'")
        check_floor("KeepLargest", self.floor)
        check_position("KeepLargest", "begin", self.begin)
        check_position("KeepLargest", "until", self.until)
        if type(self.begin) is type(self.until) and self.until <= self.begin:
            raise ValueError(
                f"KeepLargest(begin={self.begin}, until={self.until}) ends before it begins; give an `until` "
                "greater than `begin`"
            )
        check_groups(self.groups)
        if self.of == "groups":
            object.__setattr__(self, "select", selection(self.select, self.groups))

    @property
    def strength(self) -> ScheduleLike:  # type: ignore[override]
        """The share of zeros at each step."""
        return Polynomial(0.0, self.share, self.begin, self.until)

    def choose(self, parameters: Sequence[Selected]) -> list[Selected]:
        """Return what ``select`` takes, or what the groups themselves say."""
        if self.of == "weights":
            return super().choose(parameters)
        return choose(parameters, self.select, self.groups)

    def bind(self, selected: Sequence[Selected]) -> BoundConstraint:
        """Return what cuts these parameters."""
        return _Pruned(self, selected)


class _Pruned(BoundConstraint):
    """The tensors that are compared, and from ``until`` on what is held at zero."""

    constraint: KeepLargest
    _sets: Sequence[Sequence[tuple[Selected, Layout | None]]]

    def __init__(self, constraint: KeepLargest, selected: Sequence[Selected]) -> None:
        super().__init__(constraint)
        self._selected = selected
        if constraint.of == "groups":
            self._sets = partition(selected, constraint.groups)
            check_no_biases("KeepLargest(of='groups')", self._sets)
        else:
            self._sets = [[(s, None)] for s in selected]
        self._floors = self._find_floors(
            [s.parameter.numel() if layout is None else layout.count for (s, layout), *_ in self._sets]
        )
        self._places = {
            id(s.parameter): (i, layout) for i, members in enumerate(self._sets) for s, layout in members
        }
        self._held: dict[int, Tensor] = {}  # by identity of a tensor, which the term keeps alive

    def _find_floors(self, counts: Sequence[int]) -> list[int]:
        """How many of each set always stay."""
        constraint = self.constraint
        whole = constraint.of == "groups" and max(counts) == 1  # whole layers, of which none may go
        if constraint.floor is not None or whole:
            for some in [counts] if constraint.scope == "all" or whole else [[count] for count in counts]:
                check_share(repr(constraint), constraint, some, constraint.of)
            return [floor_of(constraint, count, constraint.of) for count in counts]
        if constraint.of == "weights" and constraint.scope == "all":
            return [0] * len(counts)
        return [max(floor_of(constraint, count, constraint.of), 1) for count in counts]

    def warn(self) -> None:
        """Warn of filters whose norm is not in their group."""
        if self.constraint.of == "groups":
            groups = partition(self._selected, self.constraint.groups)
            warn_of_norm_alone("KeepLargest(of='groups')", groups, A_CONSTANT)

    @torch.no_grad()
    def before_step_(self, weights: Sequence[Tensor], strength: float) -> None:
        """Choose for the last time; what was cut before is smallest, also when a checkpoint was loaded."""
        new = [w for w in weights if id(w) not in self._held]
        if new and strength >= self.constraint.share:
            self._held.update(zip(map(id, new), self._smallest(new, strength), strict=True))

    def prox_(self, weights: Sequence[Tensor], strength: float, steps: Sequence[Any]) -> None:
        """Set to zero what is held, or the smallest of this moment."""
        if strength == 0.0:
            return
        masks = [self._held.get(id(w)) for w in weights]
        new = iter(self._smallest([w for w, m in zip(weights, masks, strict=True) if m is None], strength))
        for weight, mask in zip(weights, masks, strict=True):
            mine = local(weight.detach())
            mine.masked_fill_((next(new) if mask is None else mask).to(mine.device), 0.0)

    def project_(self, weights: Sequence[Tensor]) -> None:
        """Project onto the set of the end of the run."""
        self.prox_(weights, self.constraint.share, ())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Choose anew: the weights have been restored as well."""
        self._held = {}

    def _smallest(self, weights: Sequence[Tensor], share: float) -> list[Tensor]:
        """Return masks of what to cut of each tensor, or of the part of it in this process."""
        wanted = {self._places[id(w)][0] for w in weights}
        if self.constraint.scope == "all" and weights:
            trained = {
                i for i, one in enumerate(self._sets) if any(s.parameter.requires_grad for s, _ in one)
            }
            compared = sorted(wanted | trained)
            sizes, counts = zip(*map(self._sizes, compared), strict=True)
            floors = [self._floors[i] for i in compared]
            kept = [
                s.masked_fill(~_smallest(s, count, 1.0, floor), torch.inf) if floor else s
                for s, count, floor in zip(sizes, counts, floors, strict=True)
            ]
            cut = _smallest(
                torch.cat([s.to(sizes[0].device) for s in kept]), sum(counts), share, max(sum(floors), 1)
            )
            cuts = dict(zip(compared, torch.split(cut, [s.numel() for s in sizes]), strict=True))
        else:
            cuts = {i: _smallest(*self._sizes(i), share, self._floors[i]) for i in sorted(wanted)}
        return [self._mask(w, cuts[self._places[id(w)][0]]) for w in weights]

    def _sizes(self, index: int) -> tuple[Tensor, int]:
        """Return the size of every weight or group of a set of whole tensors, and how many count."""
        moduli = [whole(s.parameter.detach()).abs() for s, _ in self._sets[index]]
        layouts = [layout for _, layout in self._sets[index] if layout is not None]
        if not layouts:
            return moduli[0].flatten(), moduli[0].numel()
        norms = group_norms(moduli, layouts)
        roots = torch.as_tensor(group_weights(layouts, norms)).to(norms).expand_as(norms)
        free = roots == 0  # what is in no group is never cut
        return (norms / roots.masked_fill(free, 1.0)).masked_fill(free, torch.inf), int((~free).sum())

    def _mask(self, weight: Tensor, cut: Tensor) -> Tensor:
        layout = self._places[id(weight)][1]
        if layout is not None:
            view = layout.view(torch.empty(weight.shape, device="meta"))
            cut = layout.spread(cut.to(weight.device), view).expand(view.shape)
        return part(cut.reshape(weight.shape), weight)


def _smallest(sizes: Tensor, among: int, share: float, stay: int) -> Tensor:
    """Return a mask of the smallest; of equal ones the last, and nothing that is not a number."""
    count = min(round(share * among), among - stay)
    if count <= 0:
        return torch.zeros_like(sizes, dtype=torch.bool)
    sizes = sizes.nan_to_num(nan=torch.inf, posinf=torch.inf)
    # topk and cumsum of integers, since kthvalue has no deterministic form on CUDA
    edge = sizes.topk(sizes.numel() - count, sorted=False).values.min()
    above, level = sizes > edge, sizes == edge
    room = sizes.numel() - count - above.sum()
    return ~(above | (level & (level.cumsum(0, dtype=torch.int32) <= room)))
