"""A penalty bound to the tensors that layers use, which are not always the parameters they store."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_reg.penalties.bound import Bound
from lightning_reg.penalties.regularizer import Regularizer
from lightning_reg.select.parameters import Selected

__all__ = ["InUse"]


class InUse:
    """What acts on a selection, and the way from its parameters to the tensors in use.

    Args:
        penalty: which function or set.
        selected: the parameters, see :meth:`Selected.used <lightning_reg.select.parameters.Selected.used>`.

    Raises:
        ValueError: one of them is not of a kind that the penalty is for.
    """

    def __init__(self, penalty: Regularizer, selected: Sequence[Selected]) -> None:
        #: by identity of their first parameter, those in use that are not the parameter itself
        self.computed = {id(s.parameter): s for s in selected if s.derived is not None}
        # what the binding knows a tensor by: itself, also where it is masked; else a copy of the one in use
        known = [s if s.derived is None or s.derived.masked else s.as_used() for s in selected]
        self._keys = {id(s.parameter): k.parameter for s, k in zip(selected, known, strict=True)}
        self.bound: Bound = penalty.bind(known)

    def of(self, parameter: Tensor) -> Selected | None:
        """Return the computed weight whose first parameter this is; None where the layer uses it as it is."""
        return self.computed.get(id(parameter))

    def through_map(self, parameter: Tensor) -> bool:
        """Whether the layer computes its weight from this parameter by more than a mask."""
        computed = self.of(parameter)
        return computed is not None and computed.derived is not None and not computed.derived.masked

    def tensors(self, parameters: Sequence[nn.Parameter]) -> tuple[list[Tensor], Bound]:
        """Return the tensors in use, with the graph to the parameters, and what acts on them."""
        if not self.computed:
            return list(parameters), self.bound
        computed = [self.of(p) for p in parameters]
        used = [p if s is None else s.used() for p, s in zip(parameters, computed, strict=True)]
        return used, self.standing_in(parameters, used)

    def standing_in(self, parameters: Sequence[nn.Parameter], used: Sequence[Tensor]) -> Bound:
        """Return what acts on each of ``used`` as on what the parameter in its place stands for."""
        return self.bound.standing_in([self._keys.get(id(p), p) for p in parameters], used)
