"""Which weights make up a unit, found from one forward by the ``torch-pruning`` package."""

from __future__ import annotations

import copy
import importlib
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_reg.tensors.shards import is_flattened, is_sharded

__all__ = [
    "Member",
    "call_with",
    "dependency_graph",
    "group_of",
    "is_depthwise",
    "tensors_in",
    "traceable_copy",
    "unit_count",
    "unit_members",
]

_CONV = nn.modules.conv._ConvNd

#: How often the package may come by each module on its way through a group.
STEPS = 20
#: A module, what of it is concerned (``"prune_out_channels"`` or another handler's name), and a unit or −1
#: for each of its channels.
Member = tuple[Any, str, Tensor]


def dependency_graph(model: nn.Module, example: Any, asker: str) -> Any:
    """Return the package's graph of ``model``, a copy made for it, whose parameters all take gradients.

    Raises:
        ImportError: the package is not installed.
        ValueError: the model rejects the example, or processes hold its parameters in parts.
    """
    try:
        pruning = importlib.import_module("torch_pruning")
    except ImportError as error:
        raise ImportError(f"{asker} needs torch-pruning: run pip install torch-pruning") from error
    try:
        with warnings.catch_warnings(), torch.enable_grad(), torch.random.fork_rng():
            warnings.simplefilter("ignore")  # of tensors that belong to no module: those units are left out
            return pruning.DependencyGraph().build_dependency(
                model, example, forward_fn=call_with, output_transform=_traced
            )
    except Exception as error:
        raise ValueError(
            f"{asker} cannot trace {type(model).__name__} with the example that it has: {error}; "
            f"{_way_out(model, example)}write the groups by hand with Coupled"
        ) from error


def _way_out(model: nn.Module, example: Any) -> str:
    """Ask for another example where the model rejects this one; else name a layer that the package lacks."""
    try:
        with torch.no_grad(), torch.random.fork_rng():
            call_with(model, example)
    except Exception:
        return "give an example that forward takes, or "
    for name, module in model.named_modules():
        matrices = [p for p in module.parameters(recurse=False) if p.dim() > 1]
        if matrices and not type(module).__module__.startswith("torch.nn"):
            kind = type(module).__name__
            return f"torch-pruning may not know {name or 'the model'}, a {kind} with weights of its own; "
    return ""


def traceable_copy(model: nn.Module, asker: str) -> nn.Module:
    """Return a copy in ``eval`` mode whose parameters all take gradients.

    Raises:
        ValueError: processes hold its parameters in parts.
    """
    for name, parameter in model.named_parameters():
        if is_sharded(parameter) or is_flattened(parameter) or hasattr(parameter, "ds_tensor"):
            raise ValueError(
                f"{asker} needs a model that one process holds whole, and {name} is shared out over several; "
                "call Units.find on the model before it is, or write the groups by hand with Coupled"
            )
    try:
        twin = copy.deepcopy(model).eval()
    except RuntimeError as error:  # of a weight that is computed from others
        raise ValueError(
            f"{asker} needs a copy of the model, and there is none: {error}; take pruning masks and "
            "parametrizations out first, or write the groups by hand with Coupled"
        ) from error
    for parameter in twin.parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.requires_grad_(True)  # the package follows autograd's graph
    return twin


def call_with(model: nn.Module, example: Any) -> Any:
    """Return what the model makes of an example: a tensor, a tuple of arguments, or a dict by name."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def tensors_in(output: Any) -> list[Tensor]:
    """Return the tensors of what a model puts out, in containers, dataclasses and other objects."""
    found: list[Tensor] = []
    left, seen = [output], set[int]()
    while left:
        for leaf in tree_leaves(left.pop(0)):
            if isinstance(leaf, Tensor):
                found.append(leaf)
            elif isinstance(getattr(leaf, "__dict__", None), dict) and not isinstance(leaf, nn.Module):
                left += [vars(leaf)] if id(leaf) not in seen else []
                seen.add(id(leaf))
    return found


def _traced(output: Any) -> list[Tensor]:
    found = tensors_in(output)
    if not found:
        raise TypeError(
            f"it puts out a {type(output).__name__}, in which no tensor is seen; let forward return tensors, "
            "or tuples, dicts or dataclasses of them"
        )
    return [tensor for tensor in found if tensor.requires_grad]


def group_of(graph: Any, layer: nn.Module, units: Sequence[int]) -> Any:
    """Return the package's group of some units of a layer: all that is joined to them.

    Raises:
        ValueError: it grows without an end in sight, as where halves of a head change places (Phi-3).
    """
    package: Any = sys.modules[type(graph).__module__]
    whole: Any = package.Group
    most = STEPS * len(graph.module2node)

    class Bounded(whole):  # type: ignore[misc]
        def add_dep(self, dep: Any, idxs: Any) -> None:
            if len(self) > most:
                raise ValueError(f"more than {most} layers are joined to units of a {type(layer).__name__}")
            super().add_dep(dep, idxs)

    package.Group = Bounded
    try:
        return graph.get_pruning_group(layer, _prunes(layer), idxs=units)
    finally:
        package.Group = whole


def unit_members(graph: Any, layer: nn.Module, count: int) -> list[Member]:
    """Return what goes with the units of a layer, and which channel of it belongs to which unit.

    The package returns sets of channels, in an order of its own. So each bit of a unit's number is asked for
    by itself: about 2·log2(count) questions in place of one a unit.

    Raises:
        ValueError: a channel belongs to two units.
    """
    found: dict[tuple[int, str], tuple[Any, dict[int, int]]] = {}

    def ask(units: list[int]) -> Iterable[tuple[Any, str, set[int]]]:
        if units:
            for dependency, channels in group_of(graph, layer, units):
                yield dependency.target.module, dependency.handler.__name__, set(channels)

    for module, handler, channels in ask(list(range(count))):
        found.setdefault((id(module), handler), (module, {}))[1].update(dict.fromkeys(channels, 0))
    for bit in range((count - 1).bit_length()):
        sides: list[dict[tuple[int, str], set[int]]] = []
        for side in (0, 1):
            sides.append({})
            for module, handler, channels in ask([u for u in range(count) if u >> bit & 1 == side]):
                sides[side].setdefault((id(module), handler), set()).update(channels)
        for key, (module, units) in found.items():
            off, on = sides[0].get(key, set()), sides[1].get(key, set())
            if off & on:
                raise ValueError(f"a channel of a {type(module).__name__} belongs to two units")
            for channel in on:
                units[channel] |= 1 << bit
    members = []
    for (_, handler), (module, units) in found.items():
        of = torch.full((max(units) + 1,), -1, dtype=torch.long)
        for channel, unit in units.items():
            of[channel] = unit
        members.append((module, handler, of))
    return members


def _prunes(layer: nn.Module) -> Any:
    """Return the package's function that cuts units of a layer, or channels of a batch normalization."""
    kind = "linear"
    if isinstance(layer, _CONV):
        kind = "depthwise_conv" if is_depthwise(layer) else "conv"
    elif not isinstance(layer, nn.Linear):
        kind = "embedding" if isinstance(layer, nn.Embedding) else "batchnorm"
    return getattr(importlib.import_module("torch_pruning"), f"prune_{kind}_out_channels")


def unit_count(layer: nn.Module) -> int:
    """Return how many units a linear layer, a convolution, an embedding or a batch normalization has."""
    if isinstance(layer, nn.Embedding):
        return layer.embedding_dim
    if isinstance(layer, nn.modules.batchnorm._NormBase):
        return layer.num_features
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]


def is_depthwise(module: nn.Module) -> bool:
    """Whether a convolution has a filter for each channel, and as many as it reads."""
    return isinstance(module, _CONV) and module.groups == module.in_channels == module.out_channels > 1
