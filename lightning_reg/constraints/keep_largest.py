"""A share of zeros that is reached by cutting the smallest weights, or groups, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lightning_reg.constraints.base import BoundConstraint, Constraint
from lightning_reg.groups.forms import Groups, check_groups, layout_of
from lightning_reg.groups.layout import Layout
from lightning_reg.groups.partition import spans_tensors
from lightning_reg.schedules.base import Position, ScheduleLike, check_position
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
        scope: compare the weights of each ``"tensor"``, one of which always stays, or of ``"all"`` tensors
            that are trainable, where a whole layer may be cut.
        begin: where the share starts to grow, a fraction of the run or an optimizer step.
        until: where it is reached. ``until=1`` cuts once, before the second step.
        groups: which weights make a group, see :mod:`lightning_reg.groups.forms`.
        select: what it applies to, the weights where not given.
        name: its name in checkpoints.

    Raises:
        ValueError: one of these out of its range, or groups that span several tensors.

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
        check_position("KeepLargest", "begin", self.begin)
        check_position("KeepLargest", "until", self.until)
        if type(self.begin) is type(self.until) and self.until <= self.begin:
            raise ValueError(
                f"KeepLargest(begin={self.begin}, until={self.until}) ends before it begins; give an `until` "
                "greater than `begin`"
            )
        check_groups(self.groups)
        if self.of == "groups" and spans_tensors(self.groups):
            raise ValueError(
                f"KeepLargest works on groups within a tensor, and groups={self.groups!r} couples several; "
                "use groups='rows'"
            )

    @property
    def strength(self) -> ScheduleLike:  # type: ignore[override]
        """The share of zeros at each step."""
        return Polynomial(0.0, self.share, self.begin, self.until)

    def bind(self, selected: Sequence[Selected]) -> BoundConstraint:
        """Return what cuts these parameters."""
        return _Pruned(self, selected)


class _Pruned(BoundConstraint):
    """The tensors that are compared, and from ``until`` on what is held at zero."""

    constraint: KeepLargest

    def __init__(self, constraint: KeepLargest, selected: Sequence[Selected]) -> None:
        super().__init__(constraint)
        self._all: list[Tensor] = [s.parameter for s in selected]
        self._layouts: dict[int, Layout] = {}
        if constraint.of == "groups":
            self._layouts = {id(s.parameter): layout_of(s, constraint.groups) for s in selected}
        self._held: dict[int, Tensor] = {}  # by identity of a tensor, which the term keeps alive

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
        if self.constraint.scope == "tensor" or not weights:
            return [self._mask(w, _smallest(*self._sizes(w), share)) for w in weights]
        wanted = {id(w) for w in weights}
        compared = [w for w in self._all if w.requires_grad or id(w) in wanted]
        sizes, counts = zip(*map(self._sizes, compared), strict=True)
        cut = _smallest(torch.cat([s.to(sizes[0].device) for s in sizes]), sum(counts), share)
        pieces = zip(compared, torch.split(cut, [s.numel() for s in sizes]), strict=True)
        masks = {id(w): self._mask(w, piece) for w, piece in pieces if id(w) in wanted}
        return [masks[id(w)] for w in weights]

    def _sizes(self, weight: Tensor) -> tuple[Tensor, int]:
        """Return the size of every weight or group of the whole tensor, and how many count."""
        modulus = whole(weight.detach()).abs()
        layout = self._layouts.get(id(weight))
        if layout is None:
            return modulus.flatten(), modulus.numel()
        norms = layout.norm(layout.view(modulus))
        members = torch.as_tensor(layout.sizes, device=norms.device).expand_as(norms)
        free = members == 0  # what is in no group is never cut
        return (norms / members.clamp_min(1.0).sqrt()).masked_fill(free, torch.inf), int((~free).sum())

    def _mask(self, weight: Tensor, cut: Tensor) -> Tensor:
        layout = self._layouts.get(id(weight))
        if layout is not None:
            view = layout.view(torch.empty(weight.shape, device="meta"))
            cut = layout.spread(cut, view).expand(view.shape)
        return part(cut.reshape(weight.shape), weight)


def _smallest(sizes: Tensor, among: int, share: float) -> Tensor:
    """Return a mask of the smallest; of equal ones the last, and nothing that is not a number."""
    count = min(round(share * among), among - 1)
    if count <= 0:
        return torch.zeros_like(sizes, dtype=torch.bool)
    sizes = sizes.nan_to_num(nan=torch.inf, posinf=torch.inf)
    # topk and cumsum of integers, since kthvalue has no deterministic form on CUDA
    edge = sizes.topk(sizes.numel() - count, sorted=False).values.min()
    above, level = sizes > edge, sizes == edge
    room = sizes.numel() - count - above.sum()
    return ~(above | (level & (level.cumsum(0, dtype=torch.int32) <= room)))
