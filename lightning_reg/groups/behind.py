"""Which normalization reads what a layer puts out, and so undoes any scaling of its weights.

Found in three ways, each where the one before it knows nothing: from torch.fx's graph of the whole model,
from the graphs of its parts, and by the order in which modules are defined. No forward is run: the graph is
drawn on a copy of the module tree that shares the parameters.
"""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
import torch.fx
from torch import nn

from lightning_reg.select.weights import is_norm

__all__ = ["norms_behind"]

_CONV = nn.modules.conv._ConvNd
_LAYERS = (nn.Linear, _CONV)
_PASSES = (nn.Dropout, nn.Identity, nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.modules.batchnorm._NormBase)
_FUNCTIONS: dict[Any, str] = {
    nn.functional.batch_norm: "batch_norm",
    nn.functional.instance_norm: "instance_norm",
}


def norms_behind(root: nn.Module) -> dict[nn.Module, nn.Module | str]:
    """Return the linear layers and convolutions that a batch or instance norm alone reads, with the norm.

    Functions of one tensor (activations, pooling, dropout) may lie between. A norm without a module is named.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))
    >>> {layer.out_channels: type(norm).__name__ for layer, norm in norms_behind(net).items()}
    {4: 'BatchNorm2d'}
    """
    twin, original = _tree(root)
    found = {}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.no_grad():
        warnings.simplefilter("ignore")
        for layer, norm in _find(twin):
            found[original[layer]] = norm if isinstance(norm, str) else original[norm]
    return found


class _Tracer(torch.fx.Tracer):
    """One for which layers and norms of any make are leaves."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _LAYERS) or is_norm(m) or super().is_leaf_module(m, module_qualified_name)


def _find(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Module | str]]:
    try:
        graph = _Tracer().trace(module)
    except Exception:  # what its forward does cannot be drawn: its parts may be
        children = [child for child in module.children() if not isinstance(child, _LAYERS)]
        for child in children:
            if any(True for _ in child.children()) and not is_norm(child):
                yield from _find(child)
        yield from _by_order(module)
        return
    modules = dict(module.named_modules(remove_duplicate=False))
    for node in graph.nodes:
        norm = modules[node.target] if node.op == "call_module" else _FUNCTIONS.get(node.target, "")
        if not norm or not (isinstance(norm, str) or _undoes(norm)):
            continue
        sources = node.all_input_nodes[:1]  # and not running statistics
        while len(sources) == 1 and len(sources[0].users) == 1:
            layer = modules[sources[0].target] if sources[0].op == "call_module" else None
            if isinstance(layer, _LAYERS):
                yield layer, norm
            if layer is not None and (isinstance(layer, _LAYERS) or is_norm(layer)):
                break
            sources = sources[0].all_input_nodes


def _by_order(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Module | str]]:
    """Take it that a norm reads the layer defined just before it."""
    last: nn.Module | None = None
    for child in module.children():
        if isinstance(child, _LAYERS):
            last = child
        elif last is not None and _undoes(child):
            width = last.out_features if isinstance(last, nn.Linear) else last.out_channels
            if width == (child.num_channels if isinstance(child, nn.GroupNorm) else child.num_features):
                yield last, child
            last = None
        elif not isinstance(child, _PASSES):
            last = None


def _undoes(norm: nn.Module) -> bool:
    """Whether a norm scales each channel by itself, over what it reads in the batch."""
    if isinstance(norm, nn.GroupNorm):
        return norm.num_groups == norm.num_channels
    return isinstance(norm, nn.modules.batchnorm._NormBase)


def _tree(root: nn.Module) -> tuple[nn.Module, dict[nn.Module, nn.Module]]:
    """Return a copy of the tree of modules, and which one each was: whatever a trace writes is not kept."""
    memo: dict[int, nn.Module] = {}

    def copied(module: nn.Module) -> nn.Module:
        if id(module) not in memo:
            twin = memo[id(module)] = object.__new__(module.__class__)  # FSDP2 has a __new__
            twin.__dict__.update(
                (key, copy.copy(value) if isinstance(value, (dict, list, set)) else value)
                for key, value in module.__dict__.items()
            )
            for hooks in ("_forward_pre_hooks", "_forward_hooks"):  # FSDP2's would begin its work in a trace
                twin.__dict__[hooks] = OrderedDict()
            twin.__dict__["_modules"] = {
                name: None if child is None else copied(child) for name, child in module._modules.items()
            }
        return memo[id(module)]

    twin = copied(root)
    return twin, {memo[id(module)]: module for module in root.modules()}
