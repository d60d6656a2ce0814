"""A strength of its own for each tensor, where a penalty is one function of the whole tensor."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_reg.penalties._factors import factor_of, find_factors
from lightning_reg.penalties.bound import Bound, added_up
from lightning_reg.penalties.reweighted import Reweighted
from lightning_reg.select.parameters import Selected
from lightning_reg.tensors.shards import local
from lightning_reg.tensors.steps import StepSize

if TYPE_CHECKING:
    from lightning_reg.penalties.base import Penalty

__all__ = ["each_tensor"]


def each_tensor(bound: Bound, penalty: Penalty, selected: Sequence[Selected]) -> Bound:
    """Return what a penalty is bound to, or that with the strengths of its ``factors``.

    Raises:
        TypeError: factors of no known form.
        ValueError: factors that do not fit, or that follow the sizes of weights.
    """
    given = getattr(penalty, "factors", None)
    return bound if given is None else _EachTensor(bound, penalty, given, selected)


class _EachTensor(Bound):
    """What acts on each tensor by itself, with a strength for it."""

    def __init__(self, bound: Bound, penalty: Penalty, given: Any, selected: Sequence[Selected]) -> None:
        who = type(penalty).__name__
        if isinstance(given, Reweighted):
            raise ValueError(
                f"{who}(factors={given!r}) has no weights or groups of its own to take factors from; use it "
                "with L1 or GroupLasso"
            )
        self._bound = bound
        self._selected = list(selected)  # keeps the tensors alive, so that an id is never used again
        self._factors: dict[int, Any] = {}
        for s, some in zip(selected, find_factors(who, given, selected), strict=True):
            like = local(s.parameter.detach()).reshape(-1)
            factor = factor_of(who, s.name, some, penalty.factor_shape(s.parameter), like)
            self._factors[id(s.parameter)] = factor if factor.numel() > 1 else float(factor)

    @property
    def holds_zeros(self) -> bool:
        """No; what dual averages is a sum over weights or groups."""
        return False

    def standing_in(self, weights: Sequence[Tensor], others: Sequence[Tensor]) -> Bound:
        """Return this with the factors of ``weights`` for ``others``."""
        twin = copy.copy(self)
        twin._bound = self._bound.standing_in(weights, others)
        twin._factors = {id(o): self._factors[id(w)] for w, o in zip(weights, others, strict=True)}
        return twin

    def at_rest(self) -> Bound:
        """Return what gives the same gradient and is not moved on by it."""
        twin = copy.copy(self)
        twin._bound = self._bound.at_rest()
        return twin

    def total(self, weights: Sequence[Tensor], strength: float, like: Tensor) -> Tensor:
        """Return the sum over all tensors, each times its factor."""
        some = weights if strength else ()
        return added_up((self._bound.total([w], self._strength(w, strength), like) for w in some), like)

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        """Return the gradient of one tensor."""
        return self._bound.gradient(weight, self._strength(weight, strength))

    def add_gradient_(
        self, targets: Sequence[Tensor], weights: Sequence[Tensor], strength: float, alpha: float = 1.0
    ) -> None:
        """``targets += alpha · gradient(weights)``."""
        for target, weight in zip(targets, weights, strict=True):
            self._bound.add_gradient_([target], [weight], self._strength(weight, strength), alpha)

    def prox_(self, weights: Sequence[Tensor], strength: float, steps: Sequence[StepSize]) -> None:
        """``w ← prox(w)``, with a strength for each tensor."""
        for weight, step in zip(weights, steps, strict=True):
            self._bound.prox_([weight], self._strength(weight, strength), [step])

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the penalty itself remembers."""
        return self._bound.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take it up."""
        self._bound.load_state_dict(state)

    def _strength(self, weight: Tensor, strength: float) -> Any:
        return self._factors[id(weight)] * strength
