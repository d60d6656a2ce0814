"""Every public callback with what is true of it; ``test_laws.py`` holds the laws that all of them keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import lightning.pytorch as pl

from lightning_reg import L1, ActivityPenalty, Linear
from lightning_reg import callbacks as public


@dataclass(frozen=True)
class Case:
    """A callback, how it is made, and what it does to a run."""

    make: Callable[[], pl.Callback]
    #: Whether it changes the weights that training ends with.
    acts: bool = True

    @property
    def name(self) -> str:
        return type(self.make()).__name__

    def __str__(self) -> str:
        return self.name


#: They train before the fit, or only choose what it is given; their laws are in tests/tune.
SEARCHES = {"DropoutFinder", "StrengthFinder"}
CASES = [
    Case(lambda: public.PenaltyCallback(L1(Linear(0.0, 0.1)), apply="proximal")),
    Case(lambda: public.L1PenaltyCallback(0.1)),
    Case(lambda: public.L2PenaltyCallback(0.1, apply="decoupled")),
    Case(lambda: public.ElasticNetPenaltyCallback(0.1, apply="loss")),
    Case(lambda: public.GroupLassoPenaltyCallback(0.1)),
    Case(lambda: public.SparseGroupLassoPenaltyCallback(0.1)),
    Case(lambda: public.ForwardPenaltyCallback(ActivityPenalty(L1(0.1), modules="net.0"))),
    Case(lambda: public.MaxNorm(0.3)),
    Case(lambda: public.UnitNorm()),
    Case(lambda: public.NonNegative()),
    Case(lambda: public.Box(-0.1, 0.1)),
    Case(lambda: public.L1Ball(0.5)),
    Case(lambda: public.Simplex(0.5)),
    Case(lambda: public.MaxRank(1)),
    Case(lambda: public.KeepLargest(0.5, begin=0, until=2)),
    Case(lambda: public.NM(1, 2, "net.0.weight")),
    Case(lambda: public.NormBudget(0.5)),
    Case(lambda: public.Refit(begin=2), acts=False),  # nothing is zero here
    Case(lambda: public.DropoutScheduler(Linear(0.1, 0.5))),
    Case(lambda: public.AdaptiveDropout(0.1, start=0.3)),
    Case(lambda: public.DropoutInjector(0.3, after="net.0")),
    Case(lambda: public.RegularizationMonitor(table=False), acts=False),
]
