"""What a penalty applies to: which parameters of a module.

A selection is one of five forms, or a list of them (see :mod:`lightning_reg.select.grammar`):

- ``"weights"`` (the default): what a practitioner would decay: no biases whatever their shape, no scales of
  normalization layers, no position tables or class tokens, nothing that the model's own
  ``no_weight_decay()`` names (see :mod:`lightning_reg.select.weights`);
- ``"all"``: every parameter;
- a glob over parameter names, ``"encoder.*.weight"`` (``*`` also spans dots); in a list, one with a
  leading ``!`` takes parameters out again, ``["weights", "!*embed*"]``;
- a module class: every parameter inside modules of that class, biases included;
- a predicate ``(name, parameter, module) -> bool``, where ``module`` owns the parameter.

Tied tensors count once. Frozen tensors stay in the selection and are skipped while they are frozen.
Prefixes that wrappers add (``_orig_mod.`` of ``torch.compile`` and the like) are invisible. What is not
floating point, or stands for quantized numbers, is never selected. A weight that a layer computes from
parameters (weight norm, a pruning mask, any parametrization) is one thing with the layer's name for it,
``"0.weight"``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_reg.select.derived import Derived, derived_tensors
from lightning_reg.select.grammar import Grammar, called
from lightning_reg.select.weights import is_norm, kept_from_decay, why_no_weight
from lightning_reg.select.wrappers import places

__all__ = [
    "Select",
    "Selected",
    "answer_of",
    "check_select",
    "is_norm",
    "matches",
    "named_parameters",
    "select_parameters",
    "why_not_selected",
]

Predicate: TypeAlias = Callable[[str, nn.Parameter, nn.Module], bool]
Select: TypeAlias = "str | type[nn.Module] | Predicate | Sequence[str | type[nn.Module] | Predicate]"


@dataclass(frozen=True, eq=False)
class Selected:
    """A parameter, its name as the user knows it, and the module that owns it.

    Attributes:
        name: dotted name from the root, without wrapper prefixes.
        parameter: the tensor.
        module: the module that holds it as an attribute.
        aliases: every name of a tied tensor, ``name`` included.
        containers: the modules around the parameter, from the root to ``module``, for every alias.
        derived: how the layer computes what it uses from the parameter, where it does; ``parameter`` is then
            the first one behind it that is trained.
        scale_of: of the norms that ``weight_norm`` keeps, the name of the weight that they scale; else empty.
        kept: whether the model itself says that the parameter is not decayed.
        norms_of: the shape of the weight whose slices' norms ``parameter`` holds, see :meth:`as_norms`.
    """

    name: str
    parameter: nn.Parameter
    module: nn.Module
    aliases: tuple[str, ...]
    containers: tuple[nn.Module, ...]
    derived: Derived | None = None
    scale_of: str = ""
    kept: bool = False
    norms_of: torch.Size | None = None

    def used(self) -> Tensor:
        """Return the tensor that the layer uses: the parameter, or what is computed of it, with its graph."""
        return self.parameter if self.derived is None else self.derived.compute()

    def as_used(self) -> Selected:
        """Return this with the tensor in use, without graph, in place of the parameter."""
        used: Any = self.used().detach()
        return self if self.derived is None else replace(self, parameter=used)

    def as_norms(self) -> Selected:
        """Return this with the norms that ``weight_norm`` keeps of its slices in place of the parameter."""
        if self.derived is None or self.derived.scale is None:
            return self
        shape = self.derived.sources[0].shape
        return replace(self, parameter=self.derived.scale, derived=None, norms_of=shape)

    @property
    def names(self) -> tuple[str, ...]:
        """All aliases of what the layer uses, and no name of the parameters behind it."""
        return self.aliases if self.derived is None else (self.name,)

    @property
    def sources(self) -> tuple[nn.Parameter, ...]:
        """The parameters behind :meth:`used`, mostly one."""
        return (self.parameter,) if self.derived is None else self.derived.sources

    @property
    def attribute(self) -> str:
        """The parameter's name within ``module``: ``"weight"``."""
        return self.name.rpartition(".")[2]


def named_parameters(module: nn.Module) -> list[Selected]:
    """List every distinct parameter of ``module`` under the user's names, tied tensors once.

    >>> [p.name for p in named_parameters(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))]
    ['0.weight', '0.bias']
    """
    found: dict[int, _Found] = {}
    kept: set[str] = set()
    for place in places(module):
        kept.update(kept_from_decay(place))
        prefix = f"{place.name}." if place.name else ""
        for derived in derived_tensors(place.module):
            first = next((p for p in derived.sources if p.requires_grad), derived.sources[0])
            entry = _Found(first, place.module, derived)
            for source in derived.sources:
                if source is not derived.scale:
                    entry = found.setdefault(id(source), entry)
            entry.add(prefix + derived.attribute, place.around)
            if derived.scale is not None:
                found[id(derived.scale)] = _Found(derived.scale, place.module, scale_of=entry.names[0])
        for attribute, parameter in place.module._parameters.items():
            if parameter is not None:
                entry = found.setdefault(id(parameter), _Found(parameter, place.module))
                entry.add(prefix + attribute, place.around)
    return [entry.selected(kept) for entry in dict.fromkeys(found.values())]


@dataclass(eq=False)
class _Found:
    parameter: nn.Parameter
    module: nn.Module
    derived: Derived | None = None
    scale_of: str = ""
    names: list[str] = field(default_factory=list)
    around: list[nn.Module] = field(default_factory=list)

    def add(self, name: str, around: Sequence[nn.Module]) -> None:
        if name not in self.names:
            self.names.append(name)
        self.around.extend(around)

    def selected(self, kept: set[str]) -> Selected:
        return Selected(
            self.names[0],
            self.parameter,
            self.module,
            tuple(self.names),
            tuple(dict.fromkeys(self.around)),
            self.derived,
            self.scale_of,
            not kept.isdisjoint(self.names),
        )


def select_parameters(module: nn.Module, select: Select = "weights") -> list[Selected]:
    """Return the parameters of ``module`` that ``select`` names, each once, in module order.

    Raises:
        ValueError: nothing matches; the sentence names near misses.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    >>> [p.name for p in select_parameters(net, "weights")]
    ['0.weight']
    >>> [p.name for p in select_parameters(net, ["all", "!*.bias"])]
    ['0.weight', '1.weight']
    """
    return _PARAMETERS.choose(named_parameters(module), select, module)


def matches(selected: Selected, select: Select) -> bool:
    """Whether ``select`` names this parameter, under any of its names."""
    return _PARAMETERS.matches(selected, select)


def why_not_selected(selected: Selected) -> str:
    """Return the rule by which ``"weights"`` leaves this parameter out; ``""`` for a weight.

    >>> [why_not_selected(p) for p in named_parameters(nn.Linear(2, 3))]
    ['', 'bias']
    """
    if not _is_float(selected):
        return "not floating point"
    if _is_quantized(selected.parameter):
        return "quantized"
    if selected.scale_of:
        return f"scale of {selected.scale_of}"
    around, tensor = selected.containers, selected.parameter
    return why_no_weight(selected.name, tensor, selected.module, around, selected.kept)


def check_select(select: Select) -> None:
    """Refuse what is not one of the five forms.

    Raises:
        TypeError: ``select``, or an entry of it, is of another kind.
        ValueError: an empty string or list.
    """
    _PARAMETERS.check(select)


def _is_float(selected: Selected) -> bool:
    return selected.parameter.is_floating_point() or selected.parameter.is_complex()


def _is_quantized(parameter: Tensor) -> bool:
    """Whether a frozen tensor stands for other numbers, as torchao's do, and floats of 8 bits or fewer."""
    stands = type(parameter).dequantize is not Tensor.dequantize or parameter.dtype.itemsize < 2
    return stands and not parameter.requires_grad


def _names(selected: Selected, form: str) -> bool:
    if selected.scale_of and fnmatchcase(selected.scale_of, form):
        return False  # the weight is meant, which it is a part of
    return any(fnmatchcase(name, form) for name in selected.aliases)


_PARAMETERS: Grammar[Selected] = Grammar(
    kind="parameters",
    names=lambda selected: selected.aliases,
    glob=_names,
    within=lambda selected: () if selected.scale_of else selected.containers,
    ask=lambda predicate, selected: (
        not selected.scale_of and predicate(selected.name, selected.parameter, selected.module)
    ),
    never=lambda selected: not _is_float(selected) or _is_quantized(selected.parameter),
    default="weights",
    predicate="(name, parameter, module) -> bool",
    example="'weights', 'all', or a glob such as '*.weight'",
    words={
        "weights": lambda selected: not why_not_selected(selected),
        "all": lambda selected: not selected.scale_of,
    },
)


def answer_of(function: Callable[..., Any], selected: Selected) -> Any:
    """Return what a user's ``(name, parameter, module)`` says of a parameter.

    Raises:
        TypeError: it takes other arguments.
    """
    s = selected
    return called(
        function, s.name, s.parameter, s.module, told=function, name=s.name, how="(name, parameter, module)"
    )
