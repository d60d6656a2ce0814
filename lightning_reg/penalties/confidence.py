"""A penalty on confident classifications."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from lightning_reg.penalties.forward import Call, ForwardPenalty
from lightning_reg.penalties.regularizer import check_strength
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.select.modules import ModuleSelect

__all__ = ["ConfidencePenalty", "negative_entropy"]


def negative_entropy(logits: Tensor) -> Tensor:
    r"""Return :math:`\sum_c p_c\log p_c` of the softmax, the mean over all but the last dimension.

    >>> negative_entropy(torch.zeros(2, 4)).exp()
    tensor(0.2500)
    """
    log_p = torch.log_softmax(logits, -1)
    return (log_p.exp() * log_p).sum(-1).mean()


@dataclass(frozen=True)
class ConfidencePenalty(ForwardPenalty):
    r"""The negative entropy of the predicted classes: :math:`-\tfrac{\beta}{B}\sum_b H(p_b)`.

    Args:
        strength: β ≥ 0, a number or a schedule; 0.1 is usual.
        modules: the module whose output are the logits ``(..., classes)``: by default the whole, called as
            ``self(x)``; else a glob over names, a class, a predicate, or a list.
        name: its name in logs.

    Raises:
        ValueError: a strength out of range.

    References:
        Pereyra, Tucker, Chorowski, Kaiser and Hinton, *Regularizing Neural Networks by Penalizing Confident
        Output Distributions*, 2017.
    """

    strength: ScheduleLike
    _: KW_ONLY
    modules: ModuleSelect = ""
    name: str | None = None

    def __post_init__(self) -> None:
        check_strength("ConfidencePenalty", self.strength)

    @property
    def schedule(self) -> ScheduleLike:
        """The strength."""
        return self.strength

    @property
    def log_name(self) -> str:
        """``name``, or ``confidence``."""
        return self.name or "confidence"

    def value(self, call: Call, strength: float) -> Tensor:
        """Return β times the negative entropy."""
        return strength * negative_entropy(call.output_tensor())
