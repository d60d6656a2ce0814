"""Dropout after modules that have none: what is dropped, and which modules can take it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_reg.dropout.audit import Audit
from lightning_reg.dropout.steering import RATE_AFTER, After, channel, element, row
from lightning_reg.select.modules import ModuleSelect, select_modules

__all__ = ["AFTER", "InjectKind", "check_outputs", "modules_after"]

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


def check_outputs(chosen: Sequence[tuple[str, nn.Module]], kind: InjectKind, audit: Audit) -> None:
    """Refuse modules after which nothing can be dropped.

    Raises:
        ValueError: a module was not called, returned something else than one tensor, has too few
            dimensions for channels, or is no residual block: it changes the shape.
    """
    for name, module in chosen:
        shapes = audit.outputs.get(id(module), [])
        if not shapes:
            raise ValueError(
                f"{name} is never called in a training step; choose modules that are, by `after=`"
            )
        for before, output in shapes:
            if output is None:
                raise ValueError(
                    f"{name} ({type(module).__name__}) returns something else than one tensor; choose, by "
                    "`after=`, a module inside it that returns the tensor to drop from"
                )
            if kind == "channel" and len(output) < 2:
                raise ValueError(
                    f"{name} returns a tensor of shape {tuple(output)}, which has no channels; use "
                    "kind='element'"
                )
            if kind == "depth" and before != output:
                shape = tuple(before) if before is not None else "something else than a tensor"
                raise ValueError(
                    f"{name} turns {shape} into {tuple(output)}, and stochastic depth needs a residual "
                    "block, which keeps the shape; leave it out of `after=`"
                )


def _element(module: nn.Module, args: tuple[Any, ...], output: Any, rates: Tensor) -> Any:
    if torch.compiler.is_compiling():
        return element(output, rates)
    rate = module.__dict__[RATE_AFTER]
    return F.dropout(output, rate, True) if rate else output


def _channel(module: nn.Module, args: tuple[Any, ...], output: Any, rates: Tensor) -> Any:
    if torch.compiler.is_compiling():
        return channel(output, rates)
    rate = module.__dict__[RATE_AFTER]
    return torch.feature_dropout(output, rate, True) if rate else output


def _depth(module: nn.Module, args: tuple[Any, ...], output: Any, rates: Tensor) -> Any:
    input = args[0]
    if torch.compiler.is_compiling():
        return input + row(output - input, rates)
    rate = module.__dict__[RATE_AFTER]
    if not rate:
        return output
    residual = output - input
    kept = residual.new_empty([residual.shape[0], *[1] * (residual.dim() - 1)]).bernoulli_(1.0 - rate)
    return input + (residual * kept if rate == 1.0 else residual * kept / (1.0 - rate))


#: What each kind does to a module's output.
AFTER: dict[InjectKind, After] = {"element": _element, "channel": _channel, "depth": _depth}
