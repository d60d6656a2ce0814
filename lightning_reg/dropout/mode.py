"""What is seen of a watched forward: every torch function, and the numbers that reach it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from lightning_reg.dropout.calls import (
    AFFINE,
    CHANCES,
    COMPARISONS,
    COUNTED,
    DECISIONS,
    DRAWS,
    FILLS,
    JOINS,
    MASKS,
    READS,
    UNIFORM,
    chances_in,
    count,
    first_number,
    flat,
    is_training,
    kind_of,
    name_of,
    plain_numbers,
    rate_of,
    rates_in,
    single,
    tensors,
)
from lightning_reg.dropout.known import Kind
from lightning_reg.dropout.made import Made, Tag
from lightning_reg.dropout.running import is_written, running
from lightning_reg.dropout.scripts import rates_of_script, seen_calls
from lightning_reg.dropout.seen import Seen
from lightning_reg.dropout.sites import DropoutSite
from lightning_reg.dropout.steering import RATE_AFTER
from lightning_reg.dropout.unsteered import Unsteered
from lightning_reg.dropout.watched import as_wanted, is_watched, site_of, wanted

if TYPE_CHECKING:
    from lightning_reg.dropout.watch import Watch

__all__ = ["Mode"]


class Mode(TorchFunctionMode):
    """Sees every torch function of the watched forward, and which numbers reach it."""

    def __init__(self, watch: Watch, sites: list[DropoutSite]) -> None:
        super().__init__()
        self.watch = watch
        self.sites = sites
        self.unsteered = Unsteered(watch.root, watch.names)
        self.converted_in: dict[int, tuple[int, float]] = {}
        self.made = Made()
        self.numbers_drawn: set[float] = set()
        for i, (tensor, _) in enumerate(watch.named_tensors):
            self.made.put(tensor, Tag(sites=frozenset((-1 - i,))))

    def scripts(self) -> AbstractContextManager[None]:
        """See the calls of script functions, too, which no mode sees."""

        def seen(call: Any, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            rates = rates_of_script(function, args, kwargs)
            for site in self._sites_of(rates):
                self._use(site, "unknown")
            args, kwargs = as_wanted(rates, (args, kwargs))
            return call(function, *args, **kwargs)

        return seen_calls(seen)

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        kind = kind_of(name)
        values = list(flat((*args, *kwargs.values())))
        reached = {i for v in values if (i := site_of(v, self)) is not None}
        before = count(args[0]) if kind is not None and reached and args else None
        rates = self._rates_among(name, kind, args, kwargs, values) if reached else []
        given = as_wanted(rates, (args, kwargs)) if rates else (args, kwargs)  # from here on the one wanted
        output = func(*given[0], **given[1])
        if kind is not None:
            self._dropout(name, kind, args, kwargs, before, output)
        else:
            self._other(name, args, kwargs, values, reached, output)
        return output

    def _rates_among(
        self, name: str, kind: Kind | None, args: tuple[Any, ...], kwargs: dict[str, Any], values: list[Any]
    ) -> list[Any]:
        """The watched numbers that this call shows to be rates."""
        if kind is not None:
            values = list(flat(rates_in(name, args, kwargs)))
        elif name in CHANCES:
            values = list(flat(chances_in(name, args, kwargs)))
        elif name not in DECISIONS or not self._uniform(values):
            return []
        return [value for value in values if site_of(value, self) is not None]

    def _uniform(self, values: list[Any]) -> bool:
        """Whether what was drawn of a function's arguments, if anything, is uniform."""
        tags = [self.made.of(value) for value in values]
        drawn = [tag for tag in tags if tag.noise]
        return bool(drawn) and all(tag.uniform for tag in drawn)

    def _dropout(
        self,
        name: str,
        kind: Kind,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        before: int | None,
        output: Any,
    ) -> None:
        if not is_training(name, args, kwargs):
            return
        reached = self._sites_of(rates_in(name, args, kwargs))
        rate = rate_of(name, args, kwargs)
        where = running()
        if not reached and where is not None and id(where) in self.converted_in:
            site, value = self.converted_in[id(where)]
            reached = {site} if rate == value else reached
        for site in reached:
            self._use(site, kind)
            if kind in COUNTED and before is not None and site >= 0:
                seen = self.watch.seen[self.sites[site].key]
                seen.add(_rate(self.sites[site]), count(output) or 0, before)
        if not reached and rate and not is_watched(rate) and not self._belongs(where, rate):
            self.unsteered.literal(where, name, rate)

    def _sites_of(self, values: Any) -> set[int]:
        """The sites whose numbers are among these values, or in tensors among them."""
        sites: set[int] = set()
        for value in flat(values):
            site = site_of(value, self)
            sites |= self.made.of(value).sites if site is None else {site}
        return sites

    def _other(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        values: list[Any],
        reached: set[int],
        output: Any,
    ) -> None:
        """Follow what was drawn: a draw by a rate, or a comparison with one, makes the number a rate."""
        given = [v for v in values if isinstance(v, Tensor)]
        sites = self._sites_of(values)
        noise = any(self.made.of(v).noise for v in given)
        uniform = self._uniform(given)
        pure = all(v in self.made for v in given)  # nothing of the data is in it
        if name in DRAWS:
            by = self._sites_of(chances_in(name, args, kwargs)) if name in CHANCES else set()
            for site in by:
                self._use(site, "row" if name in MASKS else "unknown")
            if not by and not (name in CHANCES and self._converted(values)):
                self._draw(name, values, pure, output)
            kept = sites if name == "uniform_" else set()
            for tensor in tensors(output):
                self.made.put(tensor, Tag(True, name in UNIFORM, frozenset(kept)))
            self._used_elsewhere(reached - by - kept)
            return
        if name in READS:
            numbers = list(plain_numbers(output))
            if uniform:
                self.numbers_drawn.update(numbers)
            elif sites and not noise and len(numbers) == 1:
                self.converted(min(sites), numbers[0])
            return
        if noise and name in DECISIONS:
            self._decided(name, values, given, sites if uniform else set(), pure)
        if not pure and name not in FILLS and not (sites and all(v in self.made or single(v) for v in given)):
            self._used_elsewhere(reached)
        elif name in FILLS or given or sites:  # followed; what the data are in is not
            kept = sites if name in (JOINS if noise else AFFINE) else set()
            self._used_elsewhere(reached - kept)
            for tensor in tensors(output):
                self.made.put(tensor, Tag(noise, uniform and name in AFFINE, frozenset(kept)))
                if noise:
                    self.unsteered.passed_on(given, tensor)

    def _decided(
        self, name: str, values: list[Any], given: list[Tensor], sites: set[int], pure: bool
    ) -> None:
        """Noise was turned into kept and dropped."""
        kind: Kind = "layer" if all(t.numel() == 1 for t in given) else "row"
        for site in sites:
            self._use(site, kind)
        if not sites and pure and name in COMPARISONS and not self._converted(values):
            self._literal("a mask", first_number(values))
        if sites or (pure and name in COMPARISONS):
            self.unsteered.explained(given)

    def _used_elsewhere(self, sites: set[int]) -> None:
        self.watch.elsewhere.update(self.sites[i].key for i in sites if i >= 0)

    def _draw(self, name: str, values: list[Any], pure: bool, output: Any) -> None:
        rate = first_number(values)
        if name in ("bernoulli", "bernoulli_") and (pure or rate is not None):
            self._literal(name, rate)
        elif not self._belongs(where := running(), None):
            self.unsteered.draw(where, name, output)

    def _literal(self, name: str, rate: float | None) -> None:
        where = running()
        if not self._belongs(where, rate):
            self.unsteered.literal(where, name, rate)

    def _converted(self, values: list[Any]) -> bool:
        """Use the site whose rate was made a plain number in the module that is running."""
        where, rate = running(), first_number([v for v in values if not is_watched(v)])
        converted = self.converted_in.get(id(where)) if where is not None else None
        if converted is None or rate is None or is_written(rate):
            return False
        self._use(converted[0], "unknown")
        return True

    def asked(self, site: DropoutSite) -> float | None:
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
        seen = self.watch.seen
        said = self.unsteered.said([site.name for site in self.watch.sites if site.key in seen])
        self.watch.unsteered.extend(text for text in said if text not in self.watch.unsteered)

    def _use(self, index: int, kind: Kind) -> None:
        if index < 0:
            self.watch.doubtful[self.watch.named_tensors[-1 - index][1]] = (
                "a tensor, which is saved with the weights; make it a number to schedule it"
            )
            return
        site = self.sites[index]
        known = site.kind if site.kind != "unknown" else kind
        kind = "attention" if kind == "attention" else known
        seen = self.watch.seen.get(site.key)
        if seen is None:
            self.watch.seen[site.key] = Seen(kind, running(), _rate(site))
            self.watch.doubtful.pop(site.name, None)
        elif seen.kind == "unknown":
            seen.kind = kind

    def _belongs(self, where: nn.Module | None, rate: float | None) -> bool:
        """Whether a plain rate is that of a known site which is not watched, or was injected."""
        if where is None or RATE_AFTER in where.__dict__:
            return where is not None
        held = [s.get() for s in self.watch.sites if s.known and s.module is where]
        return rate is not None and any(rate in (value, 1.0 - value) for value in held)


def _rate(site: DropoutSite) -> float:
    """The rate that a watched forward drops with."""
    return site._raw(float(wanted(site._read())))
