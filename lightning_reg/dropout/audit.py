"""Which rates a forward really uses: give each a value of its own and look where the values arrive.

Every candidate is set to a tiny number that no other has, of a ``float`` subclass that survives
arithmetic (``1 - rate``) and reports comparisons (``random.random() < rate``). One forward runs under a
``TorchFunctionMode`` that sees every call of a torch function. What arrives is live; what does not is dead.
Randomness that no candidate reaches is reported by the module it happens in.
"""

from __future__ import annotations

import itertools
import random
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from lightning_reg.dropout.isolation import eager, shapeless, training_modes, undisturbed
from lightning_reg.dropout.sites import DropoutSite, Kind, candidates
from lightning_reg.select.wrappers import visible_modules

__all__ = ["Audit", "audit"]


@dataclass(frozen=True, eq=False)
class Audit:
    """What one forward showed.

    Attributes:
        sites: the rates it used, verified, in module order.
        dead: the names of candidates that it did not use.
        unsteered: other randomness, as sentences: where and what.
        outputs: for each module called, its arguments' and its outputs' shapes (None: not a tensor).
    """

    sites: list[DropoutSite]
    dead: list[str]
    unsteered: list[str]
    outputs: dict[int, list[tuple[Any, Any]]]


def audit(module: nn.Module, call: Callable[[], object]) -> Audit:
    """Run ``call`` once, in training mode, and leave no trace of it.

    Raises:
        ValueError: a lazy module has no shape yet: to give it one could not be undone.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0))
    >>> [site.name for site in audit(net, lambda: net(torch.ones(1, 2))).sites]
    ['1.p']
    """
    if waiting := shapeless(module):
        raise ValueError(
            f"{waiting[0]} has no shape yet; run a batch through {type(module).__name__} first, which gives "
            "its lazy modules their shapes"
        )
    sites = candidates(module)
    watch = _Watch(module, sites)
    with ExitStack() as stack:
        stack.enter_context(undisturbed(module))
        stack.enter_context(training_modes(module))
        stack.enter_context(eager(module))
        stack.enter_context(watch.sentinels())
        stack.enter_context(watch.hooks())
        stack.enter_context(warnings.catch_warnings())
        # the wrapper's extra hook call is harmless: only its inner module is looked up by name
        warnings.filterwarnings("ignore", message=".*when there are global hooks on modules")
        stack.enter_context(watch)
        call()
        watch.look_at_other_generators()
    watch.report_plain()
    live = [
        replace(site, kind=watch.kind_of(i), verified=True, called=i not in watch.read_outside)
        for i, site in enumerate(sites)
        if i in watch.live and i not in watch.plain
    ]
    dead = [site.name for i, site in enumerate(sites) if i not in watch.live]
    return Audit(live, dead, list(dict.fromkeys(watch.unsteered.values())), watch.outputs)


class _Sentinel(float):
    """A number that knows which site it came from, and passes that on through arithmetic."""

    site: int
    watch: _Watch

    @classmethod
    def of(cls, value: float, site: int, watch: _Watch) -> _Sentinel:
        self = cls(value)
        self.site, self.watch = site, watch
        return self

    def _compare(self, other: object, operation: str) -> Any:
        result = getattr(float, operation)(self, other)
        # against 0 or 1 is a test whether to drop at all; against another number, a draw
        if result is not NotImplemented and other not in (0, 1):
            self.watch.compared(self.site)
        return result

    def __float__(self) -> float:
        self.watch.converted(self.site)
        return float.__float__(self)

    def __lt__(self, other: object) -> bool:
        return self._compare(other, "__lt__")  # type: ignore[no-any-return]

    def __le__(self, other: object) -> bool:
        return self._compare(other, "__le__")  # type: ignore[no-any-return]

    def __gt__(self, other: object) -> bool:
        return self._compare(other, "__gt__")  # type: ignore[no-any-return]

    def __ge__(self, other: object) -> bool:
        return self._compare(other, "__ge__")  # type: ignore[no-any-return]


def _arithmetic(operation: str) -> Callable[..., Any]:
    def method(self: _Sentinel, *others: Any) -> Any:
        result = getattr(float, operation)(self, *others)
        return _Sentinel.of(result, self.site, self.watch) if isinstance(result, float) else result

    return method


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "rpow"):
    setattr(_Sentinel, f"__{_name}__", _arithmetic(f"__{_name}__"))
for _name in ("neg", "pos", "abs"):
    setattr(_Sentinel, f"__{_name}__", _arithmetic(f"__{_name}__"))

_DROPOUTS: dict[str, Kind] = {
    "dropout": "element",
    "dropout_": "element",
    "native_dropout": "element",
    "dropout1d": "channel",
    "dropout2d": "channel",
    "dropout3d": "channel",
    "feature_dropout": "channel",
    "feature_dropout_": "channel",
    "alpha_dropout": "alpha",
    "alpha_dropout_": "alpha",
    "feature_alpha_dropout": "feature_alpha",
    "feature_alpha_dropout_": "feature_alpha",
}
_ATTENTION = frozenset({"scaled_dot_product_attention", "multi_head_attention_forward"})
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
_DRAWS = frozenset(
    {
        *("rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm"),
        *("bernoulli", "bernoulli_", "multinomial", "poisson", "normal", "normal_", "uniform_", "random_"),
        *("exponential_", "geometric_", "cauchy_", "log_normal_", "gumbel_softmax", "rrelu", "rrelu_"),
    }
)


class _Watch(TorchFunctionMode):
    """Sees every torch function of the forward, and which sentinels reach it."""

    def __init__(self, module: nn.Module, sites: list[DropoutSite]) -> None:
        super().__init__()
        self.root = module
        self.sites = sites
        self.live: dict[int, Kind] = {}
        #: sites whose owner takes no float but plain ones: they can be watched, and not steered
        self.plain: set[int] = set()
        self.read_outside: set[int] = set()
        self.unsteered: dict[int, str] = {}
        self.outputs: dict[int, list[tuple[Any, Any]]] = {}
        self.names = {id(m): path for path, m in reversed(list(visible_modules(module)))}
        self.stack: list[nn.Module] = []
        # so small that nothing is dropped, and in no simple proportion to one another
        self.values = [2.0**-30 * (1.0 + (i + 1) * 0.6180339887498949 % 1.0) for i in range(len(sites))]
        self.by_value: dict[float, int] = {}
        for i, value in enumerate(self.values):
            self.by_value.update({value: i, 1.0 - value: i, 1.0 - (1.0 - value): i})
        self.converted_in: dict[int, int] = {}
        self.reports = itertools.count()
        self.drawn: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self.derived: dict[int, weakref.ref[Tensor]] = {}
        self.generators = _other_generators()
        self.compared_since = False

    def sentinels(self) -> Any:
        """Set every candidate to its own number; put the values back on leaving."""
        return _Sentinels(self)

    def hooks(self) -> ExitStack:
        """Follow which module's forward is running."""
        stack = ExitStack()
        before = register_module_forward_pre_hook(self._enter)
        stack.callback(before.remove)
        after = register_module_forward_hook(self._leave)
        stack.callback(after.remove)
        return stack

    def kind_of(self, site: int) -> Kind:
        """The kind of its class, unless the rate was seen to act otherwise."""
        seen, known = self.live[site], self.sites[site].kind
        if known == "unknown" or seen == "attention":
            return seen
        return known

    def compared(self, site: int) -> None:
        """A draw was compared with the rate in Python."""
        self.compared_since = True
        self._use(site, "layer")

    def converted(self, site: int) -> None:
        """The rate was turned into a plain number in the module that is running: ``float(rate * area)``."""
        self.converted_in[id(self.stack[-1] if self.stack else self.root)] = site

    def look_at_other_generators(self) -> None:
        """Report Python's and numpy's generators, if they were drawn from and no rate was compared."""
        now = _other_generators()
        for name, (state, before) in {k: (now[k], self.generators.get(k)) for k in now}.items():
            if state != before and not self.compared_since:
                self._report(f"{name} is drawn from")
        self.generators = now
        self.compared_since = False

    def report_plain(self) -> None:
        """Report the rates in use whose owner takes no number that remembers the built one."""
        for i in sorted(self.plain & self.live.keys()):
            site = self.sites[i]
            self.unsteered[next(self.reports)] = (
                f"{site.name} ({type(site.owner).__name__}): dropout with a rate of {site.built:g} where "
                "only plain numbers are taken"
            )

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        values = list(_flat((*args, *kwargs.values())))
        reached = [i for i in map(self._site_of, values) if i is not None]
        output = func(*args, **kwargs)
        if name in _DROPOUTS or name in _ATTENTION or name in _RECURRENT:
            self._dropout(name, args, kwargs, reached)
        elif reached:
            kind: Kind = "row" if name in _DRAWS else "unknown"
            for value in values:
                if isinstance(value, Tensor) and self._is(self.drawn, value):
                    self.unsteered.pop(self.drawn[id(value)][1], None)
                    kind = "layer" if value.dim() == 0 or value.numel() == 1 else "row"
            for site in reached:
                self._use(site, kind)
            for tensor in _tensors(output):
                self.derived[id(tensor)] = weakref.ref(tensor)
        elif name in _DRAWS and not any(isinstance(v, Tensor) and self._is(self.derived, v) for v in values):
            converted = self.converted_in.get(id(self.stack[-1] if self.stack else self.root))
            if converted is not None:
                self._use(converted, "unknown")
                return output
            index = self._report(name)
            for tensor in _tensors(output):
                self.drawn[id(tensor)] = (weakref.ref(tensor), index)
        return output

    def _dropout(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], reached: list[int]) -> None:
        if not _training(name, args, kwargs):
            return
        kind = _DROPOUTS.get(name, "attention" if name in _ATTENTION else "recurrent")
        for site in reached:
            self._use(site, kind)
        rate = _literal(name, args, kwargs)
        if not reached and rate:
            self._report(f"{name} with a rate of {rate:g} in the code")

    def _use(self, site: int, kind: Kind) -> None:
        if self.live.get(site, "unknown") == "unknown":
            self.live[site] = kind
        owner = self.sites[site].owner
        if not self.stack or self.stack[-1] is not owner:
            self.read_outside.add(site)

    def _report(self, what: str) -> int:
        where = self.stack[-1] if self.stack else self.root
        path = self.names.get(id(where), "")
        index = next(self.reports)
        self.unsteered[index] = f"{path or 'the root'} ({type(where).__name__}): {what}"
        return index

    def _site_of(self, value: object) -> int | None:
        if isinstance(value, _Sentinel):
            return value.site
        return self.by_value.get(value) if type(value) is float else None

    @staticmethod
    def _is(table: dict[int, Any], tensor: Tensor) -> bool:
        entry = table.get(id(tensor))
        reference = entry[0] if isinstance(entry, tuple) else entry
        return reference is not None and reference() is tensor

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.look_at_other_generators()
        self.stack.append(module)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.look_at_other_generators()
        if self.stack and self.stack[-1] is module:
            self.stack.pop()
        before = args[0].shape if args and isinstance(args[0], Tensor) else None
        after = output.shape if isinstance(output, Tensor) else None
        self.outputs.setdefault(id(module), []).append((before, after))


class _Sentinels:
    def __init__(self, watch: _Watch) -> None:
        self.watch = watch
        self.built: list[tuple[DropoutSite, Any]] = []

    def __enter__(self) -> None:
        for i, (site, value) in enumerate(zip(self.watch.sites, self.watch.values, strict=True)):
            built = site._read()
            if not _written(site, _Sentinel.of(value, i, self.watch)):
                self.watch.plain.add(i)  # an OmegaConf container, or read-only: a frozen dataclass
                if not _written(site, value):
                    continue
            self.built.append((site, built))

    def __exit__(self, *error: object) -> None:
        for site, value in self.built:
            site._write(value)


def _written(site: DropoutSite, value: float) -> bool:
    """Write a rate, if its owner takes it."""
    try:
        site._write(value)
    except Exception:  # each library of configurations has errors of its own
        return False
    return True


def _training(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this call of a dropout function drops."""
    for key in ("training", "train"):
        if key in kwargs:
            return bool(kwargs[key])
    if name in _DROPOUTS:
        return bool(args[2]) if len(args) > 2 else True
    return True


def _literal(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """The rate in a call that no site reaches."""
    if name in _DROPOUTS:
        value = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    elif name == "scaled_dot_product_attention":
        value = kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0)
    elif name == "multi_head_attention_forward":
        value = kwargs.get("dropout_p", args[10] if len(args) > 10 else 0.0)
    else:
        value = 0.0  # an RNN of one layer, or of rate 0: its module is a site of its own
    return float(value)


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def _tensors(output: Any) -> Iterator[Tensor]:
    yield from (value for value in _flat((output,)) if isinstance(value, Tensor))


def _other_generators() -> dict[str, Any]:
    states: dict[str, Any] = {"Python's random": random.getstate()}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        kind, keys, *position = numpy.random.get_state()
        states["numpy.random"] = (kind, keys.tobytes(), *position)
    return states
