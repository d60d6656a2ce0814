"""What became of the selected sites, from what was seen of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from lightning_reg.dropout.report import DropoutReport
from lightning_reg.dropout.steered import Steered
from lightning_reg.dropout.watch import Watch

__all__ = ["outcome"]


def outcome(
    steered: list[Steered], waiting: list[Steered], dozing: Collection[tuple[int, Any]], watch: Watch
) -> DropoutReport:
    """Say what is steered, what no forward has reached, and what is not steered, and why.

    Args:
        steered: the sites that are steered.
        waiting: numbers that were not seen to be rates.
        dozing: sites whose module was in evaluation mode while the root trained.
        watch: what was seen.
    """
    report = DropoutReport()
    for one in steered:
        site = one.site
        if site.key in dozing:
            report.named[site.name] = "its module is in evaluation mode"
        elif (seen := watch.seen.get(site.key)) is not None:
            report.steered.append((site.name, seen.rate, seen.share))
        elif site.known and not site.module.training:
            report.named[site.name] = "its module is in evaluation mode"
        elif id(site.module) in watch.apart:
            report.steered.append((site.name, site.get(), None))
        else:
            report.waiting.append(site.name)
    report.randomness.extend(watch.unsteered)
    for one in waiting:
        site = one.site
        if site.name in watch.doubtful:
            continue
        refused = site.key in watch.refused
        literal = refused and any(site.name in text for text in watch.unsteered)
        if literal or watch.overlooked(site):
            report.named[site.name] = (
                "its owner takes no other number; make it a number of the module"
                if refused
                else "code reads it, but no watched forward has dropped by it yet"
            )
        elif report.randomness and site.key not in watch.elsewhere and site.owner is site.module:
            report.named[site.name] = "nothing was seen to use it, and something drops without a rate"
        else:
            report.unread.append(site.name)
    report.named.update(watch.doubtful)
    return report
