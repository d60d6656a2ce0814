"""Steering the selected sites with one number a step: what DropoutScheduler and AdaptiveDropout share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from typing_extensions import override

from lightning_reg.callbacks._dropout import DropoutCallback, Hold, compiled_modules, overlap
from lightning_reg.dropout.sites import (
    DropoutSite,
    SelectSites,
    candidates,
    check_select_sites,
    select_sites,
)
from lightning_reg.dropout.steering import Rates, Rule, rule_for, steer
from lightning_reg.hosts.trainer import run_length
from lightning_reg.schedules.dropout import depth_profile

__all__ = ["Compiled", "SiteCallback"]

Compiled = Literal["levels", "hold", "refuse"]


@dataclass(eq=False)
class _Steered:
    """A site in the run: what its rate is multiplied by, and how it is set."""

    site: DropoutSite
    factor: float
    rule: Rule | None
    row: int
    levels: bool
    taken: bool = False


@dataclass(eq=False)
class _State:
    sites: list[_Steered]
    rates: Rates
    factors: list[float]
    low: float
    high: float
    keys: set[tuple[int, str]]


class SiteCallback(DropoutCallback):
    """Private base: one number a step, absolute or relative, for the sites of one selection."""

    select: SelectSites
    relative: bool
    name: str
    compile_levels: int
    compiled: Compiled
    _by_depth: bool = False

    def _set_up(
        self, select: SelectSites, relative: bool, name: str | None, compile_levels: int, compiled: Compiled
    ) -> None:
        check_select_sites(select)
        if isinstance(compile_levels, bool) or not isinstance(compile_levels, int) or compile_levels < 1:
            raise ValueError(f"compile_levels={compile_levels!r} is not a number of levels; give 1 or more")
        if compiled not in ("levels", "hold", "refuse"):
            raise ValueError(f"compiled={compiled!r} is not understood; use 'levels', 'hold' or 'refuse'")
        self.select = select
        self.relative = relative
        self.name = name if name is not None else _group(select)
        self.compile_levels = compile_levels
        self.compiled = compiled
        self._hold = None
        #: Randomness of the last run that no rate steers, as sentences.
        self.unsteered: list[str] = []

    def _range(self, hold: Hold) -> tuple[float, float]:
        """The lowest and the highest number of the run."""
        raise NotImplementedError

    def _number(self, trainer: Any, hold: Hold) -> float:
        """The number for the step that is about to run."""
        raise NotImplementedError

    def _check(self, total: int | None, upper: float) -> None:
        """Refuse, before the run, numbers that it would meet."""

    @override
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._let_go()
        chosen = select_sites(pl_module, _listed(pl_module, self._audits), self.select)
        total = run_length(trainer)
        self._check(total, self._upper(chosen))
        self._hold = Hold(total)

    @override
    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        # a dropout that is on in evaluation, too, has its built rate there
        if self._hold is not None and self._hold.ready:
            for steered in self._hold.state.sites:
                if steered.taken:
                    _write(steered.site, steered.site.built)
            self._hold.applied = None

    @override
    def _take(self, trainer: Any, pl_module: Any, hold: Hold) -> None:
        listed = hold.audit.sites if hold.audit is not None else _listed(pl_module, False)
        chosen = select_sites(pl_module, listed, self.select)
        self._check(hold.total, self._upper(chosen))
        overlap(trainer, self, chosen)
        profile = depth_profile([site.name for site in chosen]) if self._by_depth else [1.0] * len(chosen)
        factors = [f * site.built if self.relative else f for f, site in zip(profile, chosen, strict=True)]
        rows = list(dict.fromkeys(factors))
        low, high = self._range(hold)
        inside = compiled_modules(pl_module)
        floats: list[str] = []
        steered: list[_Steered] = []
        for site, factor in zip(chosen, factors, strict=True):
            rule = rule_for(site.module) if site.owner is site.module and site.called is not False else None
            changes = low != high or low * factor != site.built
            specialises = (
                rule is None and id(site.module) in inside and site.kind not in ("recurrent", "layer")
            )
            if specialises and changes:
                floats.append(site.name)
                if self.compiled == "hold":
                    continue
            steered.append(_Steered(site, factor, rule, rows.index(factor), specialises))
        self._report(trainer, hold, floats)
        device = next((p.device for p in pl_module.parameters()), pl_module.device)
        hold.state = _State(steered, Rates(device, len(rows)), rows, low, high, {s.site.key for s in steered})
        for one in steered:
            if low != high or low * one.factor != one.site.built:
                self._take_one(hold, one)

    @override
    def _apply(self, trainer: Any, pl_module: Any, hold: Hold) -> None:
        number = self._number(trainer, hold)
        if number != hold.applied:
            state: _State = hold.state
            state.rates.fill([min(1.0, number * factor) for factor in state.factors])
            level = self._level(number, state)
            for one in state.sites:
                rate = (level if one.levels else number) * one.factor
                if not one.taken:
                    if rate == one.site.built:
                        continue  # left as built: not even the class changes
                    self._take_one(hold, one)
                _write(one.site, min(1.0, rate))
            hold.applied = number
        self._log(trainer, number)

    def _take_one(self, hold: Hold, one: _Steered) -> None:
        site = one.site
        one.taken = True
        if site.owner is site.module:
            steer(site.module, site.attribute, self, rule=one.rule, rates=hold.state.rates.rows[one.row])
            hold.modules.append((site.module, site.attribute))
        else:
            hold.elsewhere.append((site, site._read()))

    def _level(self, number: float, state: _State) -> float:
        """The nearest of ``compile_levels`` numbers, evenly spaced over the run's range."""
        width = state.high - state.low
        if width <= 0 or self.compile_levels == 1:
            return (state.high + state.low) / 2
        steps = self.compile_levels - 1
        return state.low + round((number - state.low) / width * steps) * width / steps

    def _upper(self, sites: list[DropoutSite]) -> float:
        """The highest number that keeps every rate within 1."""
        built = max((site.built for site in sites), default=0.0)
        return 1.0 if not self.relative else 1.0 / built if built > 0 else float("inf")

    def _report(self, trainer: Any, hold: Hold, floats: list[str]) -> None:
        from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

        if floats:
            names = f"{', '.join(floats[:6])}{f' and {len(floats) - 6} more' if len(floats) > 6 else ''}"
            if self.compiled == "refuse":
                raise ValueError(
                    f"{names}: under torch.compile each value of such a rate is a graph of its own; use "
                    "compiled='levels' for a few steps, compiled='hold' to keep the built rate, "
                    "or leave them out by `select`"
                )
            what = (
                f"run in {self.compile_levels} steps"
                if self.compiled == "levels"
                else "held at their built rate"
            )
            rank_zero_info(f"{names}: under torch.compile a graph for each value; {what}")
        if hold.audit is not None:
            self.unsteered = list(hold.audit.unsteered)
            others = [c for c in trainer.callbacks if isinstance(c, SiteCallback) and c._hold is not None]
            if others and others[0] is not self:
                return  # said once a run
            literal = [text for text in self.unsteered if " with a rate of " in text]
            rest = [text for text in self.unsteered if " with a rate of " not in text]
            if literal:
                rank_zero_warn(
                    f"dropout that no rate steers: {'; '.join(literal)}; make the rate an attribute to "
                    "schedule it"
                )
            if rest:
                rank_zero_info(f"randomness that no dropout rate steers: {'; '.join(rest)}")


def _listed(pl_module: nn.Module, with_configurations: bool) -> list[DropoutSite]:
    sites = candidates(pl_module)
    return sites if with_configurations else [s for s in sites if isinstance(s.owner, nn.Module)]


def _write(site: DropoutSite, rate: float) -> None:
    if site.owner is site.module:
        site.module.__dict__[site.attribute] = rate  # a plain number: nothing that nn.Module would register
    else:
        site.set(rate)


def _group(select: SelectSites) -> str:
    if isinstance(select, str):
        return "all" if select == "*" else select
    if isinstance(select, (list, tuple, set, frozenset)):
        return ",".join(_group(form) for form in select)
    return getattr(select, "__name__", type(select).__name__)
