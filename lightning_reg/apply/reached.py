"""Which tensors that no optimizer in sight holds are trained all the same: those that the loss reaches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from lightning_reg.tensors.shards import is_sharded

__all__ = ["NotReached"]


class NotReached:
    """Tensors that nothing trains: copies of a network, teachers, target networks.

    The first loss is asked, once. A tensor that it does not reach and that gets a gradient later counts from
    then on.
    """

    def __init__(self) -> None:
        self.asked = False
        #: by their identities
        self.ids: dict[int, Any] = {}

    def ask(self, loss: Tensor, parameters: Iterable[nn.Parameter]) -> None:
        """Look which of the ``parameters``, which no optimizer in sight holds, the first ``loss`` reaches."""
        if self.asked or loss.grad_fn is None:
            return
        self.asked = True
        trainable = [p for p in dict.fromkeys(parameters) if p.requires_grad]
        reached = None if not trainable or any(map(is_sharded, trainable)) else _leaves(loss)
        if reached is None:
            return
        for parameter in trainable:
            if id(parameter) not in reached:
                untyped: Any = parameter
                self.ids[id(parameter)] = untyped.register_post_accumulate_grad_hook(self._reached)

    def end(self) -> None:
        """Leave no trace."""
        for hook in self.ids.values():
            hook.remove()
        self.ids, self.asked = {}, False

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
