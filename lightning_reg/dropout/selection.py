"""Which sites: a word, a glob, a class, a predicate, or a list of these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import nn

from lightning_reg.dropout.report import some
from lightning_reg.dropout.sites import DropoutSite
from lightning_reg.select.grammar import Grammar
from lightning_reg.select.wrappers import visible_modules

__all__ = ["SelectSites", "check_select_sites", "select_sites"]

#: Which sites: "built" (with a rate above 0), "all", a glob over names (of the rate or of its module), a
#: module class, a predicate of the site, or a list of these; a glob with a leading "!" takes some out.
SelectSites: TypeAlias = (
    "str | type[nn.Module] | Callable[[DropoutSite], bool]"
    " | Sequence[str | type[nn.Module] | Callable[[DropoutSite], bool]]"
)


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
    default="built",
    predicate="(site) -> bool",
    example="'built' for every site built above 0, 'all', or a glob such as 'encoder.*'",
    words={"built": lambda site: site.built > 0, "all": lambda site: True},
)


def select_sites(
    module: nn.Module, sites: Sequence[DropoutSite], select: SelectSites = "built"
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
    names = [site.name for site in sites]
    if select == "built" and not any(site.built > 0 for site in sites):
        raise ValueError(
            f"{type(module).__name__} is built with every dropout rate at 0: {some(names)}; "
            "name the ones to turn on by `select`, or use select='all'"
        )
    return _SITES.choose(sites, select, module)


def check_select_sites(select: SelectSites) -> None:
    """Refuse what is neither a word, a glob, a module class, a predicate, nor a list of these.

    Raises:
        TypeError: of another kind.
        ValueError: empty.
    """
    _SITES.check(select)
