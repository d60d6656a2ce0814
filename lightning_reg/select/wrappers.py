"""Modules under the names that the user gave them, without the prefixes that wrappers add."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

__all__ = ["Place", "places", "unwrapped", "visible_modules"]

#: The attributes by which wrappers hold what they wrap.
_HOLDS = frozenset(
    {
        "_orig_mod",  # torch.compile
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_forward_module",  # Fabric
        "_original_module",
    }
)

Around: TypeAlias = "tuple[nn.Module, ...]"


@dataclass(frozen=True, eq=False)
class Place:
    """A module at one of its places in a tree of modules.

    Attributes:
        name: dotted name from the root, without what wrappers add; ``""`` for the root.
        module: the module.
        around: the modules from the root to ``module``, itself included.
        outer: the outermost wrapper around ``module``, which is what the modules outside call; often itself.
        wraps: whether it is a wrapper, and the user's module of this name is inside it.
    """

    name: str
    module: nn.Module
    around: tuple[nn.Module, ...]
    outer: nn.Module
    wraps: bool


def places(root: nn.Module) -> Iterator[Place]:
    """Yield every module at each of its places, outer ones first, wrappers as well.

    >>> import torch
    >>> [place.name for place in places(nn.Sequential(torch.compile(nn.Linear(2, 2), backend="eager")))]
    ['', '0', '0']
    """

    def visit(
        module: nn.Module, name: str, around: tuple[nn.Module, ...], outer: nn.Module
    ) -> Iterator[Place]:
        around = (*around, module)
        hidden = _wrapped(module)
        yield Place(name, module, around, outer, bool(hidden))
        for attribute, child in module._modules.items():
            if child is None or any(child is one for one in around):
                continue
            if attribute in hidden:
                yield from visit(child, name, around, outer)
            else:
                yield from visit(child, f"{name}.{attribute}" if name else attribute, around, child)

    yield from visit(root, "", (), root)


def visible_modules(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module under each of the user's names for it, wrappers left out.

    >>> import torch
    >>> [name for name, _ in visible_modules(nn.Sequential(torch.compile(nn.Linear(2, 2), backend="eager")))]
    ['', '0']
    """
    seen: set[tuple[str, int]] = set()  # Fabric holds the user's module twice
    for place in places(root):
        key = (place.name, id(place.module))
        if not place.wraps and key not in seen:
            seen.add(key)
            yield place.name, place.module


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the user's module inside its wrappers.

    >>> import torch
    >>> type(unwrapped(torch.compile(nn.Linear(2, 2), backend="eager"))).__name__
    'Linear'
    """
    hidden = _wrapped(module)
    return unwrapped(module._modules[hidden[0]]) if hidden else module  # type: ignore[arg-type]


def _wrapped(module: nn.Module) -> list[str]:
    """The attributes by which a wrapper holds what it wraps; none for other modules."""
    parallel = isinstance(module, (DataParallel, DistributedDataParallel))
    return [
        name
        for name, child in module._modules.items()
        if child is not None and (name in _HOLDS or (parallel and name == "module"))
    ]
