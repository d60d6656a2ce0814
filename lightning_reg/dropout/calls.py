"""Torch's functions that drop or draw, by name, and how to read their arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_reg.dropout.known import Kind

__all__ = [
    "AFFINE",
    "CHANCES",
    "COMPARISONS",
    "COUNTED",
    "DECISIONS",
    "DRAWS",
    "FILLS",
    "JOINS",
    "MASKS",
    "READS",
    "UNIFORM",
    "chances_in",
    "count",
    "draws_inside",
    "first_number",
    "flat",
    "is_training",
    "kind_of",
    "mapped",
    "name_of",
    "plain_numbers",
    "rate_of",
    "rates_in",
    "single",
    "tensors",
]

_DROPOUTS: dict[str, Kind] = {
    "dropout": "element",
    "dropout_": "element",
    "native_dropout": "element",
    "dropout1d": "channel",
    "dropout2d": "channel",
    "dropout3d": "channel",
    "feature_dropout": "channel",
    "feature_dropout_": "channel",
    "alpha_dropout": "alpha",
    "alpha_dropout_": "alpha",
    "feature_alpha_dropout": "feature_alpha",
    "feature_alpha_dropout_": "feature_alpha",
}
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
#: Kinds whose dropped values are zeros in the output.
COUNTED = frozenset({"element", "channel"})
MASKS = frozenset({"rand", "rand_like", "bernoulli", "bernoulli_", "uniform_"})
DRAWS = frozenset(
    {
        *MASKS,
        *("randn", "randn_like", "randint", "randint_like", "randperm", "multinomial", "poisson", "binomial"),
        *("normal", "normal_", "random_", "exponential_", "geometric_", "cauchy_", "log_normal_"),
        *("gumbel_softmax", "rrelu", "rrelu_"),
    }
)
#: Draws by a probability.
CHANCES = frozenset({"bernoulli", "bernoulli_", "binomial", "multinomial"})
#: Draws with which a probability can be compared; a number compared with a normal one is none.
UNIFORM = frozenset({"rand", "rand_like", "uniform_", "randint", "randint_like", "random_", "randperm"})
#: Functions that take no more than a shape from a tensor.
FILLS = frozenset(
    {
        *("full_like", "new_full", "new_tensor", "fill_", "full"),
        *("ones_like", "zeros_like", "ones", "zeros", "new_ones", "new_zeros"),
    }
)
#: Functions after which uniform noise and a rate are one, to be cut at a constant: ``(rand + keep).floor()``.
JOINS = frozenset(
    {
        *("add", "add_", "sub", "sub_", "rsub", "subtract", "quantile"),
        *("__add__", "__radd__", "__iadd__", "__sub__", "__rsub__", "__isub__"),
    }
)
#: Functions of a rate that give a rate, as a sigmoid does not; and of uniform noise that leave it uniform.
AFFINE = frozenset(
    {
        *(*FILLS, *JOINS, "tensor", "as_tensor", "scalar_tensor", "linspace"),
        *("mul", "mul_", "div", "div_", "true_divide", "neg", "__mul__", "__rmul__", "__imul__"),
        *("__truediv__", "__rtruediv__", "__itruediv__", "__neg__", "clamp", "clamp_"),
        *("expand", "expand_as", "broadcast_to", "broadcast_tensors", "repeat", "view", "view_as", "reshape"),
        *("unsqueeze", "squeeze", "flatten", "permute", "transpose", "__getitem__", "select", "unbind"),
        *("stack", "cat", "to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda"),
        *("clone", "detach", "contiguous", "argsort", "sort"),
    }
)
#: Functions that give Python a tensor's number.
READS = frozenset({"item", "tolist", "__float__", "numpy"})
COMPARISONS = frozenset(
    {
        *("lt", "le", "gt", "ge", "lt_", "le_", "gt_", "ge_", "less", "less_equal", "greater"),
        *("greater_equal", "__lt__", "__le__", "__gt__", "__ge__"),
    }
)
#: Functions that turn noise into kept and dropped.
DECISIONS = frozenset(
    {*COMPARISONS, "floor", "floor_", "ceil", "ceil_", "round", "round_", "trunc", "trunc_"}
)


def name_of(func: Any) -> str:
    """The name of a torch function, of a custom operator's packet too."""
    return str(getattr(func, "__name__", "")).partition(".")[0]


def kind_of(name: str) -> Kind | None:
    """What a function that takes a rate drops, or None for another function."""
    if name in _DROPOUTS:
        return _DROPOUTS[name]
    if name in _RECURRENT:
        return "recurrent"
    # scaled_dot_product_attention, multi_head_attention_forward, kernels of other packages
    return "attention" if "attention" in name or "flash_attn" in name else None


def is_training(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this call of a dropout function drops."""
    for key in ("training", "train"):
        if key in kwargs:
            return bool(kwargs[key])
    if name in _DROPOUTS:
        return bool(args[2]) if len(args) > 2 else True
    return True


def rate_of(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """The rate handed to a function."""
    value: Any = 0.0  # an RNN of one layer, or of rate 0: its module is a site of its own
    if name in _DROPOUTS:
        value = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    elif name == "scaled_dot_product_attention":
        value = kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0)
    elif name == "multi_head_attention_forward":
        value = kwargs.get("dropout_p", args[10] if len(args) > 10 else 0.0)
    return value if isinstance(value, float) else float(value)


def rates_in(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments of a dropout, an attention or a recurrent network that are rates, as far as is known."""
    if name in _DROPOUTS:
        return [kwargs["p"]] if "p" in kwargs else list(args[1:2])
    if name in _RECURRENT:
        return [value for value in args if not isinstance(value, (Tensor, list, tuple))]
    places = {"scaled_dot_product_attention": 4, "multi_head_attention_forward": 10}
    named = [value for key, value in kwargs.items() if "drop" in key or key == "p"]
    given = args[places[name] : places[name] + 1] if name in places else args
    return named or [value for value in given if isinstance(value, (int, float)) or name in places]


def chances_in(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments of a draw of :data:`CHANCES` that are probabilities, or weights of a choice."""
    given = [*args, *kwargs.values()]
    return given[1:] if len(given) > 1 and name != "multinomial" else given[:1]


def draws_inside(function: Any) -> bool:
    """Whether a script function or module draws or drops."""
    graph = str(getattr(function, "inlined_graph", ""))
    return any(f"aten::{name}(" in graph for name in (*_DROPOUTS, *DRAWS))


def count(value: Any) -> int | None:
    """How many values of a tensor are not zero."""
    if not isinstance(value, Tensor) or value.is_meta:
        return None
    if value.is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    try:
        return int(value.count_nonzero())
    except RuntimeError:  # a tensor without values of its own: inside of vmap
        return None


def flat(values: Any) -> Iterator[Any]:
    """Yield what nested lists, tuples and dictionaries hold."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from flat(value)
        elif isinstance(value, dict):
            yield from flat(value.values())
        else:
            yield value


def mapped(function: Callable[[Any], Any], values: Any) -> Any:
    """Return the same lists, tuples and dictionaries with ``function`` of what they hold."""
    if type(values) in (list, tuple):
        return type(values)(mapped(function, value) for value in values)
    if type(values) is dict:
        return {key: mapped(function, value) for key, value in values.items()}
    return function(values)


def tensors(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of an output."""
    yield from (value for value in flat((output,)) if isinstance(value, Tensor))


def single(tensor: Tensor) -> bool:
    """Whether a tensor is a number that a rate may be scaled by."""
    return tensor.numel() == 1 and not tensor.requires_grad


def plain_numbers(output: Any) -> Iterator[float]:
    """Yield the numbers of what a tensor gave to Python."""
    for value in flat((output.reshape(-1).tolist() if hasattr(output, "reshape") else output,)):
        if isinstance(value, (int, float)):
            yield float(value)


def first_number(values: list[Any]) -> float | None:
    """The first plain number among arguments, or None."""
    numbers = (v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool))
    return next((float(v) for v in numbers), None)
