"""The distance to the weights that training started from."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from lightning_reg.penalties._factors import Factors, factor_of, find_factors
from lightning_reg.penalties.base import Penalty
from lightning_reg.penalties.bound import Bound, added_up
from lightning_reg.penalties.l2 import L2
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.select.parameters import Select, Selected, check_select, matches
from lightning_reg.tensors.grad_mode import without_grad
from lightning_reg.tensors.precision import sum_of_squares, wide
from lightning_reg.tensors.shards import local, over_shards, part, placed_like, whole
from lightning_reg.tensors.steps import StepSize

__all__ = ["L2SP"]


@dataclass(frozen=True)
class L2SP(Penalty):
    r"""Half the squared distance to the starting point: :math:`\tfrac\lambda2\sum_i(w_i - w_i^0)^2`.

    For fine-tuning. The starting point is the weights when training starts (kept in checkpoints, so that a
    resumed run has the same), or those given. Layers that are new have no starting point, and are drawn to 0:
    :math:`\tfrac{\lambda\beta}{2}\sum_i w_i^2`.

    Args:
        strength: λ ≥ 0, in units of loss per squared unit of weight.
        select: what it applies to.
        reference: the starting point by parameter name, a ``state_dict``. Parameters it does not hold, or
            holds in another shape, are new.
        new: which of the selected parameters are new besides, for example ``"head.*"``.
        new_ratio: β, the strength for new parameters in units of λ.
        importance: :math:`F_i`, what the square of each weight's distance is multiplied by, as ``factors`` of
            :class:`~lightning_reg.L1`. With :func:`~lightning_reg.fisher_diagonal` of an earlier task this is
            elastic weight consolidation.
        name: its name in logs.

    Raises:
        ValueError: a negative, NaN or infinite strength or ratio, or a reference that holds none of the
            parameters.

    >>> import torch
    >>> model = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.constant_(model.weight, 2.0)
    >>> reference = {"weight": torch.zeros(1, 2)}
    >>> L2SP(1.0, reference=reference)(model).detach()
    tensor(4.)

    References:
        Li, Grandvalet and Davoine, *Explicit Inductive Bias for Transfer Learning with Convolutional
        Networks*, ICML 2018; Kirkpatrick et al., *Overcoming Catastrophic Forgetting in Neural Networks*,
        PNAS 114(13), 2017, for the importance.
    """

    turn: ClassVar[int] = 4
    makes_zeros = False

    strength: ScheduleLike
    select: Select = "weights"
    _: KW_ONLY
    reference: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)
    new: Select | None = None
    new_ratio: float = 1.0
    importance: Factors | None = field(default=None, repr=False, compare=False)
    name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.new is not None:
            check_select(self.new)
        if not 0.0 <= self.new_ratio < float("inf"):
            raise ValueError(
                f"L2SP(new_ratio={self.new_ratio}) is out of range; give a finite number, 0 or more"
            )

    def value(self, weight: Tensor, strength: float) -> Tensor:
        """Return the distance to 0: a bare tensor has no starting point."""
        return L2(0.0).value(weight, strength)

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        """Return the gradient of :meth:`value`."""
        return L2(0.0).gradient(weight, strength)

    def prox(self, weight: Tensor, strength: float, step: float | Tensor) -> Tensor:
        r"""Return :math:`w/(1 + \eta\lambda)`; bound to a module, it is :math:`w - w^0` that shrinks."""
        return L2(0.0).prox(weight, strength, step)

    def __call__(
        self,
        module: nn.Module | Tensor | Iterable[Tensor],
        step: int | None = None,
        total_steps: int | None = None,
    ) -> Tensor:
        """Return the penalty of ``module``; it needs ``reference``.

        Raises:
            TypeError: tensors are given, whose names in ``reference`` are unknown.
            ValueError: there is no ``reference``, so the starting point is unknown.
        """
        if not isinstance(module, nn.Module):
            raise TypeError(
                "L2SP looks its starting point up by name; give a module, with select= for a part"
            )
        if self.reference is None:
            raise ValueError(
                "L2SP(...)(module) does not know where training started; give L2SP(reference=state_dict), or "
                "use attach or a callback, which look at the weights when training starts"
            )
        return super().__call__(module, step, total_steps)

    def bind(self, selected: Sequence[Selected]) -> Bound:
        """Look up, or copy, the starting point."""
        return _Distances(self, selected)


class _Distances(Bound):
    """L2SP and its starting point; None for what is new."""

    def __init__(self, penalty: L2SP, selected: Sequence[Selected]) -> None:
        self.penalty = penalty
        self._selected = list(selected)
        self._references: dict[int, Tensor | None] = {}
        self._taken: list[Selected] = []
        reference = penalty.reference
        for s in self._selected:
            start: Tensor | None = None
            if penalty.new is not None and matches(s, penalty.new):
                pass
            elif reference is None:
                start = local(s.used().detach()).clone()
                self._taken.append(s)
            else:
                found = next((reference[n] for n in s.names if n in reference), None)
                if found is not None and found.shape == s.parameter.shape:
                    start = _start(found, s.parameter)
            self._references[id(s.parameter)] = start
        self._importance: dict[int, Tensor] = {}
        if penalty.importance is not None:
            found_factors = find_factors("L2SP", penalty.importance, self._selected, "importance")
            for s, given in zip(self._selected, found_factors, strict=True):
                like = local(s.parameter.detach()).reshape(-1)
                factor = factor_of("L2SP", s.name, given, s.parameter.shape, like, "importance")
                self._importance[id(s.parameter)] = part(factor.expand(s.parameter.shape), s.parameter)
        if reference is not None and all(start is None for start in self._references.values()):
            raise ValueError(
                f"L2SP(reference=...) holds none of {', '.join(s.name for s in self._selected[:4])}; its "
                f"names are {', '.join(list(reference)[:4])}"
            )

    def standing_in(self, weights: Sequence[Tensor], others: Sequence[Tensor]) -> Bound:
        """Return this with the starting points of ``weights`` for ``others``."""
        twin = copy.copy(self)
        twin._references = {
            id(other): self._references[id(weight)] for weight, other in zip(weights, others, strict=True)
        }
        twin._importance = {
            id(other): self._importance[id(weight)]
            for weight, other in zip(weights, others, strict=True)
            if id(weight) in self._importance
        }
        return twin

    def total(self, weights: Sequence[Tensor], strength: float, like: Tensor) -> Tensor:
        """Sum over the tensors."""

        def values() -> Iterator[Tensor]:
            for weight, start, some in self._parts(weights, strength) if strength else ():
                if isinstance(some, Tensor):
                    yield over_shards(partial(_weighted_distance, start=start, factor=some), weight) * 0.5
                elif some != 0.0:
                    yield over_shards(partial(_squared_distance, start=start), weight) * (0.5 * some)

        return added_up(values(), like)

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        """Return λ times the difference, of this process's part where the tensor is sharded."""
        ((weight, start, some),) = self._parts([weight], strength)
        weight = local(weight)
        return (weight if start is None else weight - start) * some

    @without_grad
    def add_gradient_(
        self, targets: Sequence[Tensor], weights: Sequence[Tensor], strength: float, alpha: float = 1.0
    ) -> None:
        """``targets += alpha · λ · (weights − start)``."""
        for target, (weight, start, some) in zip(targets, self._parts(weights, strength), strict=True):
            weight = local(weight)
            difference = weight if start is None else weight - start
            if isinstance(some, Tensor):
                difference, some = difference * some, 1.0
            local(target).add_(difference, alpha=alpha * some)

    @without_grad
    def prox_(self, weights: Sequence[Tensor], strength: float, steps: Sequence[StepSize]) -> None:
        """``w ← w₀ + (w − w₀)/(1 + ηλ)``."""
        for (weight, start, some), step in zip(self._parts(weights, strength), steps, strict=True):
            weight = local(weight)
            if start is not None:
                weight.sub_(start)
            if isinstance(some, Tensor):
                weight.div_(1.0 + step.local().dense() * some)
            else:
                L2(0.0).prox_([weight], some, [step.local()])
            if start is not None:
                weight.add_(start)

    def ridge(self, weight: Tensor, strength: float) -> float | Tensor:
        """Return λ of the tensor, or of each weight."""
        _, _, some = next(self._parts([weight], strength))
        return placed_like(some, weight) if isinstance(some, Tensor) else some

    def state_dict(self) -> dict[str, Tensor]:
        """Return the starting point, where it was not given; whole, so that any strategy can take it up."""
        found = {s.name: (s.parameter, self._references[id(s.parameter)]) for s in self._taken}
        return {
            name: whole(placed_like(start, parameter))
            for name, (parameter, start) in found.items()
            if start is not None
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up the starting point of the run that goes on."""
        for s in self._taken:
            if s.name in state:
                self._references[id(s.parameter)] = _start(state[s.name], s.parameter).clone()

    def _parts(
        self, weights: Sequence[Tensor], strength: float
    ) -> Iterator[tuple[Tensor, Tensor | None, float | Tensor]]:
        """Each tensor, this process's part of its start, and its strength."""
        for weight in weights:
            start = self._references[id(weight)]
            some = strength if start is not None else strength * self.penalty.new_ratio
            factor = self._importance.get(id(weight))
            yield weight, start, some if factor is None else factor * some


def _start(reference: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a starting point."""
    mine = local(parameter.detach())
    return part(whole(reference.detach()), parameter).to(mine)


def _weighted_distance(weight: Tensor, start: Tensor | None, factor: Tensor) -> Tensor:
    difference = wide(weight if start is None else weight - start)
    return (factor * difference.square()).sum()


def _squared_distance(weight: Tensor, start: Tensor | None) -> Tensor:
    return sum_of_squares(weight if start is None else weight - start)
