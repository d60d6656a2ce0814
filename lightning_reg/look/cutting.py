"""Cut the dead units of a network's layers, one layer after the other."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg.groups.probing import constant_at, inputs_of
from lightning_reg.groups.tracing import dependency_graph, group_of, is_depthwise, unit_count
from lightning_reg.groups.unit_sets import is_response_normed, rms_norms
from lightning_reg.look.constants import Readers, absorb_, is_layer, merge_, read_as_constants, tells

__all__ = ["Uncut", "cut_layers_"]

_CONV = nn.modules.conv._ConvNd
_TRANSPOSED = nn.modules.conv._ConvTransposeNd
_NORM = nn.modules.batchnorm._NormBase
_PASSES = (_NORM, nn.PReLU)
_LAYERS = (nn.Linear, _CONV, nn.Embedding)
# what makes of a constant something that depends on the size of an input, or on a mask
_SIZED = re.compile(
    r"(Sum|Mul|Div|Prod|Cumsum|Cumprod|Bmm|Mm|(?<!Batch)Norm|Logsumexp|Where|MaskedFill|ConstantPad)"
)
#: Units up to which each is asked for by itself.
FEW = 8
_COMPUTED = "the model needs as many as there are"


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
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, _LAYERS) and m in graph.module2node]
    with_layer = {norm for _, layer in layers for norm in norms_behind(layer, graph)}
    alone = [(n, m) for n, m in model.named_modules() if isinstance(m, _NORM) and m not in with_layer]
    for name, layer in [*layers, *alone]:
        dead = [] if layer in heads else dead_units(layer, graph)
        if not dead:
            continue
        if not (is_layer(layer) or is_depthwise(layer) or isinstance(layer, _NORM)):
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
        kept += [f"{count} of {name}, as {reason}" for reason, count in why.items() if reason and count]
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
    through = is_depthwise(layer) or isinstance(layer, _NORM)
    norms = rms_norms(model)
    names = {module: name for name, module in model.named_modules()}
    dead_of = cache(lambda module: frozenset(dead_units(module, graph)))
    removable: list[int] = []
    carried: list[tuple[int, Readers]] = []
    why: Counter[str] = Counter()
    if through and len(dead) > FEW:
        steady = read_as_constants(graph, layer, dead, seen)
        why["what other layers read of them is no constant"] += len(dead) - len(steady)
        dead = steady
    for unit in dead:
        members = list(group_of(graph, layer, [unit]))
        readers = _readers(members, seen, dead_of, heads, names, norms, through)
        if isinstance(readers, str):
            why[readers] += 1
        elif tells(readers):
            carried.append((unit, readers))
        elif len(removable) + 1 == unit_count(layer):
            why[""] += 1  # the last one stays
            break
        else:
            for reader, places, constant in readers:
                absorb_(reader, places, constant)
            removable.append(unit)
    if carried:
        merged = merge_(carried)
        removable += merged
        border = next(iter(tells(carried[0][1])))
        why[f"the border of {names.get(border)} would tell their constant"] += len(carried) - len(merged)
    if removable:
        group = group_of(graph, layer, removable)
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
    through: bool,
) -> Readers | str:
    """The layers that read a unit, where, and the constant they read; or why the unit must stay.

    Where a unit dies on its way, ``through`` what comes after its layer, that it is read as a constant is
    enough.
    """
    readers: Readers = []
    if is_response_normed(one[0].target.module for one in members):
        return "a LocalResponseNorm mixes them with their neighbours"
    passed = [str(getattr(one[0].target.module, "_grad_fn", "")) for one in members]
    sized = next((match[1] for one in passed if (match := _SIZED.search(one))), None)
    for dependency, places in sorted(members, key=lambda one: one[0].handler.__name__ == "prune_in_channels"):
        module, places = dependency.target.module, list(places)
        handler = dependency.handler.__name__
        if isinstance(module, _CONV) and module.groups > 1 and not is_depthwise(module):
            return f"{names.get(module)} is a grouped convolution"
        if handler == "prune_in_channels" and is_layer(module):
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
            if not (through or is_depthwise(module) or dead_of(module).issuperset(places)):
                return f"they are joined to units of {names.get(module)} that are not dead"
        elif not isinstance(module, _PASSES) and type(module).__module__.startswith("torch.nn"):
            what = names.get(module) or "a parameter"
            return f"{what}, a {type(module).__name__}, depends on all of them"
    return readers or ""  # outputs of the model


def dead_units(layer: nn.Module, graph: Any) -> list[int]:
    """Return units whose weights are all zero, or that only batch normalizations of scale 0 read."""
    if isinstance(layer, _NORM):
        return (layer.weight == 0).nonzero().flatten().tolist() if layer.affine else []
    weight: Tensor = layer.weight.detach()  # type: ignore[operator]
    if isinstance(layer, nn.Embedding) or (isinstance(layer, _TRANSPOSED) and layer.groups == 1):
        weight = weight.transpose(0, 1)
    if weight.shape[0] < 2:
        return []
    dead = (weight.flatten(1) == 0).all(1)
    scales = [norm.weight.detach() for norm in norms_behind(layer, graph)]
    if scales and all(scale.shape == dead.shape for scale in scales):
        dead = dead | (torch.stack(scales) == 0).all(0)
    return dead.nonzero().flatten().tolist()


def norms_behind(layer: nn.Module, graph: Any) -> list[Any]:
    """Return the batch normalizations that read a layer, where nothing else does."""
    behind = [node.module for node in graph.module2node[layer].outputs] if layer in graph.module2node else []
    return behind if all(isinstance(norm, _NORM) and norm.affine for norm in behind) else []
