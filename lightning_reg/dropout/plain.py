"""A dropout schedule in any loop, and predictions with dropout on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_reg.dropout.engine import SiteEngine
from lightning_reg.dropout.report import DropoutReport
from lightning_reg.dropout.selection import SelectSites, select_sites
from lightning_reg.dropout.settings import RateInEval, check_settings
from lightning_reg.dropout.sites import candidates
from lightning_reg.schedules.base import ScheduleLike, check_schedule, evaluate
from lightning_reg.schedules.dropout import ByDepth, schedule_range

__all__ = ["DropoutHandle", "Sampled", "mc_dropout", "schedule_dropout"]


class DropoutHandle:
    """A schedule at work on a model: what :func:`~lightning_reg.schedule_dropout` returns."""

    def __init__(
        self,
        model: nn.Module,
        schedule: ScheduleLike | ByDepth,
        total_steps: int | None,
        select: SelectSites,
        relative: bool,
    ) -> None:
        inner = schedule.rate if isinstance(schedule, ByDepth) else schedule
        upper = math.inf
        if not relative:
            upper = 1.0
        elif (
            built := max((s.built for s in select_sites(model, candidates(model), select)), default=0.0)
        ) > 0:
            upper = 1.0 / built
        check_schedule(inner, total_steps, name="dropout rate", upper=upper)
        low, high = schedule_range(inner, total_steps)
        self._schedule, self._total, self._upper, self._at = inner, total_steps, upper, 0
        self._engine = SiteEngine(
            model, select, low=low, high=high, relative=relative, by_depth=isinstance(schedule, ByDepth)
        )
        self._engine.watch.arm(root=True)
        self._apply()

    @property
    def rate(self) -> float:
        """The number of the step under way."""
        return evaluate(self._schedule, self._at, self._total, name="dropout rate", upper=self._upper)

    def step(self, at: int | None = None) -> None:
        """Go on to the next step's rates: call it after each step of the optimizer.

        Args:
            at: the number of steps so far, where another counts them.
        """
        self._at = self._at + 1 if at is None else at
        self._apply()

    @contextmanager
    def evaluation(self, rate: RateInEval = "built") -> Iterator[None]:
        """Have other rates meanwhile, for dropout that is on in evaluation, too.

        Args:
            rate: ``"built"``, ``"scheduled"``, which changes nothing, or a number.

        Raises:
            ValueError: ``rate`` is something else.
        """
        check_settings(1, "levels", rate)
        self._engine.evaluation(rate)
        try:
            yield
        finally:
            self._apply()

    def remove(self) -> None:
        """Put back the rates and classes as built; a second call does nothing."""
        self._engine.release()

    def report(self) -> DropoutReport:
        """Say what is steered, what no forward has reached yet, and what is not steered, and why."""
        self._engine.check()
        return self._engine.report()

    def state_dict(self) -> dict[str, Any]:
        """The steps so far."""
        return {"step": self._at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where a saved run was."""
        self.step(int(state["step"]))

    def _apply(self) -> None:
        self._engine.apply({None: self.rate})


def schedule_dropout(
    model: nn.Module,
    schedule: ScheduleLike | ByDepth,
    *,
    total_steps: int | None = None,
    select: SelectSites = "built",
    relative: bool = False,
) -> DropoutHandle:
    """Schedule the dropout of a model in a plain loop, under Fabric or under Accelerate.

    Args:
        model: the model, before or after it was wrapped.
        schedule: a number in [0, 1], a schedule of one, or :class:`~lightning_reg.ByDepth` of either.
        total_steps: the run's length in steps of the optimizer; needed where the schedule names fractions.
        select: which sites, as for :class:`~lightning_reg.callbacks.DropoutScheduler`.
        relative: multiply each site's built rate instead of replacing it.

    Raises:
        ValueError: a rate outside [0, 1]; no site is selected; one is steered already.

    >>> from lightning_reg import Linear
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    >>> handle = schedule_dropout(net, Linear(0.0, 0.4), total_steps=4)
    >>> rates = []
    >>> for _ in range(4):
    ...     rates.append(round(net[1].p, 2))
    ...     handle.step()
    >>> handle.remove()
    >>> rates, net[1].p
    ([0.0, 0.1, 0.2, 0.3], 0.1)
    """
    return DropoutHandle(model, schedule, total_steps, select, relative)


class Sampled(NamedTuple):
    """The mean of the predictions, and their standard deviation."""

    mean: Tensor
    spread: Tensor


def mc_dropout(
    model: nn.Module, *inputs: Any, samples: int = 20, rate: float | None = None, **kwargs: Any
) -> Sampled:
    r"""Predict with dropout on, several times: :math:`\bar y = \frac1T \sum_t y_t` and its spread.

    Modules that hold a place that drops, and those around them, are in training mode meanwhile;
    normalization layers and all others stay as they are.

    Args:
        model: returns one tensor.
        inputs: what it is called with.
        samples: T.
        rate: the rate meanwhile; None for the present ones.
        kwargs: what it is called with, by name.

    Raises:
        ValueError: fewer than two samples, a rate outside [0, 1], or a model that drops nowhere.

    >>> net = nn.Sequential(nn.Dropout(0.5)).eval()
    >>> mean, spread = mc_dropout(net, torch.ones(3), samples=500)
    >>> bool((spread - 1).abs().max() < 0.1), net[0].training
    (True, False)

    References:
        Gal and Ghahramani, *Dropout as a Bayesian Approximation*, ICML 2016.
    """
    if samples < 2:
        raise ValueError(f"samples={samples!r} gives no spread; give 2 or more")
    with torch.no_grad(), _dropping(model, rate):
        drawn = torch.stack([model(*inputs, **kwargs) for _ in range(samples)])
    return Sampled(drawn.mean(0), drawn.std(0))


@contextmanager
def _dropping(model: nn.Module, rate: float | None) -> Iterator[None]:
    sites = select_sites(model, [site for site in candidates(model) if site.known], "all")
    holders = {id(site.module) for site in sites}
    modes = [(m, m.training) for m in model.modules() if any(id(inner) in holders for inner in m.modules())]
    rates = [(site, site._read()) for site in sites if site.built > 0]
    try:
        for module, _ in modes:
            module.training = True
        for site, _ in rates if rate is not None else ():
            site.set(float(rate or 0.0))
        yield
    finally:
        for site, value in rates:
            site._write(value)
        for module, training in modes:
            module.training = training
