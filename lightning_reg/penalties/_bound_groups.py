"""What acts on groups of one module's weights: a group penalty with the layouts of its tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_reg.groups.layout import Layout, Slices
from lightning_reg.groups.partition import partition
from lightning_reg.groups.spanning import Spanning, local_layout, spanning_layout
from lightning_reg.penalties._factors import Factors, Rounds, factor_of_groups, find_factors
from lightning_reg.penalties.bound import Bound, Held, added_up
from lightning_reg.penalties.guards import Share, check_steered, warn_of_norm_alone
from lightning_reg.prox.dual_averaging import hold_groups_
from lightning_reg.prox.group import group_norms, group_weights
from lightning_reg.schedules.floors import check_share
from lightning_reg.schedules.target_sparsity import TargetSparsity
from lightning_reg.select.parameters import Selected
from lightning_reg.tensors.grad_mode import without_grad
from lightning_reg.tensors.shards import local, part, split_dims, sum_over_shards, whole
from lightning_reg.tensors.steps import StepSize

if TYPE_CHECKING:
    from lightning_reg.penalties._grouped import GroupedPenalty

__all__ = ["BoundGroups"]


class BoundGroups(Bound):
    """A group penalty with the layouts of one module's tensors."""

    holds_zeros = True

    def __init__(self, penalty: GroupedPenalty, selected: Sequence[Selected]) -> None:
        self.penalty = penalty
        # by identity; Selected keeps the tensors alive, so that an id is never used again
        self._selected = list(selected)
        sets = partition(self._selected, penalty.groups)
        target = penalty.strength
        self._share: Share | None = None
        if isinstance(target, TargetSparsity) and target.of != "weights":
            check_steered(type(penalty).__name__, target, sets)
            self._share = Share(target, [members[0][1].count for members in sets])
        self._names = {i: members[0][0].name for i, members in enumerate(sets)}
        self._members = {
            id(s.parameter): _Member.of(s.parameter, layout, len(members) > 1)
            for members in sets
            for s, layout in members
        }
        self._set_of = {id(s.parameter): i for i, members in enumerate(sets) for s, _ in members}
        self._factors: dict[int, Tensor] = {}
        given = getattr(penalty, "factors", None)
        self._rounds = Rounds(given, type(penalty).__name__, self._selected)
        self.follows_steps = self._rounds.rule is not None
        if given is not None:
            self._find_factors(given, sets)
        self.couples = any(len(members) > 1 for members in sets)

    def _find_factors(self, given: Factors, sets: Sequence[Sequence[tuple[Selected, Layout]]]) -> None:
        who = type(self.penalty).__name__
        firsts = [members[0] for members in sets]
        found = find_factors(who, given, [s for s, _ in firsts])
        for i, ((s, layout), factor) in enumerate(zip(firsts, found, strict=True)):
            if any(split_dims(other.parameter) for other, _ in sets[i]):
                raise ValueError(
                    f"{who}(factors=...) needs {s.name} whole; leave them out under this strategy"
                )
            like = s.parameter.detach().reshape(-1)
            self._factors[i] = factor_of_groups(who, s.name, factor, layout, like)
        if self._share is not None and self._rounds.rule is None:
            counts = [layout.count for _, layout in firsts]
            free = [int((self._factors[i] == 0).sum()) for i in range(len(sets))]
            check_share(f"{who}({self._share.target!r})", self._share.target, counts, "groups", free)

    def levels(self, weight: Tensor) -> Sequence[Layout]:
        """Return the groups of one tensor, of each kind."""
        member = self._members.get(id(weight))
        return () if member is None else self.penalty.levels_of(weight, member.all)

    def standing_in(self, weights: Sequence[Tensor], others: Sequence[Tensor]) -> Bound:
        """Return this with the layouts of ``weights`` for ``others``."""
        twin = copy.copy(self)
        pairs = [(id(w), id(o)) for w, o in zip(weights, others, strict=True) if id(w) in self._set_of]
        twin._members = {other: self._members[weight] for weight, other in pairs}
        twin._set_of = {other: self._set_of[weight] for weight, other in pairs}
        return twin

    def of_rows(self, weight: Tensor, rows: Tensor) -> Bound | None:
        """Return this with the layout of some rows, where each is one group or several."""
        layout = self._members[id(weight)].here
        if self.couples or self._share is not None or self._factors or not isinstance(layout, Slices):
            return None
        if layout.shape != tuple(weight.shape) or 0 not in layout.keep:
            return None
        twin = copy.copy(self)
        some = replace(layout, shape=tuple(rows.shape))
        twin._members = {id(rows): _Member(some, some, some, False)}
        twin._set_of = {id(rows): self._set_of[id(weight)]}
        return twin

    def total(self, weights: Sequence[Tensor], strength: float, like: Tensor) -> Tensor:
        """Sum over the blocks, outside autocast."""

        def values() -> Iterator[Tensor]:
            for block, members in self._blocks(weights) if weights and strength else ():
                tensors, layouts, _ = self._open([weights[i] for i in block], members)
                value = self.penalty.joint_value(tensors, layouts, self._strength(block, weights, strength))
                yield sum_over_shards(value, weights[block[0]]) if members[0].apart else value

        return added_up(values(), like)

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        """Return the gradient of one tensor whose groups no other shares."""
        if self.couples:
            raise ValueError(
                f"{type(self.penalty).__name__} on coupled groups needs dense gradients; use sparse=False "
                "in the embedding"
            )
        tensors, layouts, _ = self._open([weight], [self._members[id(weight)]])
        return self.penalty.joint_gradient(tensors, layouts, self._strength([0], [weight], strength))[0]

    @without_grad
    def add_gradient_(
        self, targets: Sequence[Tensor], weights: Sequence[Tensor], strength: float, alpha: float = 1.0
    ) -> None:
        """``targets += alpha · gradient(weights)``, a block at a time."""
        for block, members in self._blocks(weights):
            tensors, layouts, gathered = self._open([weights[i] for i in block], members)
            some = self._strength(block, weights, strength)
            gradients = self.penalty.joint_gradient(tensors, layouts, some)
            for i, gradient in zip(block, gradients, strict=True):
                mine = part(gradient, weights[i]) if gathered else gradient
                local(targets[i]).add_(mine, alpha=alpha)

    @without_grad
    def prox_(self, weights: Sequence[Tensor], strength: float, steps: Sequence[StepSize]) -> None:
        """``w ← prox(w)``, a block at a time."""
        for block, members in self._blocks(weights):
            tensors, layouts, gathered = self._open([weights[i] for i in block], members)
            sizes = [steps[i].whole() if gathered else steps[i].local() for i in block]
            index = self._set_of[id(weights[block[0]])]
            if self._share is not None:
                self._share.note(index, tensors)
            self.penalty.joint_prox_(tensors, layouts, self._strength(block, weights, strength), sizes)
            if self._share is not None:
                self._share.keep_(index, tensors, [m.all if gathered else m.spanning for m in members])
            if gathered:
                for i, tensor in zip(block, tensors, strict=True):
                    local(weights[i]).copy_(part(tensor, weights[i]))

    def warn(self) -> None:
        """Warn of filters whose norm is not in their group; a steered strength has refused them."""
        if self._share is None:
            warn_of_norm_alone(type(self.penalty).__name__, partition(self._selected, self.penalty.groups))

    @without_grad
    def hold_zeros_(self, held: Held, strength: float) -> Sequence[int]:
        """Set to zero what the averages keep there, a block at a time."""
        weights, averages, steps, shares = held
        for block, members in self._blocks(weights):
            tensors, layouts, gathered = self._open([weights[i] for i in block], members)
            kept, _, _ = self._open([averages[i] for i in block], members)
            sizes = [steps[i].whole() if gathered else steps[i].local() for i in block]
            some = [shares[i] for i in block]
            if self._share is not None:
                self._share.note(self._set_of[id(weights[block[0]])], tensors)
            factor = self._factors.get(self._set_of[id(weights[block[0]])])
            weighted = factor is not None or isinstance(group_weights(layouts, tensors[0]), Tensor)
            prox: Any = self.penalty.norm_prox_
            if factor is not None:
                prox = partial(prox, factor=factor)
            longest = self.penalty.longest_step
            hold_groups_(
                tensors, layouts, kept, sizes, some, strength, prox, together=weighted, longest=longest
            )
            if gathered:
                for i, tensor, average in zip(block, tensors, kept, strict=True):
                    local(weights[i]).copy_(part(tensor, weights[i]))
                    local(averages[i]).copy_(part(average, averages[i]))
        return range(len(weights))

    @without_grad
    def sizes(self, weights: Sequence[Tensor]) -> Tensor:
        """Return the norm of every group, by the root of its size; weights in no group do not count."""
        return _joined(sizes for _, sizes in self.sizes_by_layer(weights))

    def pressed_sizes(self, weights: Sequence[Tensor]) -> Tensor:
        """Return the same; 0 for groups that live since the share is reached, infinite for a floor's."""
        return _joined(sizes for _, sizes in self._sizes(weights, pressed=True))

    def sizes_by_layer(self, weights: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield them for each set of tensors that share their groups, named after its first tensor."""
        return self._sizes(weights)

    @torch.no_grad()
    def _sizes(self, weights: Sequence[Tensor], pressed: bool = False) -> Iterator[tuple[str, Tensor]]:
        for block, members in self._blocks(weights):
            layouts = [member.spanning for member in members]
            norms = group_norms([local(weights[i]) for i in block], layouts)
            roots = torch.as_tensor(group_weights(layouts, norms)).to(norms).expand_as(norms)
            index = self._set_of[id(weights[block[0]])]
            if pressed and self._share is not None:
                norms = self._share.pressed(index, norms)
            yield self._names[index], (norms[roots > 0] / roots[roots > 0]).cpu()

    def state_dict(self) -> dict[str, Tensor]:
        """Return how many groups are dead, which a later step cannot see, and factors that follow weights."""
        factors = {self._names[i]: factor for i, factor in self._factors.items()}
        dead = {} if self._share is None else {"dead groups": torch.tensor(self._share.dead)}
        return {**self._rounds.state(factors), **dead}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take it up."""
        if self._share is not None and len(state.get("dead groups", ())) == len(self._share.dead):
            self._share.dead = state["dead groups"].tolist()
        for i, name in self._names.items():
            if (found := self._rounds.taken_up(state, name)) is not None:
                self._factors[i] = found.to(self._factors[i])

    @without_grad
    def at_step_(self, step: int) -> None:
        """Take the factors from the groups' sizes, where it is time."""
        if not self._rounds.come(step):
            return
        weights = [s.parameter for s in self._selected]
        for block, members in self._blocks(weights):
            layouts = [member.here for member in members]
            norms = group_norms([weights[i] for i in block], layouts)
            roots = torch.as_tensor(group_weights(layouts, norms)).to(norms)
            self._factors[self._set_of[id(weights[block[0]])]] = self._rounds.factor(
                norms / roots.clamp(min=1.0)
            )

    def _strength(self, block: Sequence[int], weights: Sequence[Tensor], strength: float) -> Any:
        """λ of a block, or of each of its groups."""
        factor = self._factors.get(self._set_of[id(weights[block[0]])])
        return strength if factor is None else factor * strength

    def _blocks(self, weights: Sequence[Tensor]) -> Iterator[tuple[list[int], list[_Member]]]:
        """Positions in ``weights`` of tensors that share their groups, with their layouts."""
        blocks: dict[int, list[int]] = {}
        for i, weight in enumerate(weights):
            if id(weight) in self._set_of:  # else a tensor that a coupled set has exchanged for another
                blocks.setdefault(self._set_of[id(weight)], []).append(i)
        for block in blocks.values():
            yield block, [self._members[id(weights[i])] for i in block]

    def _open(
        self, weights: Sequence[Tensor], members: Sequence[_Member]
    ) -> tuple[list[Tensor], list[Layout], bool]:
        """The tensors that the formula works on, their layouts, and whether they were gathered."""
        if self.penalty.gathers and any(isinstance(member.here, Spanning) for member in members):
            return [whole(weight) for weight in weights], [member.all for member in members], True
        return [local(weight) for weight in weights], [member.here for member in members], False


def _joined(sizes: Iterable[Tensor]) -> Tensor:
    found = list(sizes)
    return torch.cat(found) if found else torch.zeros(0)


@dataclass(frozen=True)
class _Member:
    """A tensor's groups.

    Attributes:
        all: of the whole tensor.
        here: of the part that this process holds; its own groups only, where none spans processes.
        spanning: of that part, and with the numbers of all groups.
        apart: whether each process holds groups of its own, so that values add up.
    """

    all: Layout
    here: Layout
    spanning: Layout
    apart: bool

    @classmethod
    def of(cls, tensor: Tensor, layout: Layout, coupled: bool) -> _Member:
        """Look at one tensor; coupled ones share the numbers of all groups."""
        spanning = spanning_layout(tensor, layout)
        here = spanning if coupled else local_layout(tensor, layout)
        return cls(layout, here, spanning, bool(split_dims(tensor)) and not isinstance(here, Spanning))
