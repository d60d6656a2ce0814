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
    COUNTED,
    DECISIONS,
    DRAWS,
    FILLS,
    MASKS,
    READS,
    count,
    draws_inside,
    flat,
    is_training,
    kind_of,
    mapped,
    name_of,
    plain_numbers,
    rate_of,
    tensors,
)
from lightning_reg.dropout.generators import Generators
from lightning_reg.dropout.known import Kind
from lightning_reg.dropout.seen import Seen
from lightning_reg.dropout.sites import DropoutSite
from lightning_reg.dropout.steering import RATE_AFTER
from lightning_reg.dropout.watched import is_watched, plain, site_of, wanted, watched

if TYPE_CHECKING:
    from lightning_reg.dropout.watch import Watch

__all__ = ["Mode"]


class Mode(TorchFunctionMode):
    """Sees every torch function of the watched forward, and which numbers reach it."""

    def __init__(self, watch: Watch, sites: list[DropoutSite]) -> None:
        super().__init__()
        self.watch = watch
        self.sites = sites
        self.generators = Generators(watch.root.modules())
        self.compared_drawn = False
        self.converted_in: dict[int, tuple[int, float]] = {}
        #: what was drawn and nothing else, and which sites went into it
        self.noise: dict[int, tuple[weakref.ref[Tensor], bool, frozenset[int]]] = {}
        self.numbers_drawn: set[float] = set()
        self.literal: dict[str, None] = {}
        self.draws: dict[int, str] = {}

    @contextmanager
    def numbers(self) -> Iterator[None]:
        """Put the watched numbers in place, and afterwards the plain ones back."""
        placed: list[tuple[DropoutSite, Any, Any]] = []
        for i, site in enumerate(self.sites):
            before = site._read()
            number = watched(before, i, self, self._asked(site))
            if number is not None and _written(site, number) and site._read() is number:
                placed.append((site, before, number))
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
        where = _running()
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
            self.literal.setdefault(f"{self._place(where)}: {name} with a rate of {rate:g} in the code")

    def _other(self, name: str, values: list[Any], reached: set[int], output: Any) -> None:
        """Follow what was drawn: a draw by a rate, or a comparison with one, makes the number a rate."""
        draw = name in DRAWS
        given = [v for v in values if isinstance(v, Tensor)]
        tags = [self._tags(v) for v in given]
        sites = reached.union(*(held for _, held in tags))
        noise = any(is_noise for is_noise, _ in tags)
        if draw:
            if sites:
                self._seen_at_a_draw(name, sites, output)
            elif not self._converted():
                self._draw(name, output)
            self._name_tensors(values)
            return
        if name in READS:
            if noise:
                self.numbers_drawn.update(plain_numbers(output))
            return
        if sites and noise and name in DECISIONS:
            kind: Kind = "layer" if all(t.numel() == 1 for t in given) else "row"
            for site in sites:
                self._use(site, kind)
            for tensor in given:
                self.draws.pop(id(tensor), None)
        if noise and name in DECISIONS:
            self._name_tensors(values)
        # what is made of noise and rates alone is followed; what the data are in is not
        if (sites or noise) and (name in FILLS or all(is_noise or held for is_noise, held in tags)):
            for tensor in tensors(output):
                self.noise[id(tensor)] = (weakref.ref(tensor), noise, frozenset(sites))
                if noise:
                    source = next((self.draws.pop(id(t)) for t in given if id(t) in self.draws), None)
                    if source is not None:
                        self.draws[id(tensor)] = source

    def _seen_at_a_draw(self, name: str, sites: set[int], output: Any) -> None:
        for site in sites:
            self._use(site, "row" if name in MASKS else "unknown")
        for tensor in tensors(output):
            self.noise[id(tensor)] = (weakref.ref(tensor), True, frozenset())

    def _draw(self, name: str, output: Any) -> None:
        place = f"{self._place(_running())}: {name}"
        for tensor in tensors(output):
            self.noise[id(tensor)] = (weakref.ref(tensor), True, frozenset())
            if id(tensor) in self.draws:  # of a tensor that is gone
                self.literal.setdefault(self.draws.pop(id(tensor)))
            self.draws[id(tensor)] = place

    def _converted(self) -> bool:
        """Use the site whose rate was made a plain number in the module that is running."""
        where = _running()
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
            drawn = any(self.generators.drew(float(v)) for v in other.flat[:8])  # type: ignore[attr-defined]
        elif isinstance(other, (int, float)) and not is_watched(other):
            if other in (0, 1):
                return False  # a test whether to drop at all
            drawn = float(other) in self.numbers_drawn or self.generators.drew(float(other))
        else:
            return False
        if drawn:
            self.compared_drawn = True
            self._use(site, "layer")
        else:
            name = self.sites[site].name
            self.watch.doubtful.setdefault(name, "compared in Python with a number that was not seen drawn")
        return drawn

    def converted(self, site: int, value: float) -> None:
        """A rate became a plain number in the module that is running: ``float(rate * area)``."""
        where = _running()
        if where is not None:
            self.converted_in[id(where)] = (site, value)

    def report(self) -> None:
        """Say which randomness of the whole step no rate steers."""
        said = [*self.literal, *dict.fromkeys(self.draws.values())]
        moved = self.generators.moved()
        if moved and not self.compared_drawn:
            said.extend(f"{name} is drawn from" for name in moved)
        self.watch.unsteered.extend(text for text in said if text not in self.watch.unsteered)

    def _use(self, index: int, kind: Kind) -> None:
        site = self.sites[index]
        known = site.kind if site.kind != "unknown" else kind
        kind = "attention" if kind == "attention" else known
        seen = self.watch.seen.get(site.key)
        if seen is None:
            asked = self._asked(site)
            rate = float(plain(site._read())) if asked is None else asked
            self.watch.seen[site.key] = Seen(kind, _running(), rate)
            self.watch.doubtful.pop(site.name, None)
        elif seen.kind == "unknown":
            seen.kind = kind

    def _tags(self, value: object) -> tuple[bool, frozenset[int]]:
        entry = self.noise.get(id(value)) if isinstance(value, Tensor) else None
        return entry[1:] if entry is not None and entry[0]() is value else (False, frozenset())

    def _name_tensors(self, values: Any) -> None:
        for value in flat(values):
            name = self.watch.tensors.get(id(value)) if isinstance(value, Tensor) else None
            if name is not None:
                self.watch.doubtful[name] = "a tensor; make it a number to schedule it"

    def _belongs(self, where: nn.Module | None, rate: float) -> bool:
        """Whether a plain rate is that of a known site which is not watched, or was injected."""
        if where is None or where.__dict__.get(RATE_AFTER) == rate:
            return where is not None
        return any(s.module is where and s.get() == rate for s in self.watch.sites if s.known)

    def _place(self, where: nn.Module | None) -> str:
        where = self.watch.root if where is None else where
        return f"{self.watch.names.get(id(where)) or 'the root'} ({type(where).__name__})"


def _running() -> nn.Module | None:
    """The module whose method is running: the nearest frame with a module for its ``self``."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        held = frame.f_locals.get("self")
        if isinstance(held, nn.Module):
            return held
        frame = frame.f_back
    return None


def _written(site: DropoutSite, value: Any) -> bool:
    """Write a number, if its owner takes it: an OmegaConf container and a frozen dataclass do not."""
    try:
        site._write(value)
    except Exception:  # each library of configurations has errors of its own
        return False
    return True
