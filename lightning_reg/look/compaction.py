"""Cut dead units out of a network, through the ``torch-pruning`` package."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_reg.groups.forms import head_count, layout_of
from lightning_reg.groups.tracing import call_with, dependency_graph, unit_count
from lightning_reg.look.heads import cut_heads_
from lightning_reg.select.derived import store_in_use_
from lightning_reg.select.parameters import named_parameters
from lightning_reg.tensors.shards import is_flattened, is_sharded

__all__ = ["compact"]

_CONV = nn.modules.conv._ConvNd
_TRANSPOSED = nn.modules.conv._ConvTransposeNd
_NORM = nn.modules.batchnorm._NormBase
_PASSES = (_NORM, nn.PReLU)


def compact(model: nn.Module, example_input: Any = None) -> nn.Module:
    """Return a smaller dense copy of ``model`` without its dead units, whose outputs are equal.

    A unit is an output row of a linear layer or a filter of a convolution. It is dead where what it puts out
    is a constant: its incoming weights are all zero, as it uses them (below a pruning mask or a
    parametrization, which the copy has no more), or the scale of the batch normalization behind it is
    (network slimming), in every layer that a residual sum joins to it. A constant of 0 is cut. Another one is
    moved into the bias of the layer that reads it, where this is linear or an unpadded convolution; a unit
    whose constant cannot be moved is kept. An attention head is dead where its queries, keys and values are
    all zero; a ``MultiheadAttention`` that loses heads becomes a module of our own, called in the same way.
    One unit of each layer is always kept.

    To have units die as a whole, penalize them with ``groups="units"``, see :class:`~lightning_reg.Units`.
    :func:`~lightning_reg.size_table` says what was won.

    Args:
        model: trained, with groups that are exactly zero. Not changed.
        example_input: what the model takes, a tensor, a tuple of arguments or a dict of them by name. Where
            None, the model's own ``example_input_array``.

    Returns:
        A copy in the mode (``train`` or ``eval``) of ``model``; outputs are equal in ``eval`` mode.

    Raises:
        ImportError: ``torch-pruning`` is not installed.
        ValueError: the model has recurrent layers, grouped convolutions or attention layers of an unknown
            make, or parameters that processes hold in parts; the sentence names one.
        RuntimeError: the outputs differ after all.
    """
    if example_input is None:
        example_input = getattr(model, "example_input_array", None)
        if example_input is None:
            raise ValueError(
                "compact(...) follows one forward; give it an example_input that the model takes"
            )
    _refuse(model)
    smaller = _with_weights_in_use(model).eval()
    with torch.no_grad():
        before = call_with(smaller, example_input)
        cut_heads_(smaller, lambda: _equal(before, call_with(smaller, example_input)))
    kept = _refuse(smaller)
    heads = {module for name, module in smaller.named_modules() if name in kept}
    for parameter in smaller.parameters():
        parameter.requires_grad_(True)  # the package follows autograd's graph
    graph = dependency_graph(smaller, example_input, "compact(...)")
    roots = [m for m in smaller.modules() if _is_layer(m) and m not in heads and m in graph.module2node]
    for layer in roots:
        _cut(graph, layer, smaller, example_input, heads)
    with torch.no_grad():
        after = call_with(smaller, example_input)
    if not _equal(before, after):
        raise RuntimeError("compact(...) would change the outputs of this model, so it was not cut")
    frozen = {name for s in named_parameters(model) if not s.parameter.requires_grad for name in s.names}
    frozen |= {name.replace("in_proj_", "in_proj.") for name in frozen}  # of an attention that is cut
    for name, parameter in smaller.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return smaller.train(model.training)


def _with_weights_in_use(model: nn.Module) -> nn.Module:
    """Return a copy whose weights are parameters: of pruning masks and parametrizations, what is in use."""
    computed = [s for s in named_parameters(model) if s.derived is not None]
    memo: dict[int, Any] = {}
    for s in computed:  # a hook leaves its tensor on the layer with a graph, which cannot be copied
        held = s.module.__dict__.get(s.attribute)
        if isinstance(held, Tensor):
            memo[id(held)] = held.detach().clone()
    copied = copy.deepcopy(model, memo)
    for module in list(copied.modules()):
        store_in_use_(module)
    return copied


def _equal(before: Any, after: Any) -> bool:
    pairs = zip(tree_leaves(before), tree_leaves(after), strict=True)
    tensors = [(a, b) for a, b in pairs if isinstance(a, Tensor)]
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in tensors)


def _cut(graph: Any, layer: nn.Module, model: nn.Module, example: Any, heads: set[nn.Module]) -> None:
    """Cut the dead units of one layer, and of those that are joined to it."""
    dead = _dead(layer, graph)
    if not dead:
        return
    pruning = importlib.import_module("torch_pruning")
    linear = isinstance(layer, nn.Linear)
    prune = pruning.prune_linear_out_channels if linear else pruning.prune_conv_out_channels
    seen = _inputs_of_layers(model, example)
    removable: list[int] = []
    for unit in dead:
        members = list(graph.get_pruning_group(layer, prune, idxs=[unit]))
        readers = _readers(members, seen, graph, heads)
        if readers is None:
            continue
        if len(removable) + 1 == unit_count(layer):
            break  # the last one stays
        for reader, places, constant in readers:
            _absorb(reader, places, constant)
        removable.append(unit)
    if removable:
        graph.get_pruning_group(layer, prune, idxs=removable).prune()


def _readers(
    members: Sequence[Any], seen: dict[nn.Module, Tensor], graph: Any, heads: set[nn.Module]
) -> list[tuple[nn.Module, list[int], Tensor]] | None:
    """The layers that read a unit, where, and the constant they read; None if the unit must stay."""
    readers = []
    for dependency, places in members:
        module, places = dependency.target.module, list(places)
        handler = dependency.handler.__name__
        if handler == "prune_in_channels" and _is_layer(module):
            value = seen[module]
            value = value[..., places] if isinstance(module, nn.Linear) else value[:, places].movedim(1, -1)
            flat = value.reshape(-1, len(places))
            if not bool((flat == flat[:1]).all()) or (bool(flat.any()) and not _absorbs(module)):
                return None
            readers.append((module, places, flat[0]))
        elif isinstance(module, (nn.Linear, _CONV)):
            if module in heads or (
                not _is_depthwise(module) and not set(places) <= set(_dead(module, graph))
            ):
                return None
        elif not isinstance(module, _PASSES) and type(module).__module__.startswith("torch.nn"):
            return None  # a layer whose result depends on how many units there are, such as LayerNorm
    return readers or None


def _absorbs(module: nn.Module) -> bool:
    """Whether a constant input of this layer is a constant output."""
    if isinstance(module, nn.Linear):
        return True
    padding: Any = getattr(module, "padding", "same")
    return not isinstance(module, _TRANSPOSED) and not isinstance(padding, str) and not any(padding)


@torch.no_grad()
def _absorb(module: nn.Module, places: list[int], constant: Tensor) -> None:
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


def _inputs_of_layers(model: nn.Module, example: Any) -> dict[nn.Module, Tensor]:
    """What each linear layer and convolution reads."""
    seen: dict[nn.Module, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda m, args: seen.__setitem__(m, args[0].detach()))
        for module in model.modules()
        if _is_layer(module)
    ]
    try:
        with torch.no_grad():
            call_with(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _dead(layer: nn.Module, graph: Any) -> list[int]:
    """Units whose weights are all zero, or that only batch normalizations of scale 0 read."""
    weight: Tensor = layer.weight.detach()  # type: ignore[operator]
    if isinstance(layer, _TRANSPOSED):
        weight = weight.transpose(0, 1)
    if weight.shape[0] < 2:
        return []
    dead = (weight.flatten(1) == 0).all(1)
    behind = [node.module for node in graph.module2node[layer].outputs] if layer in graph.module2node else []
    if behind and all(isinstance(norm, _NORM) and norm.affine for norm in behind):
        scales = [norm.weight.detach() for norm in behind]
        if all(scale.shape == dead.shape for scale in scales):
            dead = dead | (torch.stack(scales) == 0).all(0)
    return dead.nonzero().flatten().tolist()


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, _CONV) and module.groups == module.in_channels > 1


def _is_layer(module: nn.Module) -> bool:
    """Whether units of this layer are looked at: linear layers and convolutions that are not grouped."""
    return isinstance(module, nn.Linear) or (isinstance(module, _CONV) and module.groups == 1)


def _refuse(model: nn.Module) -> set[str]:
    """Refuse what cannot be cut at all; return the names of the layers in which attention heads lie."""
    for name, parameter in model.named_parameters():
        if is_sharded(parameter) or is_flattened(parameter) or hasattr(parameter, "ds_tensor"):
            raise ValueError(
                f"compact(...) cuts a model that one process holds whole, and {name} is shared out over "
                "several; load the full state dict into a plain copy of the model, and cut that"
            )
    names = {module: name for name, module in model.named_modules()}
    heads: set[str] = set()
    around: set[nn.Module] = set()
    for selected in named_parameters(model):
        try:
            layout_of(selected, "heads")
        except ValueError:
            continue
        heads.add(names[selected.module])
        around.update(selected.containers)
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            what = "recurrent: its hidden units"
        elif head_count(module) and module not in around:
            what = "an attention of an unknown make: its heads"
        elif isinstance(module, _CONV) and module.groups > 1 and not _is_depthwise(module):
            what = "a grouped convolution: its filters"
        else:
            continue
        raise ValueError(
            f"compact(...) cannot cut {name or 'the model'}, a {kind}, which is {what} "
            "cannot be taken out one by one; cut the parts of the model around it"
        )
    return heads
