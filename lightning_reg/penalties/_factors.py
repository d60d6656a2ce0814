"""A strength of its own for each weight or group: ``factors=`` of a penalty."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_reg.groups.layout import Layout
from lightning_reg.penalties.bound import Bound, Held, added_up
from lightning_reg.penalties.reweighted import Reweighted
from lightning_reg.prox.dual_averaging import hold_zeros_
from lightning_reg.select.parameters import Selected, answer_of
from lightning_reg.tensors.grad_mode import without_grad
from lightning_reg.tensors.precision import real_dtype, wide
from lightning_reg.tensors.shards import local, over_shards, part, placed_like, split_dims
from lightning_reg.tensors.steps import StepSize

if TYPE_CHECKING:
    from lightning_reg.penalties.elementwise import ElementwisePenalty

__all__ = ["Factors", "WithFactors", "factor_of", "factor_of_groups", "find_factors"]

#: What λ is multiplied by: a tensor for the one that is selected, numbers or tensors by parameter name (1
#: where there is none), or a callable ``(name, parameter, module) -> number or tensor``.
Factors: TypeAlias = (
    "Tensor | Mapping[str, float | Tensor] | Callable[[str, nn.Parameter, nn.Module], float | Tensor]"
)


def find_factors(
    who: str, factors: Factors, selected: Sequence[Selected], given: str = "factors"
) -> list[float | Tensor]:
    """Return what is given for each parameter.

    Raises:
        TypeError: none of the forms.
        ValueError: a name that is not selected, or one tensor for several parameters.
    """
    if isinstance(factors, Tensor):
        if len(selected) != 1:
            raise ValueError(
                f"{who}({given}=tensor) is for one parameter, and {len(selected)} are selected; give a "
                "dict of tensors by parameter name"
            )
        return [factors]
    if isinstance(factors, Mapping):
        known = [alias for s in selected for alias in s.aliases]
        for name in factors:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1) or known[:3]
                raise ValueError(
                    f"{who}({given}=...) names {name}, which is not selected; there is {near[0]}"
                )
        return [next((factors[a] for a in s.aliases if a in factors), 1.0) for s in selected]
    if callable(factors):
        return [answer_of(factors, s) for s in selected]
    raise TypeError(
        f"{who}({given}={factors!r}) is neither a tensor nor a dict of them by name nor a callable "
        "(name, parameter, module) -> tensor"
    )


def factor_of(
    who: str, name: str, factor: float | Tensor, shape: Sequence[int], like: Tensor, given: str = "factors"
) -> Tensor:
    """Return a factor in float32 or wider, checked, in a shape that broadcasts to ``shape``.

    Raises:
        TypeError: neither a number nor a tensor.
        ValueError: another shape, or a number that is negative or not finite.
    """
    asked = f"{who}({given}=...)"
    try:
        found = torch.as_tensor(factor, dtype=real_dtype(wide(like[:0]).dtype), device=like.device).detach()
    except (TypeError, ValueError) as error:
        raise TypeError(f"{asked} gives {factor!r} for {name}; give a number or a tensor") from error
    fits = found.dim() <= len(shape) and all(
        a in (1, b) for a, b in zip(reversed(found.shape), reversed(shape), strict=False)
    )
    if found.dim() == 1 < len(shape) and found.numel() > 1:  # of a square nobody could tell rows from columns
        fits = fits and shape[0] != shape[-1]
    if not fits:
        needs = tuple(shape) or "one number"
        raise ValueError(f"{asked} is of shape {tuple(found.shape)} for {name}, which needs {needs}")
    if not bool(((found >= 0) & found.isfinite()).all()):
        raise ValueError(f"{asked} of {name} are not all finite and 0 or more; a factor scales λ")
    return found


def factor_of_groups(who: str, name: str, factor: float | Tensor, layout: Layout, like: Tensor) -> Tensor:
    """Return a factor for each group of a layout; 1 for the weights in none.

    Raises:
        TypeError: neither a number nor a tensor.
        ValueError: not as many as there are groups, or a number that is negative or not finite.
    """
    sizes = layout.sizes
    free = int(isinstance(sizes, Tensor) and sizes.numel() > 0 and float(sizes[-1]) == 0.0)
    found = factor_of(who, name, factor, (layout.count - free,), like).expand(layout.count - free)
    return torch.cat([found, found.new_ones(free)]) if free else found


class Rounds:
    """How often factors have been taken from the weights, where they are."""

    def __init__(self, given: object, who: str, selected: Sequence[Selected]) -> None:
        self.rule = given if isinstance(given, Reweighted) else None
        self._done = 0
        for s in selected if self.rule is not None else ():
            if split_dims(s.parameter):
                raise ValueError(
                    f"{who}(factors={given!r}) needs {s.name} whole; leave it out under this strategy"
                )

    def come(self, step: int) -> bool:
        """Whether it is time to take them anew; asked once."""
        before, self._done = self._done, max(self._done, self.rule.passed(step) if self.rule else 0)
        return self._done > before

    def factor(self, sizes: Tensor) -> Tensor:
        """Return the factors of weights or groups of these sizes."""
        assert self.rule is not None
        return self.rule.factor(sizes)

    def state(self, factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what must survive a checkpoint: nothing, before the first time."""
        if not self._done:
            return {}
        kept = {f"{name} factors": factor.clone() for name, factor in factors.items()}
        return {**kept, "rounds": torch.tensor(self._done)}

    def taken_up(self, state: Mapping[str, Tensor], name: str) -> Tensor | None:
        """Return the factors of one tensor in a state."""
        if "rounds" in state:
            self._done = int(state["rounds"])
        return state.get(f"{name} factors")


class WithFactors(Bound):
    """A penalty of single weights with a strength of its own for each."""

    def __init__(self, penalty: ElementwisePenalty, factors: Factors, selected: Sequence[Selected]) -> None:
        self.penalty = penalty
        self._selected = list(selected)  # keeps the tensors alive, so that an id is never used again
        who = type(penalty).__name__
        self._rounds = Rounds(factors, who, selected)
        self.follows_steps = self._rounds.rule is not None
        self._factors: dict[int, Tensor] = {}
        for s, given in zip(selected, find_factors(who, factors, selected), strict=True):
            like = local(s.parameter.detach())
            factor = factor_of(who, s.name, given, s.parameter.shape, like.reshape(-1))
            if factor.numel() > 1:
                factor = part(factor.expand(s.parameter.shape), s.parameter)
            self._factors[id(s.parameter)] = factor

    @without_grad
    def at_step_(self, step: int) -> None:
        """Take the factors from the weights, where it is time."""
        if self._rounds.come(step):
            for s in self._selected:
                self._factors[id(s.parameter)] = self._rounds.factor(wide(s.parameter.abs()))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the factors that weights have given."""
        return self._rounds.state({s.name: self._factors[id(s.parameter)] for s in self._selected})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take them up."""
        for s in self._selected:
            if (found := self._rounds.taken_up(state, s.name)) is not None:
                self._factors[id(s.parameter)] = found.to(self._factors[id(s.parameter)])

    def standing_in(self, weights: Sequence[Tensor], others: Sequence[Tensor]) -> Bound:
        """Return this with the factors of ``weights`` for ``others``."""
        twin = copy.copy(self)
        pairs = zip(weights, others, strict=True)
        twin._factors = {id(other): self._factors[id(weight)] for weight, other in pairs}
        return twin

    def free(self, weight: Tensor) -> int:
        """Return how many weights have a factor of 0."""
        factor = self._factors.get(id(weight))
        if factor is None or self._rounds.rule is not None:
            return 0
        return int((factor == 0).expand(local(weight).shape).sum())

    def total(self, weights: Sequence[Tensor], strength: float, like: Tensor) -> Tensor:
        """Return the sum over all weights, each times its factor."""

        def value(weight: Tensor) -> Tensor:
            return over_shards(partial(self._sum, self._strength(weight, strength)), weight)

        return added_up(map(value, weights if strength else ()), like)

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        """Return the gradient of one tensor, of this process's part of it."""
        return self.penalty.gradient(local(weight), self._strength(weight, strength)).to(weight.dtype)

    @without_grad
    def add_gradient_(
        self, targets: Sequence[Tensor], weights: Sequence[Tensor], strength: float, alpha: float = 1.0
    ) -> None:
        """``targets += alpha · gradient(weights)``."""
        for target, weight in zip(targets, weights, strict=True):
            local(target).add_(self.gradient(weight, strength), alpha=alpha)

    @without_grad
    def prox_(self, weights: Sequence[Tensor], strength: float, steps: Sequence[StepSize]) -> None:
        """``w ← prox(w)``, with a strength for each weight."""
        for weight, step in zip(weights, steps, strict=True):
            mine, eta = local(weight), step.local().dense()
            mine.copy_(self.penalty.prox(wide(mine), self._strength(weight, strength), eta))

    def ridge(self, weight: Tensor, strength: float) -> float | Tensor:
        """Return the penalty's, with a strength for each weight."""
        ridge = self.penalty.ridge(weight, 1.0)
        return placed_like(self._strength(weight, strength) * ridge, weight) if ridge else 0.0

    @property
    def holds_zeros(self) -> bool:
        """Whether the penalty does."""
        return self.penalty.holds_zeros

    @without_grad
    def hold_zeros_(self, held: Held, strength: float) -> Sequence[int]:
        """Set to zero what the averages keep there."""
        for weight, average, step, share in zip(*held, strict=True):
            threshold = self.penalty.threshold(self._strength(weight, strength), step.local().dense())
            full = torch.as_tensor(threshold, device=weight.device).expand(local(weight).shape).contiguous()
            hold_zeros_(local(weight), local(average), full, share)
        return range(len(held.weights))

    def _sum(self, strength: Any, mine: Tensor) -> Tensor:
        return self.penalty.each(wide(mine), strength).sum()

    def _strength(self, weight: Tensor, strength: float) -> Any:
        return self._factors[id(weight)] * strength
