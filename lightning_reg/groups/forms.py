"""Which weights stand or fall together: the groups of structured sparsity.

``groups=`` is one of

- ``"rows"`` (the default): a unit's incoming weights. Rows of a linear layer, filters of a convolution, the
  rows of all gates of a recurrent layer's hidden unit, one embedding vector a token. An entry of a bias goes
  with its row where both are selected;
- ``"columns"``: what one input feature feeds. Columns of a linear or recurrent layer, input channels of a
  convolution, one dimension of an embedding;
- ``"filters"`` and ``"channels"``: the same for convolutions only, output and input; grouped and transposed
  ones are laid out differently, and are read right;
- ``"heads"``: attention heads, rows of the query, key and value projections and columns of the output's;
- ``"tensor"``: each tensor one group;
- a callable ``(name, parameter, module) -> Layout | Tensor | str``, where a tensor holds a label for each
  weight, and a string is one of the above;
- ``"units"`` or :class:`~lightning_reg.Units`: a filter, a neuron or a head with all that goes with it, found
  by following one forward;
- a :class:`~lightning_reg.Coupled`, whose groups span several tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from lightning_reg.groups.layout import Labels, Layout, Slices
from lightning_reg.select.parameters import Selected, answer_of
from lightning_reg.tensors.shards import whole

if TYPE_CHECKING:
    from lightning_reg.groups.coupled import Coupled
    from lightning_reg.groups.units import Units

__all__ = [
    "HEAD_COUNTS",
    "KEY_VALUE_COUNTS",
    "GroupForm",
    "Groups",
    "check_groups",
    "default_layout",
    "layout_of",
]

GroupForm: TypeAlias = Literal["rows", "columns", "filters", "channels", "heads", "tensor"]
GroupRule: TypeAlias = "Callable[[str, nn.Parameter, nn.Module], Layout | Tensor | GroupForm]"
Groups: TypeAlias = "GroupForm | Literal['units'] | GroupRule | Coupled | Units"

_CONV = nn.modules.conv._ConvNd
_TRANSPOSED = nn.modules.conv._ConvTransposeNd
HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")
KEY_VALUE_COUNTS = ("num_key_value_heads", "num_kv_heads")
_INTO_HEADS = frozenset({"q_proj", "query", "to_q", "wq", "q", "q_lin"})
_INTO_KEY_VALUE = frozenset(
    {"k_proj", "v_proj", "key", "value", "to_k", "to_v", "wk", "wv", "k", "v", "k_lin", "v_lin"}
)
_INTO_FUSED = frozenset({"qkv", "qkv_proj", "in_proj", "to_qkv", "Wqkv"})
_OUT_OF_HEADS = frozenset({"out_proj", "o_proj", "proj", "to_out", "wo", "out_lin"})


def check_groups(groups: object) -> None:
    """Refuse what is none of the forms of groups.

    Raises:
        ValueError: an unknown word.
        TypeError: neither a word nor a callable.
    """
    if isinstance(groups, str):
        if groups not in (*get_args(GroupForm), "units"):
            known = ", ".join(map(repr, (*get_args(GroupForm), "units")))
            raise ValueError(f"groups={groups!r} is unknown; use one of {known}, or a callable")
    elif hasattr(groups, "resolve") and not isinstance(
        groups, type
    ):  # Coupled and Units, which import this module
        pass
    elif not callable(groups) or isinstance(groups, (type, nn.Module)):
        raise TypeError(
            f"groups={groups!r} is not understood; use a word such as 'rows', or a callable "
            "(name, parameter, module) -> labels"
        )


def default_layout(shape: torch.Size | tuple[int, ...], groups: object) -> Layout:
    """Return the groups of a bare tensor, laid out as a linear layer's is: ``(out, in, ...)``.

    Raises:
        ValueError: groups that only the owning module can tell.

    >>> default_layout((4, 3, 5, 5), "channels").count
    3
    """
    shape = tuple(shape)
    if groups == "tensor":
        return Slices(shape, ())
    if groups in ("rows", "filters"):
        return Slices(shape, (0,)) if shape else Slices((1,), (0,))
    if groups in ("columns", "channels"):
        if len(shape) < 2:
            raise ValueError(f"groups={groups!r} needs two dimensions, and the tensor is of shape {shape}")
        return Slices(shape, (1,))
    raise ValueError(
        f"groups={groups!r} depends on the module that owns a tensor; call the penalty on a module"
    )


def layout_of(selected: Selected, groups: object) -> Layout:
    """Return how a parameter falls into groups, given the module that owns it.

    Raises:
        ValueError: the parameter has no such groups; the sentence names it and a form that it has.

    >>> from lightning_reg.select.parameters import select_parameters
    >>> (weight,) = select_parameters(nn.ConvTranspose2d(6, 4, 3, groups=2), "weights")
    >>> weight.parameter.shape, layout_of(weight, "filters").count, layout_of(weight, "channels").count
    (torch.Size([6, 2, 3, 3]), 4, 6)
    """
    parameter, module = selected.parameter, selected.module
    if selected.norms_of is not None:
        weight: Any = torch.empty(selected.norms_of, device="meta")
        return _of_norms(replace(selected, parameter=weight, norms_of=None), groups, parameter)
    if not isinstance(groups, str):
        assert callable(groups)
        return _from_rule(selected, answer_of(groups, selected))
    shape = tuple(parameter.shape)
    if groups == "units":
        raise ValueError("groups='units' spans several tensors, and here a form of one is wanted; use 'rows'")
    if groups == "tensor":
        return Slices(shape, ())
    if groups == "heads":
        return _heads(selected)
    if groups in ("filters", "channels") and not isinstance(module, _CONV):
        raise ValueError(
            f"groups={groups!r} is for convolutions, and {_owner(selected)}; use "
            f"groups={'rows' if groups == 'filters' else 'columns'!r}, which takes both, or leave it out "
            f"with select=['weights', '!{selected.name}']"
        )
    outputs = groups in ("rows", "filters")
    if not outputs and len(shape) < 2:
        raise ValueError(
            f"groups={groups!r} needs two dimensions, and {selected.name} is of shape {shape}; leave it out "
            f"with select=['weights', '!{selected.name}']"
        )
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return _recurrent(selected, outputs)
    if isinstance(module, _CONV) and len(shape) >= 2:
        return _convolution(shape, module, outputs)
    return default_layout(shape, "rows" if outputs else "columns")


def _of_norms(weight: Selected, groups: object, norms: Tensor) -> Layout:
    """The groups of a weight, of which only the norms of slices are stored: those of whole slices."""
    layout = layout_of(weight, groups)
    if isinstance(layout, Slices):
        slices = layout.of_norms(weight.parameter.shape, norms.shape)
        if slices is not None:
            return slices
    raise ValueError(
        f"groups={groups!r} cuts through the slices of {weight.name} whose norms weight_norm keeps; use "
        "groups of whole slices, such as 'rows' for its dim=0, or apply='gradient'"
    )


def _from_rule(selected: Selected, answer: object) -> Layout:
    shape = tuple(selected.parameter.shape)
    if isinstance(answer, str):
        check_groups(answer)
        return layout_of(selected, answer)
    if isinstance(answer, Slices):
        if answer.sizes * answer.count != selected.parameter.numel():
            raise ValueError(
                f"groups= gave {selected.name} the layout {answer.shape}, and it is of shape {shape}"
            )
        return answer
    if isinstance(answer, Labels | Tensor):
        labels = answer if isinstance(answer, Tensor) else answer.labels
        if tuple(labels.shape) != shape:
            raise ValueError(
                f"groups= gave {selected.name} labels of shape {tuple(labels.shape)}, and it is of shape "
                f"{shape}; give one label for each entry"
            )
        return Labels(whole(answer).to(selected.parameter.device)) if isinstance(answer, Tensor) else answer
    raise TypeError(
        f"groups= returned {answer!r} for {selected.name}; return a tensor of labels, a Layout, or a word "
        "such as 'rows'"
    )


def _recurrent(selected: Selected, outputs: bool) -> Layout:
    """Weights of ``(gates · hidden, in)``: a hidden unit has a row in every gate."""
    shape, module = tuple(selected.parameter.shape), selected.module
    hidden = int(module.hidden_size)  # type: ignore[arg-type]
    gates = {"LSTM": 4, "LSTMCell": 4, "GRU": 3, "GRUCell": 3}.get(
        type(module).__name__, 4 if isinstance(module, nn.LSTM) else 3 if isinstance(module, nn.GRU) else 1
    )
    if "weight_hr" in selected.attribute:  # the projection of an LSTM's output, (proj, hidden)
        return Slices(shape, (0,) if outputs else (1,))
    split = (gates, hidden, *shape[1:])
    return Slices(split, (1,) if outputs else (2,))


def _convolution(shape: tuple[int, ...], module: nn.Module, outputs: bool) -> Layout:
    """Weights of ``(out, in / groups, ...)``, transposed ones of ``(in, out / groups, ...)``."""
    whole_first = outputs is not isinstance(module, _TRANSPOSED)
    if whole_first:
        return Slices(shape, (0,))
    groups = int(module.groups)  # type: ignore[arg-type]
    if groups == 1:
        return Slices(shape, (1,))
    return Slices((groups, shape[0] // groups, *shape[1:]), (0, 2))


def _heads(selected: Selected) -> Layout:
    shape, attribute, name = tuple(selected.parameter.shape), selected.attribute, selected.name.split(".")
    module = selected.module
    layer = name[-2] if len(name) > 1 else ""
    # the attention is the innermost module around the tensor that says how many heads it has
    around = [m for m in reversed(selected.containers) if _count(m, HEAD_COUNTS)]
    if not around:
        width = _width_of_heads(selected)
        if width and isinstance(module, nn.Linear) and attribute in ("weight", "bias"):
            if layer in _INTO_HEADS | _INTO_KEY_VALUE:
                return _split(selected, 0, shape[0] // width)
            if layer in _OUT_OF_HEADS and len(shape) == 2:
                return _split(selected, 1, shape[1] // width)
        raise ValueError(
            f"groups='heads' finds no number of heads around {selected.name}; select attention layers, or "
            "give a callable that returns labels"
        )
    heads = _count(around[0], HEAD_COUNTS)
    key_value = _count(around[0], KEY_VALUE_COUNTS) or heads
    if isinstance(module, nn.MultiheadAttention):
        if attribute in ("in_proj_weight", "in_proj_bias"):
            return _split(selected, 0, heads, parts=3)
        if attribute in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
            return _split(selected, 0, heads)
    elif isinstance(module, nn.Linear) and attribute in ("weight", "bias"):
        if layer in _INTO_HEADS:
            return _split(selected, 0, heads)
        if layer in _INTO_KEY_VALUE:
            return _split(selected, 0, key_value)
        if layer in _INTO_FUSED and key_value == heads:
            return _split(selected, 0, heads, parts=3)
        if layer in _OUT_OF_HEADS and len(shape) == 2:
            return _split(selected, 1, heads)
    raise ValueError(
        f"groups='heads' does not know how {_owner(selected)} lays out its heads; leave it out of select=, "
        "or give a callable that returns labels"
    )


def _split(selected: Selected, dim: int, heads: int, parts: int = 1) -> Layout:
    """Cut dimension ``dim`` into ``parts`` × ``heads`` × the width of a head."""
    shape = tuple(selected.parameter.shape)
    if shape[dim] % (parts * heads):
        raise ValueError(f"{selected.name} of shape {shape} does not divide into {heads} heads")
    split = (*shape[:dim], parts, heads, shape[dim] // (parts * heads), *shape[dim + 1 :])
    return Slices(split, (dim + 1,))


def _width_of_heads(selected: Selected) -> int:
    """How wide a head is, where the module around a projection says that and not how many there are."""
    return _count(selected.containers[-2], ("head_dim",)) if len(selected.containers) > 1 else 0


def _count(module: nn.Module, names: tuple[str, ...]) -> int:
    for name in names:
        value = getattr(module, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 0


def _owner(selected: Selected) -> str:
    return f"{selected.name} belongs to {type(selected.module).__name__}"
