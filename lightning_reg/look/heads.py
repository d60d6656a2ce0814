"""Cut dead attention heads out of a network, by rows and columns of its projections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_reg.groups.forms import HEAD_COUNTS, KEY_VALUE_COUNTS
from lightning_reg.groups.layout import Layout, Slices
from lightning_reg.groups.units import head_sets
from lightning_reg.look.attention import SmallerAttention
from lightning_reg.prox.group_maxima import group_maxima
from lightning_reg.select.parameters import Selected, named_parameters

__all__ = ["cut_heads_"]


@dataclass(frozen=True)
class _Attention:
    """One attention layer: what of it is cut.

    Attributes:
        owner: the module that says how many heads there are.
        into: the projections that make queries, keys and values, with layouts of as many groups.
        out: the projections that may read the heads.
    """

    owner: nn.Module
    into: list[tuple[Selected, Layout]]
    out: list[nn.Linear]


@torch.no_grad()
def cut_heads_(model: nn.Module, is_same: Callable[[], bool]) -> list[str]:
    """Cut the heads whose queries, keys and values are zero; return where they stay, a line a layer.

    They stay where the model would not put out what it did.

    Args:
        model: a copy, changed in place.
        is_same: whether the model's outputs are what they were. It may raise.
    """
    kept: list[str] = []
    for attention in list(_attentions(model)):
        layouts = [layout for _, layout in attention.into]
        alive = group_maxima([s.parameter for s, _ in attention.into], layouts) > 0
        if bool(alive.all()) or len(alive) < 2:
            continue
        dead = int((~alive).sum())
        if not bool(alive.any()):
            alive[0] = True  # one stays
        if not any(_try(model, attention, out, alive, is_same) for out in attention.out):
            name = next(name for name, module in model.named_modules() if module is attention.owner)
            kept.append(f"{dead} heads of {name or 'the model'}, which does not run with fewer")
    return kept


def _attentions(model: nn.Module) -> Iterator[_Attention]:
    parameters = {s.name: s for s in named_parameters(model)}
    for forms in head_sets(list(parameters.values())):
        into = [(parameters[name], layout) for name, layout in forms.items()]
        module = into[0][0].module
        if isinstance(module, nn.MultiheadAttention):
            yield _Attention(module, into, [module.out_proj])
            continue
        around = into[0][0].containers
        mine = {id(s.module) for s, _ in into}
        width = max(s.parameter.shape[0] // _parts(layout) for s, layout in into)
        near = [
            layer
            for container in (around[-2], *around[-3:-2])
            for layer in container.modules()
            if isinstance(layer, nn.Linear) and id(layer) not in mine and layer.in_features == width
        ]
        yield _Attention(around[-2], into, list(dict.fromkeys(near)))


def _parts(layout: Layout) -> int:
    return layout.shape[0] if isinstance(layout, Slices) else 1


def _try(
    model: nn.Module, attention: _Attention, out: nn.Linear, alive: Tensor, is_same: Callable[[], bool]
) -> bool:
    """Cut one attention layer, and undo it where the outputs are not what they were."""
    if isinstance(attention.owner, nn.MultiheadAttention):
        try:
            smaller = SmallerAttention(attention.owner, alive)
        except ValueError:
            return False
        _exchange(model, attention.owner, smaller)
        if _holds(is_same):
            return True
        _exchange(model, smaller, attention.owner)
        return False
    tensors = [(s.module, s.attribute, _rows(s.parameter, layout, alive)) for s, layout in attention.into]
    tensors.append((out, "weight", _columns(out.weight, alive)))
    counts = dict(vars(attention.owner))
    before = [(module, name, getattr(module, name)) for module, name, _ in tensors]
    _store(tensors)
    share = int(alive.sum()) / len(alive)
    for name, count in counts.items():
        if name in _COUNTS and isinstance(count, int):
            setattr(attention.owner, name, round(count * share))
    if _holds(is_same):
        return True
    _store(before)
    for name in _COUNTS & counts.keys():
        setattr(attention.owner, name, counts[name])
    return False


#: Numbers of heads, and of all their entries together.
_COUNTS = {*HEAD_COUNTS, *KEY_VALUE_COUNTS, "attn_dim", "all_head_size", "inner_dim"}


def _holds(is_same: Callable[[], bool]) -> bool:
    try:
        return is_same()
    except (RuntimeError, ValueError, AssertionError, IndexError):  # shapes that do not fit
        return False


def _rows(weight: Tensor, layout: Layout, alive: Tensor) -> Tensor:
    view = layout.view(weight)
    assert isinstance(layout, Slices)
    (dim,) = layout.keep
    kept = view.movedim(dim, 0)[alive.to(view.device)].movedim(0, dim)
    return kept.reshape(-1, *weight.shape[1:])


def _columns(weight: Tensor, alive: Tensor) -> Tensor:
    split = weight.view(len(weight), len(alive), -1)
    return split[:, alive.to(weight.device)].flatten(1)


def _store(tensors: list[tuple[nn.Module, str, Tensor]]) -> None:
    for module, name, tensor in tensors:
        setattr(module, name, tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.clone()))
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape


def _exchange(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if child is old:
                setattr(module, name, new)
