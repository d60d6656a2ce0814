"""A method of one module, replaced until nobody needs that any more."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

from torch import nn

__all__ = ["Replaced"]

User = TypeVar("User")


class Replaced(Generic[User]):
    """What stands in the place of a module's method, for all who need it, who leave in any order.

    A copy or pickle of the module holds the original method.
    """

    name: ClassVar[str]

    def __init__(self, module: nn.Module) -> None:
        self.shadowed = self.name in vars(module)
        self.__wrapped__: Callable[..., Any] = getattr(module, self.name)
        self.users: list[User] = []

    @classmethod
    def add(cls, module: nn.Module, user: User) -> None:
        """Replace the method of ``module`` for one user more."""
        there = vars(module).get(cls.name)
        if not isinstance(there, cls):
            there = cls(module)
            object.__setattr__(module, cls.name, there)
        there.users.append(user)

    @classmethod
    def remove(cls, module: nn.Module, user: User) -> None:
        """Undo :meth:`add`; the last one leaves the module as it was."""
        attribute: Any = vars(module).get(cls.name)
        there = attribute
        while there is not None and not isinstance(there, cls):  # wrapped by someone else since
            there = getattr(there, "__wrapped__", None)
        if there is None or user not in there.users:
            return
        there.users.remove(user)
        if attribute is there and not there.users:
            if there.shadowed:
                object.__setattr__(module, cls.name, there.__wrapped__)
            else:
                object.__delattr__(module, cls.name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.__wrapped__, memo)

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self.__wrapped__,)


def _itself(method: Callable[..., Any]) -> Callable[..., Any]:
    return method
