"""The grammar of selections, one for parameters, modules and dropout sites.

A selection is one of these forms, or a list of them:

- a word that the kind of thing has, such as ``"weights"`` for parameters;
- a glob over names (``*`` also spans dots); with a leading ``!`` it takes things out again, wherever in the
  list it stands; a list of nothing but exclusions takes them out of the default;
- a module class;
- a predicate.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Generic, TypeVar

from torch import nn

from lightning_reg.select.wrappers import unwrapped

__all__ = ["Grammar", "called", "in_short"]

Thing = TypeVar("Thing")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Grammar(Generic[Thing]):
    """How one kind of thing is selected.

    Attributes:
        kind: what it is, in the plural: ``"parameters"``.
        names: all names of a thing, the first one first.
        within: the modules by which a class selects it.
        ask: what a predicate says of it.
        default: what a list of exclusions is taken from.
        predicate: how a predicate is called, for messages.
        example: a selection that is right, for messages.
        words: the words with a meaning of their own, and whether one names a thing.
        glob: whether a glob names a thing; where None, it has to match one of its names.
        never: what no selection names.
    """

    kind: str
    names: Callable[[Thing], Sequence[str]]
    within: Callable[[Thing], Iterable[nn.Module]]
    ask: Callable[[Any, Thing], object]
    default: str
    predicate: str
    example: str
    words: Mapping[str, Callable[[Thing], bool]] = field(default_factory=dict)
    glob: Callable[[Thing, str], bool] | None = None
    never: Callable[[Thing], bool] = lambda thing: False

    def check(self, select: object, argument: str = "select") -> None:
        """Refuse what is none of the forms.

        Args:
            select: the selection.
            argument: what the user calls it.

        Raises:
            TypeError: ``select``, or an entry of it, is of another kind.
            ValueError: it is empty, or an entry is.
        """
        forms = _listed(select)
        if not forms:
            raise ValueError(f"{argument}={select!r} is empty; use {self.example}")
        for form in forms:
            if isinstance(form, str):
                if not form.lstrip("!") and form not in self.words:
                    raise ValueError(f"{argument}={select!r} has an empty pattern; use {self.example}")
            elif isinstance(form, type):
                if not issubclass(form, nn.Module):
                    raise TypeError(
                        f"{argument}={form.__name__} is not understood: it is not a module class; give a "
                        "subclass of torch.nn.Module"
                    )
            elif isinstance(form, nn.Module) or not callable(form):
                words = "".join(f"{word!r}, " for word in self.words if word)
                raise TypeError(
                    f"{argument}={form!r} is not understood; use {words}a glob over names of {self.kind}, a "
                    f"module class, a predicate {self.predicate}, or a list of these"
                )

    def matches(self, thing: Thing, select: object) -> bool:
        """Whether ``select`` names ``thing``, under any of its names."""
        forms = _listed(select)
        wanted = [form for form in forms if not _excludes(form)] or [self.default]
        return (
            not self.never(thing)
            and any(self._matches_one(thing, form) for form in wanted)
            and not any(self._matches_one(thing, form[1:]) for form in forms if _excludes(form))
        )

    def choose(
        self, things: Sequence[Thing], select: object, root: nn.Module, argument: str = "select"
    ) -> list[Thing]:
        """Return the things of ``root`` that ``select`` names.

        Raises:
            ValueError: it names none; the sentence names near misses.
        """
        self.check(select, argument)
        chosen = [thing for thing in things if self.matches(thing, select)]
        if not chosen:
            raise ValueError(self._nothing(things, select, type(unwrapped(root)).__name__, argument))
        return chosen

    def _matches_one(self, thing: Thing, form: Any) -> bool:
        if isinstance(form, str):
            if form in self.words:
                return self.words[form](thing)
            if self.glob is not None:
                return self.glob(thing, form)
            return any(fnmatchcase(name, form) for name in self.names(thing) if name)
        if isinstance(form, type):
            return any(isinstance(module, form) for module in self.within(thing))
        return bool(called(self.ask, form, thing, told=form, name=self.names(thing)[0], how=self.predicate))

    def _nothing(self, things: Sequence[Thing], select: object, where: str, argument: str) -> str:
        names = [name for thing in things for name in self.names(thing) if name]
        if not names:
            return f"{argument}={select!r} matches nothing: {where} has no {self.kind}"
        patterns = [form.lstrip("!") for form in _listed(select) if isinstance(form, str)]
        # the name of a module selects none of what it holds, which is meant
        near = dict.fromkeys(f"{p}.*" for p in patterns if p and any(n.startswith(f"{p}.") for n in names))
        near |= dict.fromkeys(
            name
            for pattern in patterns
            for name in difflib.get_close_matches(
                pattern, [*filter(None, self.words), *names], n=4, cutoff=0.5
            )
        )
        hint = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(names[:6])}"
        if not near and len(names) > 6:
            hint += f" and {len(names) - 6} more"
        return f"{argument}={select!r} matches none of the {len(names)} {self.kind} of {where}; {hint}"


def called(function: Callable[..., Answer], *given: Any, told: object, name: str, how: str) -> Answer:
    """Return what a user's function says of something named ``name``.

    Raises:
        TypeError: it takes other arguments; the sentence says which it is called with.
    """
    try:
        return function(*given)
    except TypeError as error:
        raise TypeError(f"{told!r} failed on {name}; it is called as {how} ({error})") from error


def in_short(given: object) -> str:
    """Return what was given, in few words."""
    if isinstance(given, type):
        return f"the class {given.__name__}"
    text = repr(given)
    return text if len(text) <= 100 and "\n" not in text else f"a {type(given).__name__}"


def _listed(select: object) -> list[Any]:
    return list(select) if isinstance(select, (list, tuple, set, frozenset)) else [select]


def _excludes(form: object) -> bool:
    return isinstance(form, str) and form.startswith("!")
