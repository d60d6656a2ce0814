"""What a penalty applies to: which parameters of a module.

A selection is one of five forms, or a list of them (see :mod:`lightning_reg.select.grammar`):

- ``"weights"`` (the default): tensors with two or more dimensions outside normalization layers, so no
  biases and no norm scales;
- ``"all"``: every parameter;
- a glob over parameter names, ``"encoder.*.weight"`` (``*`` also spans dots); in a list, one with a
  leading ``!`` takes parameters out again, ``["weights", "!*embed*"]``;
- a module class: every parameter inside modules of that class, biases included;
- a predicate ``(name, parameter, module) -> bool``, where ``module`` owns the parameter.

Tied tensors count once. Frozen tensors stay in the selection and are skipped while they are frozen.
Prefixes that wrappers add (``_orig_mod.`` of ``torch.compile`` and the like) are invisible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_reg.select.grammar import Grammar
from lightning_reg.select.wrappers import places
from lightning_reg.tensors.shards import is_flattened

__all__ = [
    "Select",
    "Selected",
    "check_select",
    "is_norm",
    "matches",
    "named_parameters",
    "select_parameters",
]

Predicate: TypeAlias = Callable[[str, nn.Parameter, nn.Module], bool]
Select: TypeAlias = "str | type[nn.Module] | Predicate | Sequence[str | type[nn.Module] | Predicate]"

_NORMS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else []),  # torch 2.4
)


@dataclass(frozen=True, eq=False)
class Selected:
    """A parameter, its name as the user knows it, and the module that owns it.

    Attributes:
        name: dotted name from the root, without wrapper prefixes.
        parameter: the tensor.
        module: the module that holds it as an attribute.
        aliases: every name of a tied tensor, ``name`` included.
        containers: the modules around the parameter, from the root to ``module``, for every alias.
    """

    name: str
    parameter: nn.Parameter
    module: nn.Module
    aliases: tuple[str, ...]
    containers: tuple[nn.Module, ...]

    @property
    def attribute(self) -> str:
        """The parameter's name within ``module``: ``"weight"``."""
        return self.name.rpartition(".")[2]


def named_parameters(module: nn.Module) -> list[Selected]:
    """List every distinct parameter of ``module`` under the user's names, tied tensors once.

    >>> [p.name for p in named_parameters(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))]
    ['0.weight', '0.bias']
    """
    found: dict[int, tuple[nn.Parameter, nn.Module, list[str], list[nn.Module]]] = {}
    for place in places(module):
        for attribute, parameter in place.module._parameters.items():
            if parameter is None:
                continue
            _, _, names, around = found.setdefault(id(parameter), (parameter, place.module, [], []))
            name = f"{place.name}.{attribute}" if place.name else attribute
            if name not in names:
                names.append(name)
            around.extend(place.around)
    return [
        Selected(names[0], parameter, owner, tuple(names), tuple(dict.fromkeys(around)))
        for parameter, owner, names, around in found.values()
    ]


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


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a normalization layer, whose parameters ``"weights"`` leaves out.

    >>> is_norm(nn.LayerNorm(3)), is_norm(nn.Linear(3, 3))
    (True, False)
    """
    return isinstance(module, _NORMS)


def check_select(select: Select) -> None:
    """Refuse what is not one of the five forms.

    Raises:
        TypeError: ``select``, or an entry of it, is of another kind.
        ValueError: an empty string or list.
    """
    _PARAMETERS.check(select)


def _is_weight(parameter: Tensor, module: nn.Module) -> bool:
    if is_norm(module):
        return False
    if is_flattened(parameter):
        raise ValueError(
            "select='weights' goes by dimensions, which FullyShardedDataParallel (FSDP1) flattens; name "
            "parameters, as in select='*.weight', or use FSDP2 (ModelParallelStrategy in Lightning)"
        )
    if is_lazy(parameter):  # no shape yet; torch's lazy layers call theirs "weight"
        return id(parameter) == id(getattr(module, "weight", None))
    return parameter.dim() >= 2


_PARAMETERS: Grammar[Selected] = Grammar(
    kind="parameters",
    names=lambda selected: selected.aliases,
    within=lambda selected: selected.containers,
    ask=lambda predicate, selected: predicate(selected.name, selected.parameter, selected.module),
    default="weights",
    predicate="(name, parameter, module) -> bool",
    example="'weights', 'all', or a glob such as '*.weight'",
    words={
        "weights": lambda selected: _is_weight(selected.parameter, selected.module),
        "all": lambda selected: True,
    },
)
