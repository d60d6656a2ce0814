"""What a penalty applies to: which parameters of a module.

A selection is one of five forms, or a list of them:

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

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

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

_WRAPPERS = frozenset(
    {
        "_orig_mod",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_forward_module",  # Fabric's
        "_original_module",
    }
)
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

    def visit(owner: nn.Module, prefix: str, containers: tuple[nn.Module, ...]) -> None:
        containers = (*containers, owner)
        for attribute, parameter in owner._parameters.items():
            if parameter is None:
                continue
            _, _, names, around = found.setdefault(id(parameter), (parameter, owner, [], []))
            if prefix + attribute not in names:
                names.append(prefix + attribute)
            around.extend(containers)
        transparent = isinstance(owner, (DataParallel, DistributedDataParallel))
        for attribute, child in owner._modules.items():
            if child is None or any(child is around for around in containers):
                continue
            hidden = attribute in _WRAPPERS or (transparent and attribute == "module")
            visit(child, prefix if hidden else f"{prefix}{attribute}.", containers)

    visit(module, "", ())
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
    check_select(select)
    parameters = named_parameters(module)
    chosen = [parameter for parameter in parameters if matches(parameter, select)]
    if not chosen:
        raise ValueError(_nothing_matches(module, select, parameters))
    return chosen


def matches(selected: Selected, select: Select) -> bool:
    """Whether ``select`` names this parameter, under any of its names."""
    if isinstance(select, str) and not _excludes(select):
        return _matches_one(selected, select)
    forms = _forms(select)
    positive = [form for form in forms if not _excludes(form)]
    negative = [form[1:] for form in forms if isinstance(form, str) and _excludes(form)]
    # a list of nothing but exclusions takes them out of the default
    return any(_matches_one(selected, form) for form in positive or ["weights"]) and not any(
        _matches_one(selected, form) for form in negative
    )


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
    forms = _forms(select)
    if not forms:
        raise ValueError(f"select={select!r} is empty; use 'weights', 'all', or a glob such as '*.weight'")
    for form in forms:
        if isinstance(form, str):
            if not form.lstrip("!"):
                raise ValueError(f"select={select!r} has an empty pattern; give a glob such as '*.weight'")
        elif isinstance(form, type):
            if not issubclass(form, nn.Module):
                raise TypeError(
                    f"select={form.__name__} is not a module class; give a subclass of torch.nn.Module"
                )
        elif isinstance(form, nn.Module) or not callable(form):
            raise TypeError(
                f"select={form!r} is not understood; use 'weights', 'all', a glob over parameter names, a "
                "module class, a predicate (name, parameter, module) -> bool, or a list of these"
            )


def _forms(select: Select) -> list[str | type[nn.Module] | Predicate]:
    return list(select) if isinstance(select, (list, tuple, set, frozenset)) else [select]  # type: ignore[list-item]


def _excludes(form: object) -> bool:
    return isinstance(form, str) and form.startswith("!")


def _matches_one(selected: Selected, form: str | type[nn.Module] | Predicate) -> bool:
    if form == "all":
        return True
    if form == "weights":
        return _is_weight(selected.parameter, selected.module)
    if isinstance(form, str):
        return any(fnmatchcase(name, form) for name in selected.aliases)
    if isinstance(form, type):
        return any(isinstance(container, form) for container in selected.containers)
    return bool(form(selected.name, selected.parameter, selected.module))


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


def _inside(module: nn.Module) -> nn.Module:
    """The user's module inside its wrappers."""
    hidden = "module" if isinstance(module, (DataParallel, DistributedDataParallel)) else None
    for attribute, child in module._modules.items():
        if child is not None and (attribute == hidden or attribute in _WRAPPERS):
            return _inside(child)
    return module


def _nothing_matches(module: nn.Module, select: Select, parameters: list[Selected]) -> str:
    where = type(_inside(module)).__name__
    if not parameters:
        return f"select={select!r} matches nothing: {where} has no parameters"
    names = [name for parameter in parameters for name in parameter.aliases]
    patterns = [form.lstrip("!") for form in _forms(select) if isinstance(form, str)]
    below = [f"{p}.*" for p in patterns if any(name.startswith(f"{p}.") for name in names)]
    near = dict.fromkeys(below)  # the name of a module selects nothing, and its parameters are meant
    near |= dict.fromkeys(
        name
        for pattern in patterns
        for name in difflib.get_close_matches(pattern, ["weights", "all", *names], n=4, cutoff=0.5)
    )
    hint = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(names[:6])}"
    if not near and len(names) > 6:
        hint += f" and {len(names) - 6} more"
    return f"select={select!r} matches none of the {len(names)} parameters of {where}; {hint}"
