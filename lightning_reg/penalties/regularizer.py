"""What every way in takes: a penalty or a constraint, on a selection of parameters."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from lightning_reg.penalties.bound import Bound
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.select.parameters import Select, Selected, matches
from lightning_reg.tensors.safe_globals import allow_in_checkpoints

__all__ = ["Regularizer", "check_strength"]


class Regularizer(ABC):
    """What the engine needs to know of a penalty or a constraint.

    The attributes are facts, which one function reads before training
    (``lightning_reg.apply.check.check_apply``).

    Attributes:
        strength: λ, a number, a schedule, or a callable ``(step, total_steps) -> float``.
        select: what it applies to, see :mod:`lightning_reg.select.parameters`.
        name: its name in logs; the class name in snake case where None.
        takes_complex: whether the formula holds for complex weights, whose modulus it then takes.
        is_constraint: whether it is a set: its proximal operator is a projection, without a strength.
        stops_penalties: whether, at a strength above 0, penalties that make zeros stop beside it.
        by_norms: whether weights count only through the Euclidean norms of their groups, so that it can act
            on the norms that ``weight_norm`` keeps.
        kind: what kind of function it is, by which ``lightning_reg.apply.together`` tells where operators
            are not that of a sum; "" where that is not known.
        turn: where it comes among the proximal operators of one step: the lower, the earlier. 3 for
            quadratics, which shorten the steps of all others, 10 for single weights, 20 for cones, 30 for
            operators that scale groups, 36 for spectra, 50 for bounds on single weights, 60 for bounds on
            norms. In this order the composition is the operator of the sum wherever that is known, and what
            a constraint demands holds at the end.
    """

    strength: ScheduleLike
    select: Select
    name: str | None
    takes_complex: ClassVar[bool] = True
    is_constraint: ClassVar[bool] = False
    stops_penalties: ClassVar[bool] = False
    by_norms: ClassVar[bool] = False
    kind: ClassVar[str] = ""
    turn: ClassVar[int] = 10

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        allow_in_checkpoints(cls)

    @property
    @abstractmethod
    def has_prox(self) -> bool:
        """Whether a proximal operator is known."""

    @property
    def prox_in_metric(self) -> bool:
        """Whether the proximal operator takes a step for each weight, as Adam's metric needs."""
        return self.has_prox

    @property
    def makes_zeros(self) -> bool:
        """Whether the proximal operator sets some weights to exactly zero, by which a share is reached."""
        return self.has_prox

    @property
    def awaits_update(self) -> bool:
        """Whether ``apply="decoupled"`` looks at the update before it decays."""
        return False

    @property
    def has_gradient(self) -> bool:
        """Whether a step along a gradient does what is asked for."""
        return True

    @abstractmethod
    def bind(self, selected: Sequence[Selected]) -> Bound:
        """Return what acts on these parameters of one module.

        Args:
            selected: the parameters, with their names and the modules that own them.

        Raises:
            ValueError: one of them is not of a kind that this is for.
        """

    def choose(self, parameters: Sequence[Selected]) -> list[Selected]:
        """Return which of a module's parameters this applies to; none of them where nothing matches."""
        return [s for s in parameters if matches(s, self.select)]

    @property
    def log_name(self) -> str:
        """``name``, or the class name in snake case: ``elastic_net``."""
        return self.name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    def check_weights(self, selected: Iterable[Selected]) -> None:
        """Refuse weights that the formula is not for.

        Raises:
            ValueError: one is complex, and :attr:`takes_complex` is false.
        """
        for s in selected:
            if s.parameter.is_complex() and not self.takes_complex:
                raise ValueError(
                    f"{type(self).__name__} is for real weights, and {s.name} is complex; leave it out with "
                    "select="
                )

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            if name == "state_key":  # what a Trainer asks of its callbacks first
                raise AttributeError(
                    f"{self!r} is a {'constraint' if self.is_constraint else 'penalty'} and not a callback; "
                    f"write callbacks=[PenaltyCallback({self!r})]"
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def check_strength(owner: str, strength: object) -> None:
    """Refuse a strength that is negative, NaN or infinite, or neither a number nor a schedule.

    Raises:
        TypeError: it is something else, such as a penalty where its strength belongs.
        ValueError: it is out of range.
    """
    if isinstance(strength, (Regularizer, nn.Module)):
        raise TypeError(
            f"{owner}(strength={type(strength).__name__}(...)) is not a strength; give a number, or a "
            "schedule such as Cosine(0.0, 1e-3)"
        )
    if callable(strength):
        return
    if isinstance(strength, bool) or not isinstance(strength, (int, float)):
        raise TypeError(
            f"{owner}(strength={strength!r}) is neither a number nor a schedule nor a callable "
            "(step, total_steps) -> float"
        )
    if not 0.0 <= strength < float("inf"):
        raise ValueError(f"{owner}(strength={strength}) is out of range; give a finite number, 0 or more")
