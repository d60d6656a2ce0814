"""Dropout after modules that have none: what is dropped, and which modules can take it."""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_reg.dropout import masks
from lightning_reg.dropout.rules import channel, element, row
from lightning_reg.dropout.steering import RATE_AFTER, After
from lightning_reg.select.modules import ModuleSelect, select_modules

__all__ = [
    "KINDS",
    "InjectKind",
    "after_of",
    "check_modules",
    "expect",
    "modules_after",
    "shapeless",
    "uncalled",
]

#: "element": single values; "channel": whole feature maps, for ``(N, C, ...)``; "depth": stochastic depth,
#: a sample's residual ``block(x) - x``; "locked": features of a sequence, the same at each time; "word":
#: words, after an embedding; "block": squares of feature maps; "weight": the module's own weights.
InjectKind: TypeAlias = Literal["element", "channel", "depth", "locked", "word", "block", "weight"]


def modules_after(root: nn.Module, after: ModuleSelect) -> list[tuple[str, nn.Module]]:
    """Return the modules of ``root`` that ``after`` names, each once, under its first name.

    Raises:
        ValueError: none matches, or one has a ``forward`` of its own on the instance.
        TypeError: ``after`` is of another kind.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> [name for name, _ in modules_after(net, nn.Linear)]
    ['0']
    """
    chosen = [(one.name, one.module) for one in select_modules(root, after, "after", with_root=False)]
    for name, module in chosen:
        if "forward" in module.__dict__:
            raise ValueError(
                f"{name} has a forward of its own on the instance, which would hide the dropout after it; "
                "choose a module around it or inside it"
            )
    return chosen


def shapeless(module: nn.Module) -> list[str]:
    """The names of lazy parameters and buffers, to which the next forward gives shapes and a class."""
    tensors = itertools.chain(module.named_parameters(), module.named_buffers())
    return [name for name, tensor in tensors if is_lazy(tensor)]


#: The names of modules whose first output was not looked at yet.
_expected: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


def expect(chosen: Sequence[tuple[str, nn.Module]]) -> None:
    """Look at the first output of each module."""
    _expected.update({module: name for name, module in chosen})


def uncalled(chosen: Sequence[tuple[str, nn.Module]]) -> list[str]:
    """Return the names of modules that were not called since :func:`expect`."""
    return [name for name, module in chosen if module in _expected]


def _checked(module: nn.Module, args: tuple[Any, ...], output: Any, kind: InjectKind) -> Tensor:
    """Refuse an output from which this kind cannot drop.

    Raises:
        ValueError: the module returned something else than one tensor, has too few dimensions for channels or
            has its features last, or is no residual block: it changes the shape.
    """
    name = _expected.pop(module, None)
    if name is None:
        return output  # type: ignore[no-any-return]
    if not isinstance(output, Tensor):
        raise ValueError(
            f"{name} ({type(module).__name__}) returns something else than one tensor; choose, by "
            "`after=`, a module inside it that returns the tensor to drop from"
        )
    shape = tuple(output.shape)
    if kind == "channel" and len(shape) < 2:
        raise ValueError(
            f"{name} returns a tensor of shape {shape}, which has no channels; use kind='element'"
        )
    if kind in ("channel", "block") and len(shape) > 2 and _features_last(module, output):
        raise ValueError(
            f"{name} returns a tensor of shape {shape} with its features last, as far as can be told, of "
            f"which kind={kind!r} would drop whole positions; use kind='element', or 'locked' for a sequence"
        )
    if kind == "block" and not 3 <= len(shape) <= 5:
        raise ValueError(
            f"{name} returns a tensor of shape {shape}, and blocks need (N, C, L) to (N, C, D, H, W)"
        )
    if kind == "locked" and len(shape) != 3:
        raise ValueError(
            f"{name} returns a tensor of shape {shape}, and kind='locked' needs a batch of sequences"
        )
    before = args[0].shape if args and isinstance(args[0], Tensor) else None
    if kind == "depth" and before != output.shape:
        was = tuple(before) if before is not None else "something else than a tensor"
        raise ValueError(
            f"{name} turns {was} into {shape}, and stochastic depth needs a residual "
            "block, which keeps the shape; leave it out of `after=`"
        )
    return output


#: Operations, by the names of their gradients, whose output has its channels in dimension 1, or last.
_CHANNELS_FIRST = ("Convolution", "BatchNorm", "NativeGroupNorm", "MkldnnConvolution")
_FEATURES_LAST = ("Addmm", "Mm", "Bmm", "Linear", "FusedRmsNorm", "MkldnnRnn")
_MOVES = ("Permute", "Transpose", "T", "Movedim")


def _features_last(module: nn.Module, output: Tensor) -> bool:
    """Whether an output's features are in its last dimension: by what computed it, else by the last layer."""
    node, steps = output.grad_fn, 0
    while node is not None and steps < 32:
        name = type(node).__name__.partition("Backward")[0]
        if name.startswith(_CHANNELS_FIRST) or "BatchNorm" in name:
            return False
        if name in _FEATURES_LAST or name.startswith(("Scaled", "NativeLayerNorm", "Embedding")):
            return True
        if name in _MOVES:
            break
        node = next((inner for inner, _ in node.next_functions if inner is not None), None)
        steps += 1
    layers = [m for m in module.modules() if next(m.parameters(recurse=False), None) is not None]
    if not layers:
        return output.dim() == 3  # a sequence, or a signal
    kinds = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)
    return isinstance(layers[-1], kinds)


def _element(module: nn.Module, args: tuple[Any, ...], output: Any, rates: Tensor) -> Any:
    if torch.compiler.is_compiling():
        return element(output, rates)
    output = _checked(module, args, output, "element")
    rate = module.__dict__[RATE_AFTER]
    return F.dropout(output, rate, True) if rate else output


def _channel(module: nn.Module, args: tuple[Any, ...], output: Any, rates: Tensor) -> Any:
    if torch.compiler.is_compiling():
        return channel(output, rates)
    output = _checked(module, args, output, "channel")
    rate = module.__dict__[RATE_AFTER]
    return torch.feature_dropout(output, rate, True) if rate else output


def _depth(module: nn.Module, args: tuple[Any, ...], output: Any, rates: Tensor) -> Any:
    if torch.compiler.is_compiling():
        return args[0] + row(output - args[0], rates)
    output = _checked(module, args, output, "depth")
    input = args[0]
    rate = module.__dict__[RATE_AFTER]
    if not rate:
        return output
    residual = output - input
    kept = residual.new_empty([residual.shape[0], *[1] * (residual.dim() - 1)]).bernoulli_(1.0 - rate)
    return input + (residual * kept if rate == 1.0 else residual * kept / (1.0 - rate))


def _masked(kind: InjectKind, drop: Callable[..., Any]) -> After:
    """What follows a module: ``drop(module, args, output, rate, scale)``."""

    def after(module: nn.Module, args: tuple[Any, ...], output: Any, rates: Tensor) -> Any:
        first = output[0] if kind == "locked" and isinstance(module, nn.RNNBase) else output
        if torch.compiler.is_compiling():
            dropped = drop(module, args, first, rates[0], rates[1])
        else:
            _checked(module, args, first, kind)
            rate = module.__dict__[RATE_AFTER]
            if not rate:
                return output
            dropped = drop(module, args, first, rate, 1.0 / (1.0 - rate) if rate < 1.0 else 0.0)
        return dropped if first is output else (dropped, *output[1:])

    return after


def _locked(module: nn.Module, args: tuple[Any, ...], output: Tensor, rate: Any, scale: Any) -> Tensor:
    firsts = (m.batch_first for m in module.modules() if hasattr(m, "batch_first"))
    return masks.locked(output, rate, scale, time=1 if next(firsts, True) else 0)


def _word(module: nn.Module, args: tuple[Any, ...], output: Tensor, rate: Any, scale: Any) -> Tensor:
    return masks.word(output, args[0], module.num_embeddings, rate, scale)  # type: ignore[arg-type]


def _weights(module: nn.Module, args: tuple[Any, ...], call: Callable[[], Any], rates: Tensor) -> Any:
    """Run a module with dropped weights in the place of its own."""
    _expected.pop(module, None)
    rate: Any = rates[0]
    scale: Any = rates[1]
    if not torch.compiler.is_compiling():
        rate = module.__dict__[RATE_AFTER]
        scale = 1.0 / (1.0 - rate) if rate < 1.0 else 0.0
        if not rate:
            return call()
    if isinstance(module, nn.Linear):
        return F.linear(args[0], masks.weight(module.weight, rate, scale), module.bias)
    if isinstance(module, _CONVOLUTIONS):
        return module._conv_forward(args[0], masks.weight(module.weight, rate, scale), module.bias)
    assert isinstance(module, nn.RNNBase)
    own = module._flat_weights
    recurrent = [name.startswith("weight_hh") for name in module._flat_weights_names]
    module._flat_weights = [
        masks.weight(value, rate, scale) if drops else value  # type: ignore[arg-type]
        for value, drops in zip(own, recurrent, strict=True)
    ]
    try:
        return call()
    finally:
        module._flat_weights = own


_weights.instead = True  # type: ignore[attr-defined]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
KINDS: tuple[str, ...] = get_args(InjectKind)
_AFTER: dict[str, After] = {
    "element": _element,
    "channel": _channel,
    "depth": _depth,
    "locked": _masked("locked", _locked),
    "word": _masked("word", _word),
    "weight": _weights,
}


@functools.cache
def after_of(kind: InjectKind, block_size: int) -> After:
    """Return what a kind does to a module's output."""
    if kind != "block":
        return _AFTER[kind]
    return _masked(
        "block", lambda module, args, output, rate, scale: masks.block(output, block_size, rate, scale)
    )


def check_modules(chosen: Sequence[tuple[str, nn.Module]], kind: InjectKind) -> None:
    """Refuse modules that a kind does not know how to treat.

    Raises:
        ValueError: words are dropped after something else than an embedding, or weights of another module
            than a linear, convolutional or recurrent layer.
    """
    wanted: tuple[tuple[type[nn.Module], ...], str]
    if kind == "word":
        wanted = (nn.Embedding,), "an nn.Embedding"
    elif kind == "weight":
        wanted = (
            (nn.Linear, *_CONVOLUTIONS, nn.LSTM, nn.GRU, nn.RNN),
            "a linear, convolutional or recurrent layer with torch's own forward",
        )
    else:
        return
    for name, module in chosen:
        if not any(isinstance(module, one) and type(module).forward is one.forward for one in wanted[0]):
            raise ValueError(
                f"{name} is a {type(module).__name__}, and kind={kind!r} needs {wanted[1]}; choose those by "
                "`after=`"
            )
