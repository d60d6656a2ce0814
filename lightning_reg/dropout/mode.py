"""What is seen of a watched forward: every torch function, and the numbers that reach it."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from lightning_reg.dropout.calls import (
    COMPARISONS,
    COUNTED,
    DECISIONS,
    DRAWS,
    FILLS,
    MASKS,
    READS,
    count,
    draws_inside,
    first_number,
    flat,
    is_training,
    kind_of,
    mapped,
    name_of,
    plain_numbers,
    rate_of,
    tensors,
)
from lightning_reg.dropout.known import Kind
from lightning_reg.dropout.seen import Seen
from lightning_reg.dropout.sites import DropoutSite
from lightning_reg.dropout.steering import RATE_AFTER
from lightning_reg.dropout.unsteered import Unsteered
from lightning_reg.dropout.watched import is_watched, plain, site_of, wanted, watched

if TYPE_CHECKING:
    from lightning_reg.dropout.watch import Watch

__all__ = ["Mode", "running"]


class Mode(TorchFunctionMode):
    """Sees every torch function of the watched forward, and which numbers reach it."""

    def __init__(self, watch: Watch, sites: list[DropoutSite]) -> None:
        super().__init__()
        self.watch = watch
        self.sites = sites
        self.unsteered = Unsteered(watch.root, watch.names)
        self.converted_in: dict[int, tuple[int, float]] = {}
        #: what is made of draws, rates and constants alone: whether drawn, and which sites went into it
        self.noise: dict[int, tuple[weakref.ref[Tensor], bool, frozenset[int]]] = {}
        self.numbers_drawn: set[float] = set()
        for tensor in watch.named_tensors:
            self._made(tensor, False)

    @contextmanager
    def numbers(self) -> Iterator[None]:
        """Put the watched numbers in place, and afterwards the plain ones back."""
        placed: list[tuple[DropoutSite, Any, Any]] = []
        for i, site in enumerate(self.sites):
            before = site._read()
            asked = self._asked(site)
            number = watched(before, i, self, None if asked is None else site._raw(asked))
            if number is not None and site.takes(number) and site._read() is number:
                placed.append((site, before, number))
            else:
                self.watch.refused.add(site.key)
        try:
            yield
        finally:
            for site, before, number in placed:
                if site._read() is number:  # unless the program wrote another
                    site._write(before)

    @contextmanager
    def scripts(self) -> Iterator[None]:
        """See the calls of script functions, too, which no mode sees."""
        cls: Any = torch.jit.ScriptFunction
        call = cls.__call__

        def seen(function: Any, *args: Any, **kwargs: Any) -> Any:
            if draws_inside(function):
                for site in {i for v in (*args, *kwargs.values()) if (i := site_of(v, self)) is not None}:
                    self._use(site, "unknown")
                args, kwargs = mapped(wanted, args), mapped(wanted, kwargs)
            return call(function, *args, **kwargs)

        cls.__call__ = seen
        try:
            yield
        finally:
            cls.__call__ = call

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        values = list(flat((*args, *kwargs.values())))
        reached = {i for v in values if (i := site_of(v, self)) is not None}
        kind = kind_of(name)
        before = count(args[0]) if kind is not None and reached and args else None
        noisy = name in DECISIONS and any(self._tags(v)[0] for v in values)
        if reached and (
            kind is not None or name in DRAWS or noisy
        ):  # it is a rate: from here on the one wanted
            output = func(*mapped(wanted, args), **mapped(wanted, kwargs))
        else:
            output = func(*args, **kwargs)
        if kind is not None:
            self._dropout(name, kind, args, kwargs, reached, before, output)
        else:
            self._other(name, values, reached, output)
        return output

    def _dropout(
        self,
        name: str,
        kind: Kind,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        reached: set[int],
        before: int | None,
        output: Any,
    ) -> None:
        if not is_training(name, args, kwargs):
            return
        reached |= {i for v in flat((*args, *kwargs.values())) for i in self._tags(v)[1]}
        rate = rate_of(name, args, kwargs)
        where = running()
        if not reached and where is not None and id(where) in self.converted_in:
            site, value = self.converted_in[id(where)]
            reached = {site} if rate == value else reached
        for site in reached:
            self._use(site, kind)
            if kind in COUNTED and before is not None:
                seen = self.watch.seen[self.sites[site].key]
                seen.kept += count(output) or 0
                seen.offered += before
        self._name_tensors((*args, *kwargs.values()))
        if not reached and rate and not is_watched(rate) and not self._belongs(where, rate):
            self.unsteered.literal(where, name, rate)

    def _other(self, name: str, values: list[Any], reached: set[int], output: Any) -> None:
        """Follow what was drawn: a draw by a rate, or a comparison with one, makes the number a rate."""
        given = [v for v in values if isinstance(v, Tensor)]
        tags = [self._tags(v) for v in given]
        sites = reached.union(*(held for _, held in tags))
        noise = any(is_noise for is_noise, _ in tags)
        pure = all(self._is_made(v) for v in given)  # nothing of the data is in it
        if name in DRAWS:
            if sites:
                self._seen_at_a_draw(name, sites, output)
            elif not self._converted():
                self._draw(name, values, pure, output)
            self._name_tensors(values)
            return
        if name in READS:
            if noise:
                self.numbers_drawn.update(plain_numbers(output))
            return
        if noise and name in DECISIONS:
            if sites:
                kind: Kind = "layer" if all(t.numel() == 1 for t in given) else "row"
                for site in sites:
                    self._use(site, kind)
                self.unsteered.explained(given)
            elif pure and name in COMPARISONS:
                self._literal("a mask", first_number(values))
                self.unsteered.explained(given)
            self._name_tensors(values)
        if not pure and name not in FILLS:
            self.watch.elsewhere.update(self.sites[i].key for i in reached)
        elif name in FILLS or given or sites:  # followed; what the data are in is not
            for tensor in tensors(output):
                self._made(tensor, noise, frozenset(sites))
                if noise:
                    self.unsteered.passed_on(given, tensor)

    def _seen_at_a_draw(self, name: str, sites: set[int], output: Any) -> None:
        for site in sites:
            self._use(site, "row" if name in MASKS else "unknown")
        for tensor in tensors(output):
            self._made(tensor, True)

    def _draw(self, name: str, values: list[Any], pure: bool, output: Any) -> None:
        rate = first_number(values)
        if name in ("bernoulli", "bernoulli_") and (pure or rate is not None):
            self._literal(name, rate)
        elif not self._belongs(where := running(), None):
            self.unsteered.draw(where, name, output)
        for tensor in tensors(output):
            self._made(tensor, True)

    def _literal(self, name: str, rate: float | None) -> None:
        where = running()
        if not self._belongs(where, rate):
            self.unsteered.literal(where, name, rate)

    def _converted(self) -> bool:
        """Use the site whose rate was made a plain number in the module that is running."""
        where = running()
        converted = self.converted_in.get(id(where)) if where is not None else None
        if converted is not None:
            self._use(converted[0], "unknown")
        return converted is not None

    def _asked(self, site: DropoutSite) -> float | None:
        """The rate wanted of a site that is not steered yet."""
        return None if site.key in self.watch.seen else self.watch.wanted.get(site.key)

    def compared(self, site: int, other: object) -> bool:
        """A number was compared in Python: with what was drawn, or with something else."""
        if type(other).__name__ == "ndarray":
            drawn = any(self._drew(float(v)) for v in other.flat[:8])  # type: ignore[attr-defined]
        elif isinstance(other, (int, float)) and not is_watched(other):
            if other in (0, 1):
                return False  # a test whether to drop at all
            drawn = self._drew(float(other))
        else:
            return False
        if drawn:
            self.unsteered.compared_drawn = True
            self._use(site, "layer")
        else:
            name = self.sites[site].name
            self.watch.doubtful.setdefault(name, "compared in Python with a number that was not seen drawn")
        return drawn

    def _drew(self, number: float) -> bool:
        return number in self.numbers_drawn or self.unsteered.generators.drew(number)

    def converted(self, site: int, value: float) -> None:
        """A rate became a plain number in the module that is running: ``float(rate * area)``."""
        where = running()
        if where is not None:
            self.converted_in[id(where)] = (site, value)

    def report(self) -> None:
        """Say which randomness of the whole step no rate steers."""
        said = self.unsteered.said()
        self.watch.unsteered.extend(text for text in said if text not in self.watch.unsteered)

    def _use(self, index: int, kind: Kind) -> None:
        site = self.sites[index]
        known = site.kind if site.kind != "unknown" else kind
        kind = "attention" if kind == "attention" else known
        seen = self.watch.seen.get(site.key)
        if seen is None:
            asked = self._asked(site)
            rate = site._raw(float(plain(site._read()))) if asked is None else asked
            self.watch.seen[site.key] = Seen(kind, running(), rate)
            self.watch.doubtful.pop(site.name, None)
        elif seen.kind == "unknown":
            seen.kind = kind

    def _tags(self, value: object) -> tuple[bool, frozenset[int]]:
        entry = self.noise.get(id(value)) if isinstance(value, Tensor) else None
        return entry[1:] if entry is not None and entry[0]() is value else (False, frozenset())

    def _is_made(self, value: Tensor) -> bool:
        entry = self.noise.get(id(value))
        return entry is not None and entry[0]() is value

    def _made(self, tensor: Tensor, noise: bool, sites: frozenset[int] = frozenset()) -> None:
        self.noise[id(tensor)] = (weakref.ref(tensor), noise, sites)

    def _name_tensors(self, values: Any) -> None:
        for value in flat(values):
            name = self.watch.tensors.get(id(value)) if isinstance(value, Tensor) else None
            if name is not None:
                self.watch.doubtful[name] = "a tensor; make it a number to schedule it"

    def _belongs(self, where: nn.Module | None, rate: float | None) -> bool:
        """Whether a plain rate is that of a known site which is not watched, or was injected."""
        if where is None or RATE_AFTER in where.__dict__:
            return where is not None
        held = [s.get() for s in self.watch.sites if s.known and s.module is where]
        return rate is not None and any(rate in (value, 1.0 - value) for value in held)


def running() -> nn.Module | None:
    """The module whose method is running: the nearest frame with a module for its ``self``."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        held = frame.f_locals.get("self")
        if isinstance(held, nn.Module):
            return held
        frame = frame.f_back
    return None
