"""What runs inside ``torch.compile``, as far as a module tells."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator

from torch import nn

__all__ = ["compiled_modules", "graphs_so_far", "read_by_parent"]


def compiled_modules(root: nn.Module) -> frozenset[int]:
    """The identities of the modules that run inside ``torch.compile``.

    Compiled modules and what is in them; all, where a module holds a compiled function, which may call any.
    """
    inside: set[int] = set()
    for module in root.modules():
        wrapped = dict(module._modules.items()).get("_orig_mod")  # a ScriptModule's have no get
        if wrapped is not None:
            inside.update(id(m) for m in wrapped.modules())
        if module.__dict__.get("_compiled_call_impl") is not None:
            inside.update(id(m) for m in module.modules())
        if any(_is_compiled(value) for value in module.__dict__.values()):
            inside.update(id(m) for m in root.modules())
    if getattr(root, "_compiler_ctx", None) is not None:
        inside.update(id(m) for m in root.modules())
    return frozenset(inside)


def _is_compiled(value: object) -> bool:
    return callable(value) and "_torchdynamo_orig_callable" in getattr(value, "__dict__", ())


def read_by_parent(root: nn.Module, module: nn.Module, attribute: str) -> bool:
    """Whether a module around ``module`` reads the attribute, as fused attention reads its dropout's rate."""
    return any(
        re.search(rf"\b{re.escape(name)}\.{re.escape(attribute)}\b", _source(type(parent))) is not None
        for parent, name in _parents(root, module)
    )


def _parents(root: nn.Module, module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for parent in root.modules():
        yield from ((parent, name) for name, child in parent._modules.items() if child is module)


_sources: dict[type, str] = {}


def _source(cls: type) -> str:
    if cls not in _sources:
        try:
            _sources[cls] = inspect.getsource(cls)
        except (OSError, TypeError):
            _sources[cls] = ""
    return _sources[cls]


def graphs_so_far() -> int:
    """How many graphs ``torch.compile`` has made in this process."""
    utils = sys.modules.get("torch._dynamo.utils")
    return 0 if utils is None else int(utils.counters["stats"]["unique_graphs"])
