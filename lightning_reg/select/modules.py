"""Which modules: those whose calls are penalized, or after which something is dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from lightning_reg.select.grammar import Grammar
from lightning_reg.select.wrappers import places

__all__ = ["ModuleSelect", "SelectedModule", "select_modules"]

#: A glob over module names, ``""`` for the root itself, a module class, a predicate
#: ``(name, module) -> bool``, or a list of these; a glob with a leading ``!`` takes modules out again.
ModuleSelect: TypeAlias = (
    "str | type[nn.Module] | Callable[[str, nn.Module], bool]"
    " | Sequence[str | type[nn.Module] | Callable[[str, nn.Module], bool]]"
)


@dataclass(frozen=True, eq=False)
class SelectedModule:
    """A module that was selected.

    Attributes:
        names: every name that the user knows it by, without what wrappers add; ``("",)`` for the root.
        module: the module.
        outer: the outermost wrapper around it, which is what the modules outside call; often itself.
        around: the modules from the root to it at its first place, itself included.
    """

    names: tuple[str, ...]
    module: nn.Module
    outer: nn.Module
    around: tuple[nn.Module, ...]

    @property
    def name(self) -> str:
        """Its first name."""
        return self.names[0]


def select_modules(
    root: nn.Module, select: ModuleSelect, argument: str = "modules", with_root: bool = True
) -> list[SelectedModule]:
    """Return the modules of ``root`` that ``select`` names, each once, in module order.

    Args:
        root: the module whose modules are named.
        select: which; ``"*"`` is every module but the root.
        argument: what the user calls ``select``.
        with_root: whether the root can be selected, by ``""``, its class or a predicate.

    Raises:
        ValueError: none matches; the sentence names near misses.
        TypeError: ``select`` is none of the forms.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> [chosen.name for chosen in select_modules(net, nn.Linear)]
    ['0', '2']
    >>> [chosen.name for chosen in select_modules(net, ["*", "!0"])]
    ['1', '2']
    """
    found: dict[int, SelectedModule] = {}
    for place in places(root):
        if place.wraps or not (place.name or with_root):
            continue
        first = found.get(id(place.module))
        names = dict.fromkeys((*(first.names if first else ()), place.name))
        at = first or place
        found[id(place.module)] = SelectedModule(tuple(names), place.module, at.outer, at.around)
    grammar = _MODULES if with_root else _INNER_MODULES
    return grammar.choose(list(found.values()), select, root, argument)


_INNER_MODULES: Grammar[SelectedModule] = Grammar(
    kind="modules",
    names=lambda chosen: chosen.names,
    within=lambda chosen: (chosen.module,),
    ask=lambda predicate, chosen: predicate(chosen.name, chosen.module),
    default="*",
    predicate="(name, module) -> bool",
    example="a glob such as 'encoder.*', or a class such as torch.nn.ReLU",
)
_MODULES: Grammar[SelectedModule] = Grammar(
    **{**vars(_INNER_MODULES), "words": {"": lambda chosen: "" in chosen.names}}
)
