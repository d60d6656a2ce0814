"""What is attached to an optimizer goes with its copies, or says that it does not.

A copy of one of torch's optimizers has no hooks.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer

__all__ = ["Copies"]


class _Attached(Protocol):
    @property
    def model(self) -> nn.Module:
        """What it was attached to."""

    def again(self, model: nn.Module, optimizer: Optimizer) -> object:
        """Return the same attached to copies of model and optimizer."""


class Copies:
    """Attaches the same to copies of an optimizer that are made together with its model.

    It lies in the optimizer's ``__dict__``, where ``copy.deepcopy`` and ``pickle`` look first; the last one
    that leaves takes it away.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.attached: list[_Attached] = []

    @classmethod
    def add(cls, optimizer: Optimizer, attached: _Attached) -> None:
        """Let ``attached`` go with copies of ``optimizer``."""
        found = getattr(vars(optimizer).get("__deepcopy__"), "__self__", None)
        if not isinstance(found, cls):
            found = cls(optimizer)
            found._put()
        found.attached.append(attached)

    @classmethod
    def discard(cls, optimizer: Optimizer, attached: _Attached) -> None:
        """Let it go with them no more."""
        found = getattr(vars(optimizer).get("__deepcopy__"), "__self__", None)
        if isinstance(found, cls) and attached in found.attached:
            found.attached.remove(attached)
            if not found.attached:
                found._take()

    def _put(self) -> None:
        vars(self.optimizer).update(__deepcopy__=self._copy, __reduce_ex__=self._reduce)

    def _take(self) -> None:
        for name in ("__deepcopy__", "__reduce_ex__"):
            vars(self.optimizer).pop(name, None)

    def _copy(self, memo: dict[int, Any]) -> Optimizer:
        self._take()
        try:
            twin = copy.deepcopy(self.optimizer, memo)
        finally:
            self._put()
        for attached in self.attached:
            model = memo.get(id(attached.model))
            if model is None:
                self._warn(
                    "copy", "copy both at once, copy.deepcopy((model, optimizer)), or attach to the copy"
                )
                break
            memo[id(attached)] = attached.again(model, twin)
        return twin

    def _reduce(self, protocol: Any) -> Any:
        self._warn("pickle", "attach again to what is loaded")
        return type(self.optimizer).__reduce_ex__(self.optimizer, protocol)

    def _warn(self, kind: str, instead: str) -> None:
        warnings.warn(
            f"a {kind} of {type(self.optimizer).__name__} alone has nothing attached to it, as "
            f"{self.attached[0]!r} is to the original; {instead}",
            stacklevel=4,
        )
