"""Which block of a network a site is in, counted from the input."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lightning_reg.dropout.sites import DropoutSite
from lightning_reg.select.wrappers import unwrapped

__all__ = ["block_of", "depth_factors"]


def block_of(root: nn.Module, name: str) -> str:
    """Return the path of the block that the site ``name`` is in.

    A block is an entry of the outermost list of modules, or, where all entries of a list inside it are of one
    class (a stage of equal blocks), an entry of that. Lists of unequal parts, such as a feed-forward network,
    are inside of a block. A site outside of every list is a block of its own.

    >>> stage = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    >>> net = nn.Sequential(nn.Sequential(stage, stage), nn.Sequential(stage))
    >>> [block_of(net, name) for name in ("0.0.1.p", "0.1.1.p", "1.0.1.p")]
    ['0.0', '0.1', '1.0']
    """
    parts = name.split(".")
    module: nn.Module | None = root
    block = ""
    for depth, part in enumerate(parts):
        if part.isdigit() and module is not None:
            children = [child for child in unwrapped(module)._modules.values() if child is not None]
            alike = len({type(child) for child in children}) == 1 and any(children[0].children())
            if block and not alike:
                return block
            block = ".".join(parts[: depth + 1])
        module = dict(unwrapped(module)._modules.items()).get(part) if module is not None else None
    return block or name


def depth_factors(root: nn.Module, sites: Sequence[DropoutSite]) -> list[float]:
    """Return ℓ/L for each site: the number of its block, of all blocks.

    What a configuration holds for the whole network, outside of every block, counts as the deepest.
    """
    blocks = [block_of(root, site.name) for site in sites]
    counted = [
        block
        for block, site in zip(blocks, sites, strict=True)
        if site.known or site.owner is site.module or block != site.name
    ]
    depths = {block: i + 1 for i, block in enumerate(dict.fromkeys(counted))}
    return [depths[block] / len(depths) if block in depths else 1.0 for block in blocks]
