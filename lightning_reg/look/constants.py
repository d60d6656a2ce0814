"""What layers read of dead units: constants, which go into their biases."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg.groups.tracing import unit_count, unit_members

__all__ = ["Readers", "absorb_", "is_layer", "merge_", "read_as_constants", "tells"]

_CONV = nn.modules.conv._ConvNd
_TRANSPOSED = nn.modules.conv._ConvTransposeNd

#: Layers that read a unit, at which channels, and the constants that they read there.
Readers = list[tuple[nn.Module, list[int], Tensor]]


def is_layer(module: nn.Module) -> bool:
    """Whether units of this layer are read and put out by themselves: not those of a grouped convolution."""
    return isinstance(module, (nn.Linear, nn.Embedding)) or (isinstance(module, _CONV) and module.groups == 1)


def read_as_constants(
    graph: Any, layer: nn.Module, dead: list[int], seen: dict[nn.Module, list[Tensor]]
) -> list[int]:
    """Return those of many dead units that no layer reads as anything else, by few questions."""
    try:
        members = unit_members(graph, layer, unit_count(layer))
    except ValueError:  # a channel belongs to two units
        return dead
    vary: set[int] = set()
    for module, handler, units in members:
        if handler == "prune_in_channels" and is_layer(module) and module in seen:
            flat = torch.cat(seen[module])[:, : len(units)]
            varies = ~torch.isclose(flat, flat[:1], rtol=1e-6, atol=1e-7).all(0)
            vary.update(units[: flat.shape[1]][varies].tolist())
    return [unit for unit in dead if unit not in vary]


def tells(readers: Readers) -> dict[nn.Module, tuple[list[int], Tensor]]:
    """What of the readers of a unit cannot take its constant into a bias, since it tells where that ends."""
    return {m: (places, constant) for m, places, constant in readers if constant.any() and not _absorbs(m)}


@torch.no_grad()
def merge_(carried: list[tuple[int, Readers]]) -> list[int]:
    """Let one unit carry the constants of the others, whose weights are added to its own; return these.

    What a padded convolution makes of a constant is in proportion to it, at the border too.
    """
    told = [tells(readers) for _, readers in carried]
    least = [min(float(constant.abs().min()) for _, constant in one.values()) for one in told]
    carrier = max(range(len(told)), key=lambda i: (len(told[i]), least[i]))
    merged = []
    for i, (unit, readers) in enumerate(carried):
        alike = told[i].keys() <= told[carrier].keys() and len(readers) == len({m for m, _, _ in readers})
        if (
            i == carrier
            or not alike
            or any(len(p) > 1 for p, _ in (*told[i].values(), *told[carrier].values()))
        ):
            continue
        for module, ((place,), constant) in told[i].items():
            (onto,), unity = told[carrier][module]
            weight: Tensor = module.weight.movedim(int(not isinstance(module, _TRANSPOSED)), 0)  # type: ignore[operator]
            weight[onto] += weight[place] * (constant / unity)
        for reader, places, constant in readers:
            if reader not in told[i]:
                absorb_(reader, places, constant)
        merged.append(unit)
    return merged


def _absorbs(module: nn.Module) -> bool:
    """Whether a constant input of this layer is a constant output."""
    if isinstance(module, nn.Linear):
        return True
    padding: Any = getattr(module, "padding", "same")
    return not isinstance(module, _TRANSPOSED) and not isinstance(padding, str) and not any(padding)


@torch.no_grad()
def absorb_(module: nn.Module, places: list[int], constant: Tensor) -> None:
    """Move what the layer makes of a constant into its bias."""
    if not constant.any():
        return
    weight: Tensor = module.weight  # type: ignore[assignment]
    shift = weight[:, places].flatten(2).sum(2) if weight.dim() > 2 else weight[:, places]
    shift = shift @ constant
    bias: Any = module.bias
    if bias is None:
        module.bias = nn.Parameter(shift)
    else:
        bias.add_(shift)
