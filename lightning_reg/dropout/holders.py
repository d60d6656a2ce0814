"""What modules hold besides parameters and children, and what their code reads: names for a report."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from lightning_reg.dropout.sites import holds_more, names_drop, slots_of
from lightning_reg.select.wrappers import visible_modules

__all__ = ["Readers", "name_of_hidden", "perhaps", "tensors_named_drop"]

_DEPTH = 4
_MOST = 64
_LIBRARIES = ("torch.", "lightning.", "pytorch_lightning.", "torchmetrics.", "builtins")
#: Methods that build or describe: what they read is not what a forward reads.
_BUILDING = ("__init__", "__repr__", "__str__", "extra_repr", "setup", "__setstate__", "__getstate__")
_BUILDERS = ("build", "make", "reset", "init", "_init", "_build", "_make", "configure", "get_config", "from_")


def perhaps(module: nn.Module, rate: float | None) -> list[str]:
    """Name what ``module`` holds that equals a rate, or one minus it; otherwise what its name says.

    >>> net = nn.Linear(2, 2)
    >>> net.settings = {"p": (0.5, 0.3)}
    >>> perhaps(net, 0.7)
    ['settings.p.1']
    """
    numbers = [(path, value) for path, value in _held(module) if _number(value) is not None]
    equal = [path for path, value in numbers if rate and _near(_number(value), rate)]
    if not equal:
        equal = [path for path, value in _held(module) if _says_rate(path) and not callable(value)]
    return list(dict.fromkeys(equal))[:3]


def name_of_hidden(root: nn.Module, module: nn.Module) -> str | None:
    """Name a module that is no child: in a plain list, on an object, in a closure.

    >>> net = nn.Linear(2, 2)
    >>> net.later = [nn.Dropout(0.1)]
    >>> name_of_hidden(net, net.later[0])
    'later.0'
    """
    for path, holder in visible_modules(root):
        for name, value in _held(holder):
            if value is module:
                return f"{path}.{name}" if path else name
    return None


def tensors_named_drop(root: nn.Module) -> Iterator[tuple[Tensor, str]]:
    """Yield the tensors of a few numbers that are named as rates are, or held in what is.

    >>> import torch
    >>> net = nn.Linear(2, 2)
    >>> net.settings = {"drop_rate": torch.tensor(0.5)}
    >>> [name for _, name in tensors_named_drop(net)]
    ['settings.drop_rate']
    """
    for path, module in visible_modules(root):
        for name, value in _held(module):
            if isinstance(value, Tensor) and names_drop(name) and 0 < value.numel() <= _MOST:
                yield value, f"{path}.{name}" if path else name


class Readers:
    """Which names the methods of a module's classes read, those that build it left out.

    >>> class Net(nn.Module):
    ...     def forward(self, x):
    ...         return nn.functional.dropout(x, self.rate, self.training)
    >>> readers = Readers(Net())
    >>> readers.read(Net, "rate"), readers.read(Net, "other")
    (True, False)
    """

    def __init__(self, root: nn.Module) -> None:
        self._classes: set[Any] = {type(module) for module in root.modules()}
        self._functions = [
            value
            for module in root.modules()
            for value in module.__dict__.values()
            if isinstance(value, types.FunctionType)
        ]

    def read(self, cls: type, name: str) -> bool:
        """Whether code of ``cls``, or a function that a module holds, reads this attribute."""
        return name in _reads(cls)[0] or any(name in _of_code(f.__code__)[0] for f in self._functions)

    def read_apart(self, name: str) -> bool:
        """Whether any code reads this name from something else than its ``self``."""
        apart = (_reads(cls)[1] for cls in self._classes)
        return any(name in names for names in (*apart, *(_of_code(f.__code__)[1] for f in self._functions)))


@functools.cache
def _reads(cls: Any) -> tuple[frozenset[str], frozenset[str]]:
    """The attributes that a class's methods read, and those read from something else than ``self``."""
    names: set[str] = set()
    apart: set[str] = set()
    for base in cls.__mro__:
        if f"{base.__module__}.".startswith(_LIBRARIES):
            continue
        building = _building(vars(base))
        for name, value in vars(base).items():
            if name in building or name.startswith(_BUILDERS):
                continue
            for code in _codes(value):
                all_names, from_others = _of_code(code)
                names |= all_names
                apart |= from_others
    return frozenset(names), frozenset(apart)


def _building(methods: Mapping[str, Any]) -> set[str]:
    """The methods that describe or build, and those that ``__init__`` calls."""
    building, waiting = set(_BUILDING), ["__init__"]
    while waiting:
        for code in _codes(methods.get(waiting.pop())):
            called = {name for name in _of_code(code)[0] if name in methods and name != "forward"} - building
            building |= called
            waiting.extend(called)
    return building


def _codes(value: Any) -> Iterator[types.CodeType]:
    if isinstance(value, property):
        for function in (value.fget, value.fset):
            yield from _codes(function)
        return
    value = getattr(value, "__func__", value)
    while hasattr(value, "__wrapped__"):
        value = value.__wrapped__
    if isinstance(value, types.FunctionType):
        yield value.__code__


@functools.cache
def _of_code(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    names: set[str] = set()
    apart: set[str] = set()
    before: Any = None
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            names.add(instruction.argval)
            if before != "self":
                apart.add(instruction.argval)
        elif instruction.opname == "LOAD_CONST" and isinstance(instruction.argval, str):
            names.add(instruction.argval)
            apart.add(instruction.argval)
        before = instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = _of_code(constant)
            names |= inner[0]
            apart |= inner[1]
    return frozenset(names), frozenset(apart)


def _held(module: nn.Module) -> Iterator[tuple[str, Any]]:
    stores = [module.__dict__, module._buffers, module._parameters, _of_class(type(module))]
    for name, value in ((name, value) for store in stores for name, value in store.items()):
        if not name.startswith("_") or holds_more(name, value) or _number(value) is not None:
            yield from _reach(value, name, _DEPTH)


def _of_class(cls: type) -> dict[str, Any]:
    """What the classes hold that a user wrote, slots included; not their methods."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if not f"{base.__module__}.".startswith(_LIBRARIES):
            found.update((n, v) for n, v in vars(base).items() if not callable(v) and not n.startswith("__"))
    return found


def _reach(value: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    yield path, value
    if depth and not isinstance(value, (nn.Module, Tensor, str, bytes, int, float)):
        for name, inner in _parts(value):
            yield from _reach(inner, f"{path}.{name}", depth - 1)


def _parts(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())[:_MOST]
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return list(value._asdict().items())
    if isinstance(value, (list, tuple)) or type(value).__name__ == "deque":
        return list(enumerate(value))[:_MOST]
    if isinstance(value, functools.partial):
        return [*value.keywords.items(), *enumerate(value.args)]
    if isinstance(value, types.FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=False)
        return [(name, cell.cell_contents) for name, cell in cells if _filled(cell)]
    if f"{type(value).__module__}.".startswith(_LIBRARIES) or isinstance(value, types.ModuleType):
        return [] if not isinstance(value, type) else list(_of_class(value).items())
    slots = [n for base in type(value).__mro__ for n in slots_of(base) if hasattr(value, n)]
    return [*getattr(value, "__dict__", {}).items(), *((n, getattr(value, n)) for n in slots)][:_MOST]


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor):
        single = value.numel() == 1 and not value.is_complex() and not value.is_meta
        return float(value.detach()) if single else None
    if type(value).__name__ == "ndarray":
        return float(value.item()) if value.size == 1 and value.dtype.kind in "fiu" else None
    try:
        return None if isinstance(value, (bool, bytes)) or callable(value) else float(value)
    except Exception:  # a foreign object's own, a ScriptObject's NotImplementedError
        return None


def _near(value: float | None, rate: float) -> bool:
    return value is not None and min(abs(value - rate), abs(value - (1.0 - rate))) < 1e-6


def _says_rate(path: str) -> bool:
    return any(word in path.lower() for word in ("drop", "keep"))
