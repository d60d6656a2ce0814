"""Where a module drops: every rate it holds, by name, with a way to read and to set it.

A rate lives in three kinds of place: a dropout module's attribute (``nn.Dropout.p``), a float that another
module hands to a function (``MultiheadAttention.dropout``), and a configuration object or the
hyper-parameters, read at each forward. Names are dotted paths from the root and end in the attribute,
``"encoder.layers.0.dropout1.p"``; prefixes that wrappers add (``_orig_mod.``) are invisible.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias

from torch import nn

from lightning_reg.dropout.steering import SteeredRate, built_rate
from lightning_reg.select.grammar import Grammar
from lightning_reg.select.wrappers import visible_modules

__all__ = [
    "DropoutSite",
    "Kind",
    "SelectSites",
    "candidates",
    "check_select_sites",
    "find_sites",
    "register_site",
    "select_sites",
]

#: What is dropped together. "element": single values; "channel": whole feature maps; "row": a sample's
#: whole branch; "alpha", "feature_alpha": values and channels with mean and variance kept; "attention":
#: attention weights; "recurrent": between the layers of a stacked RNN; "layer": a layer is skipped and
#: nothing is rescaled; "block": squares of a feature map, by a nominal rate; "unknown": not seen acting.
Kind: TypeAlias = Literal[
    "element",
    "channel",
    "row",
    "alpha",
    "feature_alpha",
    "attention",
    "recurrent",
    "layer",
    "block",
    "unknown",
]

_KNOWN: dict[type[nn.Module], dict[str, Kind]] = {
    nn.Dropout: {"p": "element"},
    nn.Dropout1d: {"p": "channel"},
    nn.Dropout2d: {"p": "channel"},
    nn.Dropout3d: {"p": "channel"},
    nn.AlphaDropout: {"p": "alpha"},
    nn.FeatureAlphaDropout: {"p": "feature_alpha"},
    nn.MultiheadAttention: {"dropout": "attention"},
    nn.RNNBase: {"dropout": "recurrent"},
}

#: Classes of libraries that are not imported here: (package, class name).
_KNOWN_ELSEWHERE: dict[tuple[str, str], dict[str, Kind]] = {
    ("timm", "DropPath"): {"drop_prob": "row"},
    ("timm", "DropBlock2d"): {"drop_prob": "block"},
    ("torchvision", "StochasticDepth"): {"p": "row"},
    ("torchvision", "DropBlock2d"): {"p": "block"},
    ("torchvision", "_DenseLayer"): {"drop_rate": "element"},
}

_RATES_OF_DROP_CLASSES = frozenset({"p", "prob", "rate"})


@dataclass(frozen=True, eq=False)
class DropoutSite:
    """A place that drops: its name, its kind, its rate as built, and how to read and set it.

    Attributes:
        name: dotted path to the rate, ``"encoder.layers.0.dropout1.p"``.
        kind: what is dropped together, ``"element"``, ``"channel"``, ``"row"``, ``"attention"``, ...
        built: the rate as its author built it, a probability of dropping in [0, 1].
        verified: whether a forward was seen to use the rate.
        called: whether the rate acts in its own module's forward, as ``nn.Dropout``'s does where it is
            called, rather than being read by another module; None when not looked at.
        module: the module that holds the rate, or that holds the configuration it lives on.
        owner: the object with the attribute: ``module``, a configuration or the hyper-parameters.
        attribute: the attribute's (or key's) name.
        aliases: every name of a shared site, ``name`` included.

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
    attribute: str
    aliases: tuple[str, ...]
    verified: bool = False
    called: bool | None = None

    def get(self) -> float:
        """Return the current rate."""
        return float(self._read())

    def set(self, rate: float) -> None:
        """Set the rate; copies and pickles of a configuration keep the built one.

        Raises:
            ValueError: ``rate`` is not a number in [0, 1].
        """
        if not 0.0 <= rate <= 1.0:
            raise ValueError(
                f"the rate {rate} for {self.name} is not a probability; give a number from 0 to 1"
            )
        value: float = rate
        if self.owner is not self.module:
            value = rate if rate == self.built else SteeredRate(rate, self.built)
        self._write(value)

    @property
    def rate(self) -> float:
        """The current rate, as :meth:`get`."""
        return self.get()

    @property
    def key(self) -> tuple[int, str]:
        """What tells one place from another, which is the owner's identity and the attribute."""
        return (id(self.owner), self.attribute)

    @property
    def _in_mapping(self) -> bool:
        return isinstance(self.owner, MutableMapping)

    def _read(self) -> Any:
        return self.owner[self.attribute] if self._in_mapping else getattr(self.owner, self.attribute)

    def _write(self, value: Any) -> None:
        if self._in_mapping:
            self.owner[self.attribute] = value
        else:
            setattr(self.owner, self.attribute, value)

    def __repr__(self) -> str:
        mark = "" if self.verified else ", unverified"
        return f"DropoutSite({self.name!r}, {self.kind}, {self.get():g}, built {self.built:g}{mark})"


#: Which sites: "*", a glob over names (of the rate or of its module), a module class, a predicate of the
#: site, or a list of these; a glob with a leading "!" takes sites out again.
SelectSites: TypeAlias = (
    "str | type[nn.Module] | Callable[[DropoutSite], bool]"
    " | Sequence[str | type[nn.Module] | Callable[[DropoutSite], bool]]"
)


def register_site(cls: type[nn.Module], attribute: str, kind: Kind = "unknown") -> None:
    """Make ``attribute`` of ``cls`` and of its subclasses a known dropout rate.

    Args:
        cls: the module class.
        attribute: the attribute that holds the probability of dropping.
        kind: what is dropped together, where it is known.

    Raises:
        TypeError: ``cls`` is not a module class, or ``attribute`` is not a string.

    >>> class Noise(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.amount = 0.2
    >>> register_site(Noise, "amount", "element")
    >>> find_sites(Noise())
    [DropoutSite('amount', element, 0.2, built 0.2, unverified)]
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise TypeError(f"register_site({cls!r}, ...) needs a module class; give a subclass of nn.Module")
    if not isinstance(attribute, str) or not attribute:
        raise TypeError(f"register_site(..., {attribute!r}) needs the name of the attribute with the rate")
    _KNOWN.setdefault(cls, {})[attribute] = kind


def find_sites(module: nn.Module, call: Callable[[], object] | None = None) -> list[DropoutSite]:
    """List every place in ``module`` that drops, shared ones once, in module order.

    Names and types alone get this wrong both ways: they list rates that nothing reads and miss rates read
    from a configuration. So give ``call``, which runs one forward: rates that it does not read are left
    out, and the random state, buffers, gradients and training modes are put back afterwards.

    Args:
        module: any module; it is put in training mode for the call.
        call: runs one forward, ``lambda: model(batch)``. Without it sites are marked unverified, and
            rates on configuration objects, of which nearly all are dead, are not listed.

    >>> net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.MultiheadAttention(4, 2, dropout=0.2))
    >>> [(site.name, site.kind) for site in find_sites(net)]
    [('1.p', 'element'), ('2.dropout', 'attention')]
    """
    if call is None:
        return [site for site in candidates(module) if isinstance(site.owner, nn.Module)]
    from lightning_reg.dropout.audit import audit

    return audit(module, call).sites


def candidates(module: nn.Module) -> list[DropoutSite]:
    """List every attribute that may be a rate: known classes, names with "drop", configurations."""
    found: dict[tuple[int, str], DropoutSite] = {}
    for path, owner in visible_modules(module):
        for holder, prefix, attribute, value, kind in _rates_of(owner):
            name = ".".join(part for part in (path, prefix, attribute) if part)
            key = (id(holder), attribute)
            if key in found:
                site = found[key]
                if name not in site.aliases:
                    found[key] = replace(site, aliases=(*site.aliases, name))
                continue
            built = built_rate(holder, attribute, value)
            found[key] = DropoutSite(name, kind, built, owner, holder, attribute, (name,))
    return list(found.values())


def select_sites(
    module: nn.Module, sites: Sequence[DropoutSite], select: SelectSites = "*"
) -> list[DropoutSite]:
    """Return the sites that ``select`` names.

    Raises:
        ValueError: the module has no site, or none is selected; the sentence says what it has.
    """
    check_select_sites(select)
    if not sites:
        kinds = Counter(type(m).__name__ for _, m in visible_modules(module) if not list(m.children()))
        has = ", ".join(f"{count} {name}" for name, count in kinds.most_common(6)) or "no modules"
        raise ValueError(
            f"{type(module).__name__} has no place that drops: it has {has}; add dropout to it with "
            "DropoutInjector, or name the rate's attribute with register_site"
        )
    return _SITES.choose(sites, select, module)


def check_select_sites(select: SelectSites) -> None:
    """Refuse what is neither a glob, a module class, a predicate, nor a list of these.

    Raises:
        TypeError: of another kind.
        ValueError: empty.
    """
    _SITES.check(select)


def known_kinds(cls: type) -> dict[str, Kind]:
    """Return the known rate attributes of a module class, its bases included."""
    kinds: dict[str, Kind] = {}
    for base in reversed(cls.__mro__):
        kinds.update(_KNOWN_ELSEWHERE.get((base.__module__.partition(".")[0], base.__name__), {}))
        kinds.update(_KNOWN.get(base, {}))
    return kinds


def _rates_of(module: nn.Module) -> Iterator[tuple[Any, str, str, float, Kind]]:
    """Yield (holder, prefix, attribute, value, kind) for what may be a rate of this module."""
    known = known_kinds(type(module))
    drops = "drop" in type(module).__name__.lower()
    for attribute, value in list(module.__dict__.items()):
        named = "drop" in attribute.lower() or (drops and attribute in _RATES_OF_DROP_CLASSES)
        if not (attribute in known or named) or not _is_rate(value):
            continue
        if isinstance(module, nn.RNNBase) and module.num_layers < 2 and attribute == "dropout":
            continue  # torch reads it and, with one layer, drops nothing
        yield module, "", attribute, value, known.get(attribute, "unknown")
    for name, held in list(module.__dict__.items()):
        if name == "_hparams" and isinstance(held, MutableMapping):
            items, prefix = dict(held), "hparams"
        elif (
            "config" in name.lower() and hasattr(held, "__dict__") and not isinstance(held, (type, nn.Module))
        ):
            items, prefix = vars(held), name
        else:
            continue
        yield from _rates_on(held, prefix, items)


def _rates_on(
    holder: Any, prefix: str, items: Mapping[str, Any]
) -> Iterator[tuple[Any, str, str, float, Kind]]:
    for attribute, value in list(items.items()):
        if isinstance(attribute, str) and "drop" in attribute.lower() and _is_rate(value):
            yield holder, prefix, attribute, value, "unknown"


def _is_rate(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0.0 <= value <= 1.0


def _names(site: DropoutSite, form: str) -> bool:
    # the rate's name, or its module's: "encoder.dropout" for "encoder.dropout.p"
    return any(
        fnmatchcase(name, form) for alias in site.aliases for name in (alias, alias.rpartition(".")[0])
    )


_SITES: Grammar[DropoutSite] = Grammar(
    kind="dropout sites",
    names=lambda site: site.aliases,
    glob=_names,
    within=lambda site: (site.module,),
    ask=lambda predicate, site: predicate(site),
    default="*",
    predicate="(site) -> bool",
    example="'*' for every site, or a glob such as 'encoder.*'",
)
