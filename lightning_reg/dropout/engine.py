"""One selection of sites at work: what every way in steers with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from lightning_reg.dropout.blocks import depth_factors
from lightning_reg.dropout.compiled import graphs_so_far, read_by_parent
from lightning_reg.dropout.outcome import outcome
from lightning_reg.dropout.report import DropoutReport, some
from lightning_reg.dropout.rules import Rates
from lightning_reg.dropout.selection import SelectSites, select_sites
from lightning_reg.dropout.settings import Compiled, RateInEval, nearest_level
from lightning_reg.dropout.sites import DropoutSite
from lightning_reg.dropout.steered import Clock, Steered
from lightning_reg.dropout.steering import rule_for, take_again
from lightning_reg.dropout.watch import watch_of

__all__ = ["SiteEngine"]

#: How often graphs may be made, at first, before numbers are given in levels.
_GRAPHS = 3


class SiteEngine:
    """Steers the selected sites of one module.

    Args:
        root, select: the module, and which of its sites.
        low, high: the lowest and the highest number of the run.
        relative, by_depth: multiply built rates instead of replacing them; deeper blocks drop more.
        compile_levels, compiled: what to do with numbers inside ``torch.compile``.
        rate_in_eval: the rate in evaluation.
        clock_of: whose steps a site counts; its result is the key of the numbers given to :meth:`apply`.
        name: who steers, for messages.
    """

    def __init__(
        self,
        root: nn.Module,
        select: SelectSites,
        *,
        low: float,
        high: float,
        relative: bool = False,
        by_depth: bool = False,
        compile_levels: int = 4,
        compiled: Compiled = "levels",
        rate_in_eval: RateInEval = "built",
        clock_of: Callable[[DropoutSite], Clock] = lambda site: None,
        name: str = "schedule_dropout",
    ) -> None:
        self.root, self.select, self.low, self.high, self.name = root, select, low, high, name
        self.compile_levels, self.compiled, self.rate_in_eval = compile_levels, compiled, rate_in_eval
        #: numbers that are a graph each under ``torch.compile``
        self.floats: list[str] = []
        #: names of rates that somebody else has written, too
        self.others: dict[str, None] = {}
        self._steered: list[Steered] = []
        self._waiting: list[Steered] = []
        self._held: list[DropoutSite] = []
        self._woken: list[nn.Module] = []
        self._dozing: set[tuple[int, Any]] = set()
        self._clocks: set[Clock] = set()
        self._rows: list[tuple[Clock, float]] = []
        self._applied: dict[Clock, float] | None = None
        self._relative, self._by_depth, self._clock_of = relative, by_depth, clock_of
        self._seen = 0
        self._graphs, self._risen = graphs_so_far(), 0
        self.watch = watch_of(root)
        chosen = select_sites(root, self.watch.sites, select)
        _refuse_shared(chosen, self.watch.engines, name)
        self.keys: set[tuple[int, Any]] = set()
        self._add(chosen)
        if self.floats and compiled == "refuse":
            raise ValueError(
                f"{some(self.floats)}: under torch.compile each value of such a rate is a graph; "
                "use compiled='levels' for a few steps, compiled='hold' for the built rate, or leave them "
                "out by `select`"
            )
        self.watch.engines.append(self)
        self.watch.follow()
        self._generation = self.watch.generation
        self._tabulate()
        for one in self._steered:
            if self._changes(one):
                one.take(self, self._rates.rows)

    @property
    def sites(self) -> list[DropoutSite]:
        """The sites that are steered."""
        return [one.site for one in self._steered]

    def apply(self, numbers: Mapping[Clock, float], look: bool = False) -> None:
        """Set the rates for the forward that comes.

        Args:
            numbers: the number of each clock.
            look: also look whether somebody else has written a rate, where nothing changes.
        """
        take_again()
        news = self._follow() | self._take_news() | self._count_graphs()
        if numbers == self._applied and not news and not look:
            return
        for one in self._waiting:
            if not one.levels:
                self.watch.wanted[one.site.key] = min(1.0, numbers[one.clock] * one.factor)
        self._rates.fill([min(1.0, numbers[clock] * factor) for clock, factor in self._rows])
        for one in self._steered:
            number = numbers[one.clock]
            if one.levels:
                number = nearest_level(number, self.low, self.high, self.compile_levels)
            rate = number * one.factor
            rate = rate if rate <= 1.0 else 1.0
            if one.taken:
                one.write(rate)
            elif rate != one.site.built:  # else left as built: not even the class changes
                one.take(self, self._rates.rows)
                one.write(rate)
        self._applied = dict(numbers)

    @property
    def clocks(self) -> set[Clock]:
        """Whose steps the sites count."""
        return self._clocks or {None}

    def check(self) -> None:
        """Look, after an epoch, who else writes rates or modes, and which modules and lists are new."""
        self.watch.rescan()
        there, names = {site.key for site in self.watch.sites}, {site.name for site in self.watch.sites}
        for one in self._steered:
            one.look()
            replaced = one.site.key not in there and one.site.name in names
            if one.others_write or replaced:
                self.others[one.site.name] = None
            if self.root.training and one.site.known and not one.site.module.training:
                self._dozing.add(one.site.key)

    def evaluation(self, asked: RateInEval | None = None) -> None:
        """Set the rates for evaluation, for dropout that is on in it, too: ``rate_in_eval``, or ``asked``."""
        asked = self.rate_in_eval if asked is None else asked
        if asked == "scheduled":
            return
        for one in self._steered:
            rate = one.site.built if asked == "built" else float(asked)
            if not one.taken and rate != one.site.built:
                one.take(self, self._rates.rows)
            if one.taken:
                one.write(rate)
        self._applied = None

    def asleep(self) -> list[DropoutSite]:
        """The selected sites whose module is in evaluation mode."""
        return [one.site for one in self._steered if one.site.known and not one.site.module.training]

    def wake(self) -> None:
        """Put the modules of :meth:`asleep` in training mode until :meth:`release`."""
        for site in self.asleep():
            site.module.training = True
            self._woken.append(site.module)

    def release(self) -> None:
        """Put back the rates, the classes and the modes as built; a second call does nothing."""
        for one in reversed(self._steered):
            one.put_back(self)
        for module in self._woken:
            module.training = False
        self._steered, self._waiting, self._woken = [], [], []
        if self in self.watch.engines:
            self.watch.engines.remove(self)
            if not self.watch.engines:
                self.watch.close()

    def report(self) -> DropoutReport:
        """Say what is steered, what was not reached yet, and what is not steered, and why."""
        report = outcome(self._steered, self._waiting, self._dozing, self.watch)
        report.held.extend(site.name for site in self._held)
        report.named.update((name, "somebody else writes it, too") for name in self.others)
        report.waiting = [name for name in report.waiting if name not in self.others]
        return report

    def _add(self, chosen: list[DropoutSite]) -> list[Steered]:
        """List the chosen sites that are not listed yet."""
        profile = depth_factors(self.root, chosen) if self._by_depth else [1.0] * len(chosen)
        added: list[Steered] = []
        for site, part in zip(chosen, profile, strict=True):
            if site.key not in self.keys:
                self.keys.add(site.key)
                self.watch.wanted.setdefault(site.key, None)
                factor = part * site.built if self._relative else part
                added.append(self._listed(site, factor, self._clock_of(site)))
        for one in added:
            if one.levels and self._changes(one) and one.site.known:
                self.floats.append(one.site.name)
                if self.compiled == "hold":
                    self._held.append(one.site)
                    continue
            (self._steered if one.site.known else self._waiting).append(one)
            self._clocks.add(one.clock)
        return added

    def _listed(self, site: DropoutSite, factor: float, clock: Clock) -> Steered:
        inside = id(site.module) in self.watch.apart
        rule = rule_for(site.module) if site.known and site.owner is site.module else None
        if inside and rule is not None and read_by_parent(self.root, site.module, site.attribute):
            rule = None
        row = (clock, factor)
        if rule is not None and row not in self._rows:
            self._rows.append(row)
        index = self._rows.index(row) if rule is not None else 0
        levels = rule is None and inside and site.kind not in ("recurrent", "layer")
        return Steered(site, factor, clock, rule, index, levels)

    def _tabulate(self) -> None:
        device = next((p.device for p in self.root.parameters()), torch.device("cpu"))
        self._rates = Rates(device, len(self._rows))

    def _follow(self) -> bool:
        """Steer the sites that have come since the last look, and let go of those that have gone."""
        if self.watch.dirty:
            self.watch.rescan()
        if self._generation == self.watch.generation:
            return False
        self._generation = self.watch.generation
        there, rows = {site.key for site in self.watch.sites}, len(self._rows)
        for listed in (self._steered, self._waiting):
            for one in [one for one in listed if one.site.key not in there]:
                one.put_back(self)
                listed.remove(one)
                self.keys.discard(one.site.key)
        others = {key for engine in self.watch.engines if engine is not self for key in engine.keys}
        fresh = [site for site in self.watch.sites if site.key not in others]
        try:
            chosen = select_sites(self.root, fresh, self.select)
        except ValueError:  # all that there was has gone
            chosen = []
        self._add(chosen)
        self.watch.arm()
        if len(self._rows) > rows:
            self._tabulate()
            for one in self._steered:
                if one.taken:
                    one.take(self, self._rates.rows)
        return True

    def _changes(self, one: Steered) -> bool:
        return self.low != self.high or self.low * one.factor != one.site.built

    def _take_news(self) -> bool:
        """Steer what was seen to act since the last look."""
        if len(self.watch.seen) == self._seen:
            return False
        self._seen = len(self.watch.seen)
        news = [one for one in self._waiting if one.site.key in self.watch.seen]
        self._waiting = [one for one in self._waiting if one.site.key not in self.watch.seen]
        for one in news:
            one.levels = one.levels and self.watch.seen[one.site.key].kind not in ("recurrent", "layer")
            if one.levels and self.compiled != "levels":
                self._held.append(one.site)
            else:
                self._steered.append(one)
        return bool(news)

    def _count_graphs(self) -> bool:
        """Give numbers in levels where ``torch.compile`` makes graph after graph, out of our sight."""
        graphs = graphs_so_far()
        if graphs == self._graphs:
            return False
        self._graphs = graphs
        self._risen += 1
        if self._risen != _GRAPHS or self.compiled != "levels":
            return False
        hidden = [o for o in self._steered if not o.levels and o.rule is None and self._changes(o)]
        hidden = [o for o in hidden if o.site.kind not in ("recurrent", "layer")]
        for one in hidden:
            one.levels = True
            self.floats.append(one.site.name)
        return bool(hidden)


def _refuse_shared(chosen: list[DropoutSite], engines: list[SiteEngine], name: str) -> None:
    for other in engines:
        shared = [site.name for site in chosen if site.key in other.keys]
        if shared:
            raise ValueError(
                f"{some(shared)} would be steered by two callbacks, {other.name} and {name}; give them "
                "disjoint `select`s"
            )
