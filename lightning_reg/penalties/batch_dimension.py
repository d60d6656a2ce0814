"""Which dimension of an output counts the samples: the second one where sequences come first."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from lightning_reg.select.modules import SelectedModule

__all__ = ["Order", "batch_dimension", "order_of"]


@dataclass(frozen=True)
class Order:
    """How a module lays out sequences.

    Attributes:
        batch_first: whether samples come before steps.
        by: the module that says so, ``"self_attn of TransformerEncoderLayer"``.
        sure: whether what it says holds for the module in question, and not perhaps for other parts alone.
    """

    batch_first: bool
    by: str
    sure: bool


def order_of(selected: SelectedModule) -> Order | None:
    """Return what ``batch_first`` of the module, or of the nearest one around it, says; None where none does.

    A block that holds a sequence-first attention takes and returns sequences first in all its parts, and so
    do torch's stacks of such blocks. The root may also hold parts before or after the sequences, so that what
    it says is not sure, and a block of the user's own may turn what parts deep inside of it take.
    """
    for outside in reversed(selected.around):
        named = [("", outside)] if outside is selected.module else []
        own = type(outside).__module__ == "torch.nn.modules.transformer"
        deep = outside.named_modules() if own or outside is selected.module else ()
        for name, module in (*named, *outside.named_children(), *deep):
            told = getattr(module, "batch_first", None)
            if isinstance(told, bool):
                by = f"{name} of {type(outside).__name__}" if name else type(outside).__name__
                sure = (
                    told
                    or (outside is selected.module and "." not in name)
                    or outside not in (selected.module, selected.around[0])
                    or type(outside).__module__.startswith("torch.nn.")
                )
                return Order(told, by, sure)
    return None


def batch_dimension(output: Tensor, order: Order | None, given: int | None, module: nn.Module) -> int:
    """Return the dimension of the samples: the one given, else by the order of sequences, else the first.

    Raises:
        ValueError: ``given`` is no dimension of the output, or sequences may or may not come first.

    >>> import torch
    >>> batch_dimension(torch.ones(50, 4, 8), Order(False, "LSTM", True), None, nn.ReLU())
    1
    """
    if given is not None:
        if not -output.dim() <= given < output.dim():
            raise ValueError(
                f"batch_dim={given} is no dimension of what {type(module).__name__} returns, "
                f"{tuple(output.shape)}"
            )
        return given
    if order is None or order.batch_first or output.dim() != 3:
        return 0
    if not order.sure:
        raise ValueError(
            f"{type(module).__name__} returns {tuple(output.shape)}, and {order.by} has batch_first=False, "
            "so that samples may be the first or the second dimension; say which: batch_dim=0 or batch_dim=1"
        )
    return 1
