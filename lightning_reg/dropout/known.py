"""Classes whose rates are known: their attributes need no proof that they drop."""

from __future__ import annotations

from numbers import Real
from typing import Literal, TypeAlias

from torch import nn

__all__ = ["Kind", "is_rate", "known_kinds", "register_site"]

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

#: What modules of transformers read at each forward, whichever the family: (in the class's name, attribute).
_OF_TRANSFORMERS: dict[tuple[str, str], Kind] = {
    ("Attention", "attention_dropout"): "attention",
    ("Attention", "dropout"): "attention",
    ("Layer", "dropout"): "element",
    ("Layer", "activation_dropout"): "element",
    ("coder", "layerdrop"): "layer",
    ("DropPath", "drop_prob"): "row",
}


def known_kinds(cls: type) -> dict[str, Kind]:
    """Return the known rate attributes of a module class, its bases included."""
    kinds: dict[str, Kind] = {}
    if cls.__module__.startswith("transformers.models."):
        kinds.update({name: kind for (part, name), kind in _OF_TRANSFORMERS.items() if part in cls.__name__})
    for base in reversed(cls.__mro__):
        kinds.update(_KNOWN_ELSEWHERE.get((base.__module__.partition(".")[0], base.__name__), {}))
        kinds.update(_KNOWN.get(base, {}))
    return kinds


def register_site(cls: type[nn.Module], attribute: str, kind: Kind = "unknown") -> None:
    """Make ``attribute`` of ``cls`` and of its subclasses a known dropout rate.

    The attribute may hold a number, or a list or a dictionary of numbers; each number is a site. What it
    holds is looked at when training starts: anything else is refused there.

    Args:
        cls: the module class.
        attribute: the attribute that holds the probability of dropping.
        kind: what is dropped together, where it is known.

    Raises:
        TypeError: ``cls`` is not a module class, or ``attribute`` is not a string.

    >>> from lightning_reg.dropout import find_sites
    >>> class Noise(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.amount = 0.2
    >>> register_site(Noise, "amount", "element")
    >>> find_sites(Noise())
    [DropoutSite('amount', element, 0.2, built 0.2)]
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise TypeError(f"register_site({cls!r}, ...) needs a module class; give a subclass of nn.Module")
    if not isinstance(attribute, str) or not attribute:
        raise TypeError(f"register_site(..., {attribute!r}) needs the name of the attribute with the rate")
    _KNOWN.setdefault(cls, {})[attribute] = kind
    _REGISTERED.setdefault(cls, set()).add(attribute)


_REGISTERED: dict[type[nn.Module], set[str]] = {}


def registered(cls: type) -> set[str]:
    """Return the attributes that :func:`register_site` named for a class or its bases."""
    return {name for base in cls.__mro__ for name in _REGISTERED.get(base, ())}


def is_rate(value: object) -> bool:
    """Whether ``value`` is a number that may be a probability."""
    return isinstance(value, Real) and str(value) not in ("True", "False") and 0.0 <= float(value) <= 1.0
