"""The base of every callback here: a ``Callback`` of both of Lightning's namespaces.

``lightning.pytorch`` and ``pytorch_lightning`` are two sets of classes. A Trainer before 2.6.1, and any
LightningCLI, takes only callbacks of its own; a class that inherits from both is at home in each. The other
namespace is imported by nobody but its users, before or after this.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from lightning.pytorch import Callback

__all__ = ["BothCallback", "shown"]

_OTHER = "pytorch_lightning"


class BothCallback(Callback):
    """A callback for Trainers of both namespaces."""


class _OtherNamespace(MetaPathFinder):
    """Waits for the import of the other namespace, which takes as long as all of this library's."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find it as everybody would, and inherit from its callback when it has been imported."""
        if name != _OTHER:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _inherit(module)

            loader.exec_module = exec_module
        return spec


def _inherit(module: Any) -> None:
    BothCallback.__bases__ = (Callback, module.Callback)


if _OTHER in sys.modules:
    _inherit(sys.modules[_OTHER])
else:
    sys.meta_path.insert(0, _OtherNamespace())


def shown(callback: object) -> str:
    """Return what a callback says of itself, or its class where that would be an address in memory."""
    silent = type(callback).__repr__ is object.__repr__
    return f"{type(callback).__name__}(...)" if silent else repr(callback)
