"""Where a network drops: as its classes say, or as one forward shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from lightning_reg.dropout.sites import DropoutSite, candidates
from lightning_reg.dropout.watch import Watch

__all__ = ["find_sites"]


def find_sites(module: nn.Module, call: Callable[[], object] | None = None) -> list[DropoutSite]:
    """List every place in ``module`` that drops, shared ones once, in module order.

    Names alone get this wrong both ways: they list numbers that nothing reads and miss rates read from a
    configuration. So give ``call``, which runs one forward: what it does not use is left out.

    Args:
        module: any module.
        call: runs one forward, ``lambda: model(batch)``, as you would run it in training: random state and
            buffers move on. Rates that are seen to act are 0 meanwhile, so that no layer is skipped. Without
            it the known classes are listed, and numbers with "drop" in their name that a module holds itself.

    >>> net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.MultiheadAttention(4, 2, dropout=0.2))
    >>> [(site.name, site.kind) for site in find_sites(net)]
    [('1.p', 'element'), ('2.dropout', 'attention')]
    """
    if call is None:
        return [site for site in candidates(module) if site.known or site.owner is site.module]
    watch = Watch(module)
    watch.wanted = {site.key: 0.0 for site in watch.sites}  # no layer is skipped meanwhile
    with watch.step():
        call()
    return [replace(s, kind=seen.kind) for s in watch.sites if (seen := watch.seen.get(s.key)) is not None]
