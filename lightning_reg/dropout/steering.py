"""Steering by attributes alone, and leaving no trace.

A steered module gets, for the run, a subclass of its class that differs in two ways. A copy or a pickle of
it is a module of the built class with the built rates. And where it is a dropout called on a tensor, its
forward under ``torch.compile`` reads the rate from a tensor that is filled once a step, so that one graph
serves a whole schedule; outside of ``torch.compile`` the native forward runs.
"""

from __future__ import annotations

import copyreg
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

__all__ = ["RATE_AFTER", "Rates", "Rule", "SteeredRate", "built_rate", "release", "rule_for", "steer"]

_RECORD = "_lightning_reg_record"
_RATES = "_lightning_reg_rates"
#: The attribute with the rate of what is injected after a module.
RATE_AFTER = "_lightning_reg_rate_after"
_ALPHA = 1.7580993408473766  # −α' of SELU: the value AlphaDropout saturates at, times −1

#: A forward: (module, input, row of rates) -> output.
Rule: TypeAlias = "Callable[[nn.Module, Tensor, Tensor], Tensor]"
#: What follows a forward: (module, its arguments, its output, row of rates) -> output.
After: TypeAlias = "Callable[[nn.Module, tuple[Any, ...], Any, Tensor], Any]"


class SteeredRate(float):
    """A rate on a configuration object; a copy or a pickle of it is the rate as built."""

    built: float

    def __new__(cls, rate: float, built: float) -> SteeredRate:
        """Make a float of ``rate`` that remembers ``built``."""
        self = super().__new__(cls, rate)
        self.built = built
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (float, (self.built,))

    def __deepcopy__(self, memo: object) -> float:
        return self.built


class Rates:
    """Rates and their scales in one tensor, filled once a step; every site at one rate reads one row.

    A row holds (p, 1/(1−p), a, α·a, α·a·p) with AlphaDropout's a = ((α²·p + 1)(1 − p))^−½; the last four
    are 0 at p = 1, where everything is dropped.

    Args:
        device: where the module is.
        rows: how many different rates there are.
    """

    def __init__(self, device: torch.device, rows: int) -> None:
        # float64 so that a float64 input sees the rate unrounded; MPS has none
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.table = torch.zeros(rows, 5, dtype=dtype, device=device)
        self.rows = list(self.table.unbind())
        self._rates: list[float] = []

    def fill(self, rates: list[float]) -> None:
        """Write the rate of each row and what follows from it."""
        if rates == self._rates:
            return
        self._rates = list(rates)
        with torch.no_grad():
            self.table.copy_(torch.tensor([_row(rate) for rate in rates], dtype=self.table.dtype))


def _row(rate: float) -> list[float]:
    if rate == 1.0:
        return [1.0, 0.0, 0.0, 0.0, 0.0]
    a = 1.0 / math.sqrt((_ALPHA**2 * rate + 1.0) * (1.0 - rate))
    return [rate, 1.0 / (1.0 - rate), a, _ALPHA * a, _ALPHA * a * rate]


@dataclass(eq=False)
class _Record:
    """What a module was before it was steered."""

    built_class: type[nn.Module]
    built: dict[str, Any] = field(default_factory=dict)
    rule: Rule | None = None
    after: After | None = None
    holders: dict[str, object] = field(default_factory=dict)


def built_rate(owner: object, attribute: str, value: float) -> float:
    """Return the rate as built of an attribute that may be steered at the moment."""
    if isinstance(value, SteeredRate):
        return value.built
    record = _record(owner)
    return float(record.built.get(attribute, value) if record is not None else value)


def rule_for(module: nn.Module) -> Rule | None:
    """Return the forward with a tensor for a rate, for a dropout class whose forward is known."""
    record = _record(module)
    cls = record.built_class if record is not None else type(module)
    for base, rule in _RULES.items():
        if issubclass(cls, base) and cls.forward is base.forward:
            return rule
    for base in cls.__mro__:
        named = _RULES_ELSEWHERE.get((base.__module__.partition(".")[0], base.__name__))
        if named is not None and cls.forward is base.forward:
            return named
    return None


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
        rates: the row of :class:`Rates` for ``rule`` or ``after``.

    Raises:
        ValueError: somebody else steers it.
    """
    record = _record(module)
    if record is None:
        record = _Record(type(module))
        module.__dict__[_RECORD] = record
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
        module.__dict__[_RATES + ("_after" if after is not None else "")] = rates
    module.__class__ = _steered_class(record.built_class, record.rule, record.after)


def release(module: nn.Module, attribute: str, holder: object) -> None:
    """Put back the attribute as built and, with the last one, the class. A second call does nothing."""
    record = _record(module)
    if record is None or record.holders.get(attribute) is not holder:
        return
    del record.holders[attribute]
    value = record.built.pop(attribute)
    if value is _ABSENT:
        module.__dict__.pop(attribute, None)
        record.after = None
        module.__dict__.pop(_RATES + "_after", None)
    else:
        module.__dict__[attribute] = value
    if record.holders:
        module.__class__ = _steered_class(record.built_class, record.rule, record.after)
        return
    for name in (_RECORD, _RATES, _RATES + "_after"):
        module.__dict__.pop(name, None)
    module.__class__ = record.built_class


_ABSENT = object()


def _record(owner: object) -> _Record | None:
    return owner.__dict__.get(_RECORD) if isinstance(owner, nn.Module) else None


_classes: dict[tuple[type[nn.Module], Rule | None, After | None], type[nn.Module]] = {}


def _steered_class(built: type[nn.Module], rule: Rule | None, after: After | None) -> type[nn.Module]:
    """The subclass of ``built`` for the run: one a class, so that compiled graphs see one type."""
    key = (built, rule, after)
    if key in _classes:
        return _classes[key]
    native = built.forward
    body: dict[str, Any] = {
        "__module__": built.__module__,
        "__qualname__": built.__qualname__,
        "__doc__": built.__doc__,
        "__reduce_ex__": _reduce_as_built,
    }
    if rule is not None and after is None:

        def forward(self: nn.Module, input: Tensor) -> Tensor:
            if torch.compiler.is_compiling() and self.training:
                return rule(self, input, self._lightning_reg_rates)  # type: ignore[arg-type]
            return native(self, input)  # type: ignore[no-any-return]

        body["forward"] = forward
    elif after is not None:

        def forward_then(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if rule is not None and torch.compiler.is_compiling() and self.training:
                output = rule(self, args[0], self._lightning_reg_rates)  # type: ignore[arg-type]
            else:
                output = native(self, *args, **kwargs)
            return after(self, args, output, self._lightning_reg_rates_after) if self.training else output  # type: ignore[arg-type]

        body["forward"] = forward_then
    metaclass: Any = type(built)
    _classes[key] = metaclass(built.__name__, (built,), body)
    return _classes[key]


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
        for name in (_RECORD, _RATES, _RATES + "_after"):
            state.pop(name, None)
        for attribute, value in record.built.items():
            if value is _ABSENT:
                state.pop(attribute, None)
            else:
                state[attribute] = value
        rest[0] = state
    return (function, arguments, *rest)


def element(input: Tensor, rates: Tensor) -> Tensor:
    """Drop single values; the same operations as torch's own decomposition of ``dropout``."""
    return (torch.rand_like(input) > rates[0]) * input * rates[1]


def _noise(input: Tensor, shape: list[int], rates: Tensor) -> Tensor:
    """1 where kept and 0 where dropped, one draw for each entry of ``shape``."""
    return torch.rand(shape, device=input.device) >= rates[0]


def channel(input: Tensor, rates: Tensor) -> Tensor:
    """Drop feature maps: ``(N, C, ...)``, one draw for each ``(n, c)``."""
    shape = [*input.shape[:2], *[1] * (input.dim() - 2)]
    return _noise(input, shape, rates) * input * rates[1]


def row(input: Tensor, rates: Tensor) -> Tensor:
    """Drop samples: ``(N, ...)``, one draw for each ``n``."""
    return _noise(input, [input.shape[0], *[1] * (input.dim() - 1)], rates) * input * rates[1]


def _finish(module: nn.Module, input: Tensor, output: Tensor) -> Tensor:
    return input.copy_(output) if getattr(module, "inplace", False) else output


def _element_rule(module: nn.Module, input: Tensor, rates: Tensor) -> Tensor:
    return _finish(module, input, element(input, rates))


def _channel_rule(module: nn.Module, input: Tensor, rates: Tensor) -> Tensor:
    return _finish(module, input, channel(input, rates))


def _unbatched_rule(dims: int) -> Rule:
    def rule(module: nn.Module, input: Tensor, rates: Tensor) -> Tensor:
        # Dropout1d and Dropout3d take (C, ...) without a batch; Dropout2d reads it as (N, C, L)
        if input.dim() == dims:
            return _finish(module, input, channel(input.unsqueeze(0), rates).squeeze(0))
        return _channel_rule(module, input, rates)

    return rule


def _alpha(input: Tensor, kept: Tensor, rates: Tensor) -> Tensor:
    # a·x·m + α'·a·(m − 1) + α'·a·p with m = 1 where kept, so that dropped values become −α'·a·(1 − p)
    mask = kept.to(input.dtype)
    return input * (mask * rates[2]) + ((mask - 1) * rates[3] + rates[4])


def _alpha_rule(module: nn.Module, input: Tensor, rates: Tensor) -> Tensor:
    return _finish(module, input, _alpha(input, torch.rand_like(input) >= rates[0], rates))


def _feature_alpha_rule(module: nn.Module, input: Tensor, rates: Tensor) -> Tensor:
    kept = _noise(input, [*input.shape[:2], *[1] * (input.dim() - 2)], rates)
    return _finish(module, input, _alpha(input, kept, rates))


def _drop_path_rule(module: nn.Module, input: Tensor, rates: Tensor) -> Tensor:
    if getattr(module, "scale_by_keep", True):
        return row(input, rates)
    return _noise(input, [input.shape[0], *[1] * (input.dim() - 1)], rates) * input


def _stochastic_depth_rule(module: nn.Module, input: Tensor, rates: Tensor) -> Tensor:
    if module.mode == "row":
        return row(input, rates)
    return _noise(input, [1] * input.dim(), rates) * input * rates[1]


_RULES: dict[type[nn.Module], Rule] = {
    nn.Dropout: _element_rule,
    nn.Dropout1d: _unbatched_rule(2),
    nn.Dropout2d: _channel_rule,
    nn.Dropout3d: _unbatched_rule(4),
    nn.AlphaDropout: _alpha_rule,
    nn.FeatureAlphaDropout: _feature_alpha_rule,
}

_RULES_ELSEWHERE: dict[tuple[str, str], Rule] = {
    ("timm", "DropPath"): _drop_path_rule,
    ("torchvision", "StochasticDepth"): _stochastic_depth_rule,
}
