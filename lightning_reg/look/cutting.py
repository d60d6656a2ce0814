"""Cut the dead units of a network's layers, one layer after the other."""

from __future__ import annotations

import importlib
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg.groups.probing import constant_at, inputs_of
from lightning_reg.groups.tracing import dependency_graph, unit_count
from lightning_reg.groups.unit_sets import is_response_normed, rms_norms

__all__ = ["Uncut", "cut_layers_"]

_CONV = nn.modules.conv._ConvNd
_TRANSPOSED = nn.modules.conv._ConvTransposeNd
_NORM = nn.modules.batchnorm._NormBase
_PASSES = (_NORM, nn.PReLU)
# what makes of a constant something that depends on the size of an input, or on a mask
_SIZED = re.compile(r"(Sum|Mul|Div|Prod|Cumsum|Cumprod|Bmm|Mm|Norm|Logsumexp|Where|MaskedFill|ConstantPad)")
_COMPUTED = "the model needs as many as there are"


#: Layers that read a unit, at which channels, and the constants that they read there.
Readers = list[tuple[nn.Module, list[int], Tensor]]


class Uncut(Exception):
    """Without the dead units of this layer, the model does not run or puts out something else."""


def cut_layers_(
    model: nn.Module,
    probes: Sequence[Any],
    is_same: Callable[[], bool],
    heads: set[nn.Module],
    skip: set[str],
) -> list[str]:
    """Cut the dead units of every layer; return why others stay, a line for each layer that has some.

    Args:
        model: a copy in ``eval`` mode whose parameters take gradients, changed in place.
        probes: what it takes, several times.
        is_same: whether its outputs are what they were. It may raise.
        heads: layers in which attention heads lie.
        skip: the names of layers to leave as they are.

    Raises:
        Uncut: with the name of a layer to be left as it is; the model is spoilt.
        ValueError: the model cannot be traced.
    """
    graph = dependency_graph(model, probes[0], "compact(...)")
    kept: list[str] = []
    for name, layer in list(model.named_modules()):
        known = isinstance(layer, (nn.Linear, _CONV, nn.Embedding))
        if not known or layer in heads or layer not in graph.module2node:
            continue
        dead = dead_units(layer, graph)
        if not dead:
            continue
        if not (_is_layer(layer) or isinstance(layer, nn.Embedding)):
            if not _is_depthwise(layer):
                kept.append(f"{len(dead)} of {name or 'the model'}, a grouped convolution")
            continue
        if name in skip:
            kept.append(f"{len(dead)} of {name}, as {_COMPUTED}")
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what the package cannot follow to its end
                why = _cut_(graph, layer, dead, inputs_of(model, probes), heads, model)
            fits = len(dead) == sum(why.values()) or is_same()
        except Exception as error:
            raise Uncut(name) from error
        if not fits:
            raise Uncut(name)
        kept += [f"{count} of {name}, as {reason}" for reason, count in why.items() if reason]
    return kept


def _cut_(
    graph: Any,
    layer: nn.Module,
    dead: list[int],
    seen: dict[nn.Module, list[Tensor]],
    heads: set[nn.Module],
    model: nn.Module,
) -> Counter[str]:
    """Cut the dead units of one layer, and of those that are joined to it; count why others stay."""
    pruning = importlib.import_module("torch_pruning")
    prune = pruning.prune_conv_out_channels
    if isinstance(layer, (nn.Linear, nn.Embedding)):
        linear = isinstance(layer, nn.Linear)
        prune = pruning.prune_linear_out_channels if linear else pruning.prune_embedding_out_channels
    norms = rms_norms(model)
    names = {module: name for name, module in model.named_modules()}
    dead_of = cache(lambda module: frozenset(dead_units(module, graph)))
    removable: list[int] = []
    carried: list[tuple[int, Readers]] = []
    why: Counter[str] = Counter()
    for unit in dead:
        members = list(graph.get_pruning_group(layer, prune, idxs=[unit]))
        readers = _readers(members, seen, dead_of, heads, names, norms)
        if isinstance(readers, str):
            why[readers] += 1
        elif _tells(readers):
            carried.append((unit, readers))
        elif len(removable) + 1 == unit_count(layer):
            why[""] += 1  # the last one stays
            break
        else:
            for reader, places, constant in readers:
                _absorb(reader, places, constant)
            removable.append(unit)
    if carried:
        merged = _merge_(carried)
        removable += merged
        border = next(iter(_tells(carried[0][1])))
        why[f"the border of {names.get(border)} would tell their constant"] += len(carried) - len(merged)
    if removable:
        group = graph.get_pruning_group(layer, prune, idxs=removable)
        ids = {id(dependency.target.module) for dependency, _ in group}
        group.prune()
        for norm in (norm for weight, norm in norms.items() if weight in ids):
            _correct_(norm, len(removable))
    return why


@torch.no_grad()
def _correct_(norm: nn.Module, cut: int) -> None:
    r"""Let an RMSNorm put out what it did before channels of zeros were cut out of what it reads.

    With n channels before and m now, :math:`1/\sqrt{S/m + \epsilon n/m} = \sqrt{m/n}/\sqrt{S/n + \epsilon}`.
    """
    weight: Any = norm.weight
    ratio = 1.0 + cut / len(weight)
    for name in ("eps", "epsilon", "variance_epsilon"):
        if hasattr(norm, name):
            eps: Any = getattr(norm, name)
            setattr(norm, name, (torch.finfo(weight.dtype).eps if eps is None else eps) * ratio)
    if hasattr(norm, "normalized_shape"):
        setattr(norm, "normalized_shape", tuple(weight.shape))  # noqa: B010 - a module's own
    scale = weight.clone()
    weight.zero_()
    try:
        offset = float(bool(norm(torch.ones_like(weight)[None]).any()))  # Gemma's scale is 1 + weight
    except TypeError:  # it reads something beside
        offset = 0.0
    weight.copy_((scale + offset) * ratio**0.5 - offset)


def _readers(
    members: Sequence[Any],
    seen: dict[nn.Module, list[Tensor]],
    dead_of: Callable[[nn.Module], frozenset[int]],
    heads: set[nn.Module],
    names: dict[nn.Module, str],
    norms: dict[int, nn.Module],
) -> Readers | str:
    """The layers that read a unit, where, and the constant they read; or why the unit must stay."""
    readers: Readers = []
    if is_response_normed(one[0].target.module for one in members):
        return "a LocalResponseNorm mixes them with their neighbours"
    passed = [str(getattr(one[0].target.module, "_grad_fn", "")) for one in members]
    sized = next((match[1] for one in passed if (match := _SIZED.search(one))), None)
    for dependency, places in sorted(members, key=lambda one: one[0].handler.__name__ == "prune_in_channels"):
        module, places = dependency.target.module, list(places)
        handler = dependency.handler.__name__
        if isinstance(module, _CONV) and module.groups > 1 and not _is_depthwise(module):
            return f"{names.get(module)} is a grouped convolution"
        if handler == "prune_in_channels" and _is_layer(module):
            constant = constant_at(seen.get(module, []), places)
            if constant is None:
                return f"what {names.get(module)} reads of them is no constant"
            if sized and constant.any():
                return f"the constant that {names.get(module)} reads may depend on sizes or masks ({sized})"
            readers.append((module, places, constant))
        elif id(module) in norms:
            continue
        elif isinstance(module, nn.Parameter):
            if module.dim() > 1 and bool(module[..., places].any()):
                return "a parameter that is joined to them is not zero there"
        elif isinstance(module, (nn.Linear, _CONV, nn.Embedding)):
            if module in heads:
                return f"{names.get(module)} has attention heads"
            if not _is_depthwise(module) and not dead_of(module).issuperset(places):
                return f"they are joined to units of {names.get(module)} that are not dead"
        elif not isinstance(module, _PASSES) and type(module).__module__.startswith("torch.nn"):
            what = names.get(module) or "a parameter"
            return f"{what}, a {type(module).__name__}, depends on all of them"
    return readers or ""  # outputs of the model


def _tells(readers: Readers) -> dict[nn.Module, tuple[list[int], Tensor]]:
    """What of the readers of a unit cannot take its constant into a bias, since it tells where that ends."""
    return {m: (places, constant) for m, places, constant in readers if constant.any() and not _absorbs(m)}


@torch.no_grad()
def _merge_(carried: list[tuple[int, Readers]]) -> list[int]:
    """Let one unit carry the constants of the others, whose weights are added to its own; return these.

    What a padded convolution makes of a constant is in proportion to it, at the border too.
    """
    told = [_tells(readers) for _, readers in carried]
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
                _absorb(reader, places, constant)
        merged.append(unit)
    return merged


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


def dead_units(layer: nn.Module, graph: Any) -> list[int]:
    """Return units whose weights are all zero, or that only batch normalizations of scale 0 read."""
    weight: Tensor = layer.weight.detach()  # type: ignore[operator]
    if isinstance(layer, nn.Embedding) or (isinstance(layer, _TRANSPOSED) and layer.groups == 1):
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
