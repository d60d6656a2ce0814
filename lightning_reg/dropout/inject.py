"""Dropout after modules that have none: what is dropped, and which modules can take it."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_reg.dropout.rules import channel, element, row
from lightning_reg.dropout.steering import RATE_AFTER, After
from lightning_reg.select.modules import ModuleSelect, select_modules

__all__ = ["AFTER", "InjectKind", "expect", "modules_after", "shapeless", "uncalled"]

#: "element": single values; "channel": whole feature maps, for ``(N, C, ...)``; "depth": stochastic depth,
#: a sample's residual ``block(x) - x``.
InjectKind: TypeAlias = Literal["element", "channel", "depth"]


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
    if kind == "channel" and len(shape) > 2 and _features_last(module, shape):
        raise ValueError(
            f"{name} returns a tensor of shape {shape} with its features last, of which kind='channel' "
            "would drop whole positions; use kind='element'"
        )
    before = args[0].shape if args and isinstance(args[0], Tensor) else None
    if kind == "depth" and before != output.shape:
        was = tuple(before) if before is not None else "something else than a tensor"
        raise ValueError(
            f"{name} turns {was} into {shape}, and stochastic depth needs a residual "
            "block, which keeps the shape; leave it out of `after=`"
        )
    return output


def _features_last(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether the last layer of a module that has weights puts its features in the last dimension."""
    layers = [m for m in module.modules() if next(m.parameters(recurse=False), None) is not None]
    if not layers:
        return False
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


#: What each kind does to a module's output.
AFTER: dict[InjectKind, After] = {"element": _element, "channel": _channel, "depth": _depth}
