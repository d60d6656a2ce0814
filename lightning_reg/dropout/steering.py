"""Steering by attributes alone, and leaving no trace.

A steered module gets, for the run, a subclass of its class that differs in three ways. A copy or a pickle of
it is a module of the built class with the built rates. Where it is a dropout called on a tensor, its forward
under ``torch.compile`` reads the rate from a tensor that is filled once a step, so that one graph serves a
whole schedule; outside of ``torch.compile`` the native forward runs. And ``torch.jit.script`` finds the
module as built: it is let go until :func:`take_again`.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_reg.dropout.rules import Rule, rule_of_class

__all__ = [
    "RATE_AFTER",
    "SteeredRate",
    "built_rate",
    "observe",
    "release",
    "rule_for",
    "steer",
    "take_again",
    "unobserve",
]

_RECORD = "_lightning_reg_record"
_RATES = "_lightning_reg_rates"
_AFTER_RATES = "_lightning_reg_rates_after"
#: The attribute with the rate of what is injected after a module.
RATE_AFTER = "_lightning_reg_rate_after"

#: What follows a forward: (module, its arguments, its output, row of rates) -> output.
After: TypeAlias = "Callable[[nn.Module, tuple[Any, ...], Any, Tensor], Any]"
#: What goes on around a forward.
Around: TypeAlias = "Callable[[nn.Module], AbstractContextManager[None]]"


class SteeredRate(float):
    """A rate on a configuration object; a copy or a pickle of it is the rate as built."""

    def __new__(cls, rate: float, built: float) -> SteeredRate:
        """Make a float of ``rate`` that remembers ``built``."""
        self = super().__new__(cls, rate)
        self.built = built
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (type(self.built), (self.built,))

    def __deepcopy__(self, memo: object) -> float:
        return self.built

    built: float
    item = float.__float__  # as numpy's numbers have it


@dataclass(eq=False)
class _Record:
    """What a module was before it was steered."""

    built_class: type[nn.Module]
    built: dict[str, Any] = field(default_factory=dict)
    rule: Rule | None = None
    after: After | None = None
    around: Around | None = None
    holders: dict[str, object] = field(default_factory=dict)

    @property
    def steered_class(self) -> type[nn.Module]:
        return _steered_class(self.built_class, self.rule, self.after, self.around is not None)


#: Modules let go for ``torch.jit.script``: the module, its record, and what it had besides.
_paused: list[tuple[nn.Module, dict[str, Any]]] = []


def built_rate(owner: object, attribute: Any, value: Any) -> float:
    """Return the rate as built of an attribute that may be steered at the moment."""
    if isinstance(value, SteeredRate):
        return float(value.built)
    record = _record(owner)
    return float(record.built.get(attribute, value) if record is not None else value)


def rule_for(module: nn.Module) -> Rule | None:
    """Return the forward with a tensor for a rate, for a dropout module whose forward is known."""
    record = _record(module)
    return rule_of_class(record.built_class if record is not None else type(module))


def steer(
    module: nn.Module,
    attribute: str,
    holder: object,
    *,
    rule: Rule | None = None,
    after: After | None = None,
    rates: Tensor | None = None,
) -> None:
    """Take over one attribute of ``module`` until :func:`release`.

    Args:
        module: owner of the attribute.
        attribute: where the rate is; what it holds now is what :func:`release` puts back.
        holder: who steers; one attribute has one holder.
        rule: forward with a tensor for a rate, under ``torch.compile``.
        after: what to do to the module's output (:mod:`lightning_reg.dropout.inject`).
        rates: the row of :class:`~lightning_reg.dropout.rules.Rates` for ``rule`` or ``after``.

    Raises:
        ValueError: somebody else steers it.
    """
    record = _recorded(module)
    if record.holders.get(attribute, holder) is not holder:
        raise ValueError(
            f"two callbacks steer {type(module).__name__}.{attribute}; give them disjoint selections"
        )
    if attribute not in record.holders:
        record.built[attribute] = module.__dict__.get(attribute, _ABSENT)
    record.holders[attribute] = holder
    if rule is not None:
        record.rule = rule
    if after is not None:
        record.after = after
    if rates is not None:
        module.__dict__[_RATES if after is None else _AFTER_RATES] = rates
    _become(module, record.steered_class)


def release(module: nn.Module, attribute: str, holder: object) -> None:
    """Put back the attribute as built and, with the last one, the class. A second call does nothing."""
    take_again(module)
    record = _record(module)
    if record is None or record.holders.get(attribute) is not holder:
        return
    del record.holders[attribute]
    value = record.built.pop(attribute)
    if value is _ABSENT:
        module.__dict__.pop(attribute, None)
        record.after = None
        module.__dict__.pop(_AFTER_RATES, None)
    else:
        module.__dict__[attribute] = value
    _settle(module, record)


def observe(module: nn.Module, around: Around) -> None:
    """Run each forward of ``module`` inside ``around(module)``, until :func:`unobserve`."""
    record = _recorded(module)
    record.around = around
    _become(module, record.steered_class)


def unobserve(module: nn.Module) -> None:
    """Undo :func:`observe`."""
    take_again(module)
    record = _record(module)
    if record is not None:
        record.around = None
        _settle(module, record)


def take_again(module: nn.Module | None = None) -> None:
    """Steer again what was let go for ``torch.jit.script``: one module, or all."""
    for entry in [e for e in _paused if module is None or e[0] is module]:
        _paused.remove(entry)
        paused, entries = entry
        paused.__dict__.update(entries)
        _become(paused, entries[_RECORD].steered_class)


_ABSENT = object()


def _record(owner: object) -> _Record | None:
    return owner.__dict__.get(_RECORD) if isinstance(owner, nn.Module) else None


def _recorded(module: nn.Module) -> _Record:
    record = _record(module)
    if record is None:
        record = module.__dict__[_RECORD] = _Record(type(module))
    return record


def _settle(module: nn.Module, record: _Record) -> None:
    """Give the module the class that is left to it: the built one, if nobody holds it."""
    if record.holders or record.around is not None:
        _become(module, record.steered_class)
        return
    for name in (_RECORD, _RATES, _AFTER_RATES):
        module.__dict__.pop(name, None)
    _become(module, record.built_class)


def _become(module: nn.Module, cls: type[nn.Module]) -> None:
    object.__setattr__(module, "__class__", cls)  # Fabric's wrapper would pass it on to the module inside


_classes: dict[tuple[type[nn.Module], Rule | None, After | None, bool], type[nn.Module]] = {}


def _steered_class(
    built: type[nn.Module], rule: Rule | None, after: After | None, around: bool
) -> type[nn.Module]:
    """The subclass of ``built`` for the run: one a class, so that compiled graphs see one type."""
    key = (built, rule, after, around)
    if key in _classes:
        return _classes[key]
    native = built.forward
    body: dict[str, Any] = {
        "__module__": built.__module__,
        "__qualname__": built.__qualname__,
        "__doc__": built.__doc__,
        "__reduce_ex__": _reduce_as_built,
        "__prepare_scriptable__": _as_built_for_scripting,
    }
    if after is not None:
        instead = getattr(after, "instead", False)  # takes the forward itself, not what it returned

        def forward_then(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if instead and self.training:
                rates: Any = self._lightning_reg_rates_after
                return after(self, args, lambda: native(self, *args, **kwargs), rates)
            if rule is not None and torch.compiler.is_compiling() and self.training:
                output = rule(self, args[0], self._lightning_reg_rates)  # type: ignore[arg-type]
            else:
                output = native(self, *args, **kwargs)
            return after(self, args, output, self._lightning_reg_rates_after) if self.training else output  # type: ignore[arg-type]

        body["forward"] = forward_then
    elif rule is not None:

        def forward(self: nn.Module, input: Tensor) -> Tensor:
            if torch.compiler.is_compiling() and self.training:
                return rule(self, input, self._lightning_reg_rates)  # type: ignore[arg-type]
            return native(self, input)  # type: ignore[no-any-return]

        body["forward"] = forward
    if around:
        inner = body.get("forward", native)

        def forward_inside(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            record = _record(self)
            if torch.compiler.is_compiling() or record is None or record.around is None:
                return inner(self, *args, **kwargs)
            with record.around(self):
                return inner(self, *args, **kwargs)

        body["forward"] = forward_inside
    metaclass: Any = type(built)
    _classes[key] = metaclass(built.__name__, (built,), body)
    return _classes[key]


def _as_built_for_scripting(self: nn.Module) -> nn.Module:
    """Let go of a module for ``torch.jit.script``, which reads its class's source and its attributes."""
    record: _Record = self.__dict__[_RECORD]
    ours = [name for name in (_RECORD, _RATES, _AFTER_RATES) if name in self.__dict__]
    entries = {name: self.__dict__.pop(name) for name in ours}
    for attribute, value in record.built.items():
        if value is _ABSENT:
            entries[attribute] = self.__dict__.pop(attribute, 0.0)
        else:
            entries[attribute] = self.__dict__[attribute]
            self.__dict__[attribute] = value
    _become(self, record.built_class)
    _paused.append((self, entries))
    return self


def _reduce_as_built(self: nn.Module, protocol: Any) -> Any:
    """Reduce to a module of the built class with the built rates (``copy`` and ``pickle`` come here)."""
    record: _Record = self.__dict__[_RECORD]
    reduced: Any = record.built_class.__reduce_ex__(self, protocol)
    function, arguments, *rest = reduced
    steered = type(self)
    arguments = tuple(record.built_class if argument is steered else argument for argument in arguments)
    if function is copyreg.__newobj__:  # type: ignore[attr-defined]
        function = object.__new__  # pickle refuses __newobj__ for another class than the object's
    if rest and isinstance(rest[0], dict):
        state = dict(rest[0])
        for name in (_RECORD, _RATES, _AFTER_RATES):
            state.pop(name, None)
        for attribute, value in record.built.items():
            if value is _ABSENT:
                state.pop(attribute, None)
            else:
                state[attribute] = value
        rest[0] = state
    return (function, arguments, *rest)
