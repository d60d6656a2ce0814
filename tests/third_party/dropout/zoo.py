"""Every place that drops in networks of other libraries: steered, or named.

``python -m tests.third_party.dropout.zoo`` runs all of them and writes docs/dropout_zoo.md. What a forward
drops is counted here, by a mode of our own that knows nothing of the library's sites: zeros of what a dropout
function returns, zeros of Bernoulli draws, and, for attention, zeros of the same function at the same rate,
called on uniform weights.
"""

from __future__ import annotations

import random
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_reg import Linear, schedule_dropout
from lightning_reg.dropout.running import running
from tests.third_party.dropout.members import MEMBERS

PAGE = Path(__file__).parents[3] / "docs" / "dropout_zoo.md"
STEPS, MOMENTS = 12, (3, 7, 11)
LOW, HIGH = 0.1, 0.7
_DROPOUTS = (
    "dropout",
    "dropout_",
    "feature_dropout",
    "feature_dropout_",
    "dropout1d",
    "dropout2d",
    "dropout3d",
)


class Count(TorchFunctionMode):
    """Counts, for each module that is running, values dropped of values that could have been."""

    def __init__(self) -> None:
        super().__init__()
        self.dropped: dict[int, list[float]] = {}
        self._inside = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(getattr(func, "__name__", ""))
        if self._inside:
            return func(*args, **kwargs)
        before = args[0] != 0 if name in _DROPOUTS and isinstance(args[0], Tensor) else None
        self._inside = True  # what a function calls inside is not counted twice
        try:
            output = func(*args, **kwargs)
            self._look(name, args, kwargs, before, output)
        finally:
            self._inside = False
        return output

    def _look(self, name: str, args: Any, kwargs: Any, before: Tensor | None, output: Any) -> None:
        if before is not None:
            training = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else True))
            if training:
                zeros = (output == 0) & before
                together = before.numel() // (before.shape[0] * before.shape[1]) if "2d" in name else 1
                self._add(float(zeros.sum()) / together, float(before.sum()) / together)
        elif name in ("bernoulli", "bernoulli_"):
            self._add(float((output == 0).sum()), output.numel())
        elif name == "scaled_dot_product_attention":
            self._attention(kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0))
        elif name == "multi_head_attention_forward" and kwargs.get("training", True):
            self._attention(kwargs.get("dropout_p", args[10] if len(args) > 10 else 0.0))

    def _attention(self, rate: float) -> None:
        query, value = torch.zeros(1, 8, 64, 8), torch.eye(64).expand(1, 8, 64, 64)
        weights = F.scaled_dot_product_attention(query, query, value, dropout_p=float(rate))
        self._add(float((weights == 0).sum()), weights.numel())

    def _add(self, dropped: float, offered: float) -> None:
        where = running()
        entry = self.dropped.setdefault(id(where), [0.0, 0.0])
        entry[0] += dropped
        entry[1] += offered


@dataclass
class Outcome:
    """What became of one network.

    Attributes:
        steered, waiting: how many places are steered, and the names of those that no forward reached.
        named: what is named in another way.
        places: how many modules were seen to drop.
        wrong: what dropped at another rate without being named.
        worst: the largest distance from the schedule, in standard deviations.
    """

    steered: int = 0
    waiting: list[str] = field(default_factory=list)
    named: list[str] = field(default_factory=list)
    places: int = 0
    wrong: list[str] = field(default_factory=list)
    worst: float = 0.0


def run(name: tuple[str, str]) -> Outcome:
    """Train-mode forwards under a schedule, counted at three moments."""
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)
    net, call = MEMBERS[name]()
    net.train()
    names = {id(module): path for path, module in net.named_modules()}
    handle = schedule_dropout(net, Linear(LOW, HIGH), total_steps=STEPS)
    outcome, places = Outcome(), set()
    counted: list[tuple[float, dict[int, list[float]]]] = []
    for step in range(STEPS):
        if step in MOMENTS:
            with Count() as count, torch.no_grad():
                for _ in range(3):
                    call()
            counted.append((handle.rate, count.dropped))
        else:
            with torch.no_grad():
                call()
        handle.step()
    report = handle.report()
    held = {name.rpartition(".")[0] for name in [*(one for one, *_ in report.steered), *report.waiting]}
    on = {module for _, dropped in counted for module, (zeros, _) in dropped.items() if zeros}
    for rate, dropped in counted:
        for module, (zeros, offered) in dropped.items():
            path = names.get(module, "?")
            if not offered or (module not in on and path not in held):  # built at 0, and left at 0
                continue
            places.add(path)
            deviations = abs(zeros / offered - rate) / (rate * (1 - rate) / offered) ** 0.5
            if deviations <= 5:
                outcome.worst = max(outcome.worst, deviations)
            elif not _named(path, report):
                outcome.wrong.append(f"{path} dropped {zeros / offered:.3f} at {rate:.3f}")
    outcome.steered, outcome.places = len(report.steered), len(places)
    outcome.waiting = report.waiting
    outcome.named = [*(f"{n} ({why})" for n, why in report.named.items()), *report.randomness]
    handle.remove()
    return outcome


def _named(path: str, report: Any) -> bool:
    place = f"{path or 'the root'} ("
    said = [*report.named, *report.waiting]
    return any(name.startswith(path) for name in said) or any(t.startswith(place) for t in report.randomness)


TEXT = f"""# Dropout in other libraries

`python -m tests.third_party.dropout.zoo` builds each network, small and with random weights, and
schedules its dropout from {LOW} to {HIGH} over {STEPS} forwards in training mode. At three of them it
counts what each module drops, by a mode that knows nothing of this library's sites. A place is right
if the share dropped is within five standard deviations of the schedule, and one that is not steered
has to be named. Seeds are fixed. Dropout between the layers of an LSTM and skipped layers are
steered, and not counted. One member a family runs in `.ci/run`.

| library | network | modules that drop | steered | not reached | largest deviation |
|---|---|---:|---:|---:|---:|
"""


def main() -> None:
    """Run every network whose library is installed, and write the page if all are right."""
    rows, wrong, notes = [], [], []
    for family, name in MEMBERS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                outcome = run((family, name))
            except Exception as error:
                wrong.append(f"{family} {name}: {type(error).__name__}: {error}")
                print(wrong[-1][:300], flush=True)
                continue
        notes += (
            [f"- {family}, {name}: {', '.join(outcome.waiting)} (not reached)"] if outcome.waiting else []
        )
        notes += [f"- {family}, {name}: {text}" for text in outcome.named]
        print(family, name, outcome, flush=True)
        wrong += [f"{family} {name}: {one}" for one in outcome.wrong]
        rows.append(
            f"| {family} | {name} | {outcome.places} | {outcome.steered} | {len(outcome.waiting)} "
            f"| {outcome.worst:.1f}σ |"
        )
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{len(rows)} networks, all right")
    PAGE.write_text("\n".join([TEXT.rstrip(), *rows, "", "Named in the report besides:", "", *notes, ""]))


if __name__ == "__main__":
    main()
