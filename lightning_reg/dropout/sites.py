"""Where a module may drop: every rate it holds, by name, with a way to read and to set it.

A rate lives in three kinds of place: a dropout module's attribute (``nn.Dropout.p``), a number that another
module hands to a function (``MultiheadAttention.dropout``), and a list, a dictionary, a namespace or a
configuration, read at each forward. Names are dotted paths from the root and end in the attribute,
``"encoder.layers.0.dropout1.p"``; prefixes that wrappers add (``_orig_mod.``) are invisible.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, MutableMapping, MutableSequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from lightning_reg.dropout.known import Kind, is_rate, known_kinds, registered
from lightning_reg.dropout.steering import SteeredRate, built_rate
from lightning_reg.dropout.tuples import tuple_of
from lightning_reg.select.wrappers import visible_modules

__all__ = ["DropoutSite", "candidates", "holds_more", "names_drop", "slots_of"]

_RATES_OF_DROP_CLASSES = frozenset(
    {"p", "prob", "rate", "ratio", "weight_p", "embed_p", "input_p", "hidden_p"}
)
_KEEP = ("keep_prob", "keep_rate", "keepprob")
#: Attributes of modules that are torch's and Lightning's own; the last one is a copy of the hyperparameters.
_NOT_THE_USERS = frozenset((*vars(nn.Module()), "_trainer", "_fabric", "_hparams_initial"))
_NO_CONFIGURATIONS = ("torch.", "lightning.", "pytorch_lightning.", "torchmetrics")
_DEPTH = 3


@dataclass(frozen=True, eq=False)
class DropoutSite:
    """A place that drops: its name, its kind, its rate as built, and how to read and set it.

    Attributes:
        name: dotted path to the rate, ``"encoder.layers.0.dropout1.p"``.
        kind: what is dropped together, ``"element"``, ``"channel"``, ``"row"``, ``"attention"``, ...
        built: the rate as its author built it, a probability of dropping in [0, 1].
        known: whether the module's class is known to drop by it; if not, it counts as a rate only after a
            forward was seen to use it.
        module: the module that holds the rate, or that holds the configuration it lives on.
        owner: the object with the attribute: ``module``, a configuration, a list or a dictionary.
        attribute: the attribute's name, the key, or the index.
        aliases: every name of a shared site, ``name`` included.
        holders: the modules that hold the owner.
        keeps: whether the number is a probability of keeping, as ``keep_prob`` is; rates are of dropping.

    >>> from lightning_reg.dropout import find_sites
    >>> [site] = find_sites(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)))
    >>> site.name, site.kind, site.get()
    ('1.p', 'element', 0.1)
    >>> site.set(0.3)
    >>> site.get(), site.built
    (0.3, 0.1)
    """

    name: str
    kind: Kind
    built: float
    module: nn.Module
    owner: Any
    attribute: Any
    aliases: tuple[str, ...]
    known: bool = True
    holders: tuple[nn.Module, ...] = ()
    keeps: bool = False

    def get(self) -> float:
        """Return the current rate."""
        return self._raw(float(self._read()))

    def set(self, rate: float) -> None:
        """Set the rate; copies and pickles of a configuration keep the built one.

        Raises:
            ValueError: ``rate`` is not a number in [0, 1].
        """
        self._exchange(self._read(), rate)

    def _exchange(self, held: Any, rate: float) -> Any:
        """Set the rate where ``held`` stands; return what stands there now."""
        if not 0.0 <= rate <= 1.0:
            raise ValueError(
                f"the rate {rate} for {self.name} is not a probability; give a number from 0 to 1"
            )
        number = self._number(rate, held)
        self._write(number)
        return number if self.owner is self.module else self._read()

    @property
    def rate(self) -> float:
        """The current rate, as :meth:`get`."""
        return self.get()

    @property
    def key(self) -> tuple[int, Any]:
        """What tells one place from another, which is the owner's identity and the attribute."""
        return (id(self.owner), self.attribute)

    def _number(self, rate: float, held: Any) -> Any:
        """What to hold for a rate in place of ``held``."""
        raw = self._raw(rate)
        if self.owner is self.module:  # a number of numpy's stays one
            return type(held)(raw) if type(held).__module__ == "numpy" else raw
        built = self._raw(self.built)
        if rate != self.built:
            return SteeredRate(
                raw, held.built if isinstance(held, SteeredRate) else held if held == built else built
            )
        return held.built if isinstance(held, SteeredRate) else built

    def _raw(self, rate: float) -> float:
        """The number that is held for a rate, and the rate for the number that is held."""
        return 1.0 - rate if self.keeps else rate

    def _read(self) -> Any:
        if self.owner is self.module:
            return getattr(self.module, self.attribute)
        if isinstance(self.owner, (MutableMapping, MutableSequence)):
            return self.owner[self.attribute]
        return getattr(self.owner, self.attribute)

    def _write(self, value: Any) -> None:
        if self.owner is self.module:
            self.module.__dict__[self.attribute] = value  # nothing that nn.Module would register
        elif isinstance(self.owner, (MutableMapping, MutableSequence)):
            self.owner[self.attribute] = value
        else:
            setattr(self.owner, self.attribute, value)

    def takes(self, value: Any) -> bool:
        """Write a number, if its owner takes it: an OmegaConf container and a frozen dataclass do not."""
        try:
            self._write(value)
        except Exception:  # each library of configurations has errors of its own
            return False
        return True

    def __repr__(self) -> str:
        mark = "" if self.known else ", not of a known class"
        return f"DropoutSite({self.name!r}, {self.kind}, {self.get():g}, built {self.built:g}{mark})"


def candidates(module: nn.Module) -> list[DropoutSite]:
    """List every attribute that may be a rate: known classes, names with "drop", configurations."""
    found: dict[tuple[int, Any], DropoutSite] = {}
    for path, holder in visible_modules(module):
        for owner, prefix, attribute, value, kind in _rates_of(holder):
            name = ".".join(part for part in (path, prefix, str(attribute)) if part)
            key = (id(owner), attribute)
            site = found.get(key)
            if site is None:
                built = built_rate(owner, attribute, value)
                known = kind is not None
                keeps = not known and "keep" in str(attribute).lower()
                found[key] = DropoutSite(
                    name,
                    kind or "unknown",
                    1.0 - built if keeps else built,
                    holder,
                    owner,
                    attribute,
                    (name,),
                    known,
                    (holder,),
                    keeps,
                )
            elif name not in site.aliases:
                holders = site.holders if holder in site.holders else (*site.holders, holder)
                found[key] = replace(site, aliases=(*site.aliases, name), holders=holders)
    return list(found.values())


def _rates_of(module: nn.Module) -> Iterator[tuple[Any, str, Any, Any, Kind | None]]:
    """Yield (owner, prefix, attribute, value, kind if known) for what may be a rate of this module."""
    known, mine = known_kinds(type(module)), registered(type(module))
    drops = "drop" in type(module).__name__.lower()
    for attribute, value in list(module.__dict__.items()):
        kind = known.get(attribute)
        named = names_drop(attribute) or (drops and attribute in _RATES_OF_DROP_CLASSES)
        if isinstance(module, nn.RNNBase) and module.num_layers < 2 and attribute == "dropout":
            continue  # torch reads it and, with one layer, drops nothing
        if is_rate(value) and (kind is not None or named):
            yield module, "", attribute, value, kind
        elif kind is not None and isinstance(value, (MutableSequence, MutableMapping)):
            yield from ((*found, kind) for found in _inside(value, attribute, True, 1))
        elif attribute in mine and value is not None:
            raise TypeError(
                f"register_site({type(module).__name__}, {attribute!r}): it holds a {type(value).__name__}, "
                "and a rate that can be steered is a number, or a list or a dictionary of numbers"
            )
        elif type(value) is tuple and named:
            yield from ((*found, None) for found in _inside(tuple_of(module, attribute), attribute, True, 1))
        elif isinstance(value, functools.partial) and not isinstance(value.func, type):
            named = named or names_drop(getattr(value.func, "__name__", ""))
            yield from ((*found, None) for found in _inside(value.keywords, attribute, named, 1))
        elif holds_more(attribute, value):
            yield from ((*found, None) for found in _inside(value, _public(attribute), named, _DEPTH))


def _inside(holder: Any, prefix: str, named: bool, depth: int) -> Iterator[tuple[Any, str, Any, Any]]:
    """Yield (owner, prefix, attribute, value) of the rates on an object that is no module."""
    if isinstance(holder, MutableMapping):
        items = list(holder.items())
    elif isinstance(holder, MutableSequence):
        items = list(enumerate(holder))
    else:
        slots = [name for base in type(holder).__mro__ for name in slots_of(base) if hasattr(holder, name)]
        items = [*getattr(holder, "__dict__", {}).items(), *((name, getattr(holder, name)) for name in slots)]
    for attribute, value in items:
        here = named or (isinstance(attribute, str) and names_drop(attribute))
        if is_rate(value):
            if here:
                yield holder, prefix, attribute, value
        elif depth > 1 and holds_more(str(attribute), value):
            yield from _inside(value, f"{prefix}.{attribute}", here, depth - 1)


def names_drop(attribute: str) -> bool:
    """Whether a name says that it is of a probability of dropping or of keeping."""
    lower = attribute.lower()
    return "drop" in lower or any(word in lower for word in _KEEP)


def _public(attribute: str) -> str:
    return "hparams" if attribute == "_hparams" else attribute


def holds_more(attribute: str, value: object) -> bool:
    """Whether to look for rates on this value: a container, a namespace, a configuration."""
    if attribute in _NOT_THE_USERS or attribute.startswith("_lightning_reg"):
        return False
    if isinstance(value, (MutableMapping, MutableSequence)):
        return True
    return (
        (hasattr(value, "__dict__") or any(map(slots_of, type(value).__mro__)))
        and not callable(value)
        and not isinstance(value, (type, nn.Module, Tensor))
        and not type(value).__module__.startswith(_NO_CONFIGURATIONS)
        and type(value).__module__ != "builtins"
    )


def slots_of(cls: type) -> list[str]:
    """Return the names of the slots that a class declares itself."""
    slots = cls.__dict__.get("__slots__", ())
    return [name for name in ([slots] if isinstance(slots, str) else slots) if not name.startswith("__")]
