"""Cut dead units out of a network, through the ``torch-pruning`` package."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg.groups.forms import layout_of
from lightning_reg.groups.layout import Slices
from lightning_reg.groups.probing import probes_of
from lightning_reg.groups.tracing import call_with, tensors_in
from lightning_reg.look.attention import SmallerAttention
from lightning_reg.look.cutting import Uncut, cut_layers_
from lightning_reg.look.heads import cut_heads_
from lightning_reg.select.derived import store_in_use_
from lightning_reg.select.parameters import named_parameters
from lightning_reg.tensors.shards import is_flattened, is_sharded

__all__ = ["compact"]


@torch.inference_mode(False)
def compact(model: nn.Module, example_input: Any = None) -> nn.Module:
    """Return a smaller dense copy of ``model`` without its dead units, whose outputs are equal.

    A unit is an output row of a linear layer or a filter of a convolution. It is dead where what it puts out
    is a constant: its incoming weights are all zero, as it uses them (below a pruning mask or a
    parametrization, which the copy has no more), or the scale of the batch normalization behind it is
    (network slimming), in every layer that a residual sum joins to it. A constant of 0 is cut. Another one is
    moved into the bias of the layer that reads it, where this is linear or an unpadded convolution; where a
    padded one reads it, which tells where it ends, one unit stays and carries the constants of all. An
    attention head is dead where its queries, keys and values are all zero; a ``MultiheadAttention`` that
    loses heads becomes a module of our own, called in the same way. A ``TransformerEncoder`` that holds one
    takes no nested tensors, so that without gradients it puts out at padded positions what it does with
    gradients, and not zeros; it can be traced and exported, but not scripted. One unit of each layer is
    always kept. A warning names the layers whose dead units cannot be cut, such as those that a grouped
    convolution or a layer normalization reads, and says why.

    To have units die as a whole, penalize them with ``groups="units"``, see :class:`~lightning_reg.Units`.
    :func:`~lightning_reg.size_table` says what was won.

    Args:
        model: trained, with groups that are exactly zero. Not changed.
        example_input: what the model takes, a tensor, a tuple of arguments or a dict of them by name. Where
            None, the model's own ``example_input_array``.

    Returns:
        A copy whose modules are in the mode (``train`` or ``eval``) of those of ``model``; outputs are equal
        in ``eval`` mode. Of a compiled module, a copy that is not compiled.

    Raises:
        ImportError: ``torch-pruning`` is not installed.
        TypeError: the model is a ScriptModule.
        ValueError: the model rejects the example, or processes hold its parameters in parts.
    """
    if example_input is None:
        example_input = getattr(model, "example_input_array", None)
        if example_input is None:
            raise ValueError(
                "compact(...) follows one forward; give it an example_input that the model takes"
            )
    while isinstance(getattr(model, "_orig_mod", None), nn.Module):  # torch.compile's, which hides the layers
        model = model._orig_mod  # type: ignore[assignment]
    _refuse(model)
    whole = _with_weights_in_use(model).eval()
    for module in whole.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # that path reads the weights of a whole attention
    probes = probes_of(whole, example_input, "compact(...)")
    with torch.no_grad():
        before = [call_with(whole, probe) for probe in probes]

    def is_same(one: nn.Module) -> bool:
        with torch.no_grad():
            return all(_equal(old, call_with(one, p)) for old, p in zip(before, probes, strict=True))

    with_heads = cut_heads_(whole, lambda: is_same(whole))
    for parameter in whole.parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.requires_grad_(True)  # the package follows autograd's graph
    skip: set[str] = set()
    while True:
        smaller = copy.deepcopy(whole)
        try:
            kept = cut_layers_(smaller, probes, partial(is_same, smaller), _layers_of_heads(smaller), skip)
            break
        except Uncut as layer:
            skip.add(str(layer))
    _tie_(smaller, whole)
    kept = with_heads + kept
    if kept:
        shown = "; ".join(kept[:4]) + ("; and more" if len(kept) > 4 else "")
        warnings.warn(f"compact(...) keeps dead units that it cannot cut: {shown}", stacklevel=2)
    frozen = {name for s in named_parameters(model) if not s.parameter.requires_grad for name in s.names}
    frozen |= {name.replace("in_proj_", "in_proj.") for name in frozen}  # of an attention that is cut
    for name, parameter in smaller.named_parameters():
        if parameter.requires_grad:
            parameter.requires_grad_(name not in frozen)
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in smaller.named_modules():
        module.training = modes.get(name, model.training)
    _nest_again_(smaller, model)
    return smaller


def _nest_again_(smaller: nn.Module, model: nn.Module) -> None:
    """Let encoders that have lost no heads take nested tensors where they did."""
    before = dict(model.named_modules())
    for name, module in smaller.named_modules():
        cut = any(isinstance(one, SmallerAttention) for one in module.modules())
        if (
            isinstance(module, nn.TransformerEncoder)
            and not cut
            and hasattr(before[name], "use_nested_tensor")
        ):
            module.use_nested_tensor = before[name].use_nested_tensor


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
    pairs = zip(tensors_in(before), tensors_in(after), strict=True)
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs)


def _refuse(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("compact(...) cannot cut a ScriptModule; cut the module, and script the result")
    for name, parameter in model.named_parameters():
        if is_sharded(parameter) or is_flattened(parameter) or hasattr(parameter, "ds_tensor"):
            raise ValueError(
                f"compact(...) cuts a model that one process holds whole, and {name} is shared out over "
                "several; load the full state dict into a plain copy of the model, and cut that"
            )


def _layers_of_heads(model: nn.Module) -> set[nn.Module]:
    """The layers whose rows are of attention heads; the output's projection has heads in its columns."""
    heads: set[nn.Module] = set()
    for selected in named_parameters(model):
        try:
            layout = layout_of(selected, "heads")
        except ValueError:
            continue
        if not (isinstance(layout, Slices) and layout.keep == (2,)):
            heads.add(selected.module)
    return heads


def _tie_(model: nn.Module, before: nn.Module) -> None:
    """Make those parameters one that were one, where cutting has left them alike."""
    modules, first = dict(model.named_modules()), dict[int, tuple[nn.Module, str]]()
    for name, module in before.named_modules(remove_duplicate=False):
        for attribute, parameter in module.named_parameters(recurse=False):
            here = modules.get(name)
            if here is None or not hasattr(here, attribute):
                continue
            other, known = first.setdefault(id(parameter), (here, attribute))
            mine, theirs = getattr(here, attribute), getattr(other, known)
            if mine is not theirs and torch.equal(mine, theirs):
                setattr(here, attribute, theirs)
