"""Which tensors nothing trains: those that neither a loss nor a gradient reaches, and averages of weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from lightning_reg.tensors.shards import is_sharded

__all__ = ["NotReached", "averages_in"]

#: Losses that are looked into: a run may take several in turn, one for each of its optimizers.
_LOSSES = 8


class NotReached:
    """Tensors that nothing trains: copies of a network, teachers, target networks.

    A tensor that gets a gradient later counts from then on.
    """

    def __init__(self) -> None:
        #: whether a loss to come may say something new
        self.asks = True
        self._left = _LOSSES
        self._looked: set[int] = set()
        #: by their identities
        self.ids: dict[int, Any] = {}

    def ask(self, loss: Tensor, parameters: Iterable[nn.Parameter]) -> None:
        """Look which of the ``parameters`` one of the first losses reaches."""
        if not self.asks or loss.grad_fn is None:
            return
        first = self._left == _LOSSES
        self._left -= 1
        trainable = [p for p in dict.fromkeys(parameters) if p.requires_grad]
        reached = None if not trainable or any(map(is_sharded, trainable)) else _leaves(loss)
        if reached is not None:
            for parameter in trainable:
                if id(parameter) in reached:
                    self._reached(parameter)
                elif first:
                    self._leave_out(parameter)
        self.asks = self._left > 0 and bool(self.ids)

    def look(self, parameters: Iterable[nn.Parameter]) -> None:
        """Look which of the ``parameters`` have no gradient where those of a step are complete, each once."""
        for parameter in parameters:
            if id(parameter) not in self._looked and parameter.requires_grad:
                self._looked.add(id(parameter))
                if parameter.grad is None and parameter.is_leaf and not is_sharded(parameter):
                    self._leave_out(parameter)

    def end(self) -> None:
        """Leave no trace."""
        for hook in self.ids.values():
            hook.remove()
        self.ids, self.asks, self._left, self._looked = {}, True, _LOSSES, set()

    def _leave_out(self, parameter: nn.Parameter) -> None:
        if id(parameter) not in self.ids:
            untyped: Any = parameter
            self.ids[id(parameter)] = untyped.register_post_accumulate_grad_hook(self._reached)

    def _reached(self, parameter: Tensor) -> None:
        hook = self.ids.pop(id(parameter), None)
        if hook is not None:
            hook.remove()


def _leaves(loss: Tensor) -> set[int] | None:
    """The identities of the leaves of a loss's graph; None where a node may hide some.

    A function of a user's own may run a backward pass inside, as a re-entrant checkpoint does.
    """
    found: set[int] = set()
    seen: set[Any] = set()
    nodes: list[Any] = [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.add(id(variable))
        elif hasattr(node, "saved_tensors") and "Compiled" not in type(node).__name__:
            return None
        nodes += [following for following, _ in node.next_functions]
    return found


def averages_in(module: nn.Module) -> set[int]:
    """Return the identities of the parameters in averages, such as torch's ``AveragedModel``."""
    inside: set[int] = set()
    for child in module.modules():
        names = [base.__name__.lower() for base in type(child).__mro__]
        if child is not module and any(n == "averagedmodel" or n.startswith("modelema") for n in names):
            inside.update(id(parameter) for parameter in child.parameters())
    return inside
