"""R-Drop: two passes under dropout shall agree."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from lightning_reg.penalties.forward import Call, ForwardPenalty
from lightning_reg.penalties.regularizer import check_strength
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.select.modules import ModuleSelect

__all__ = ["RDrop", "symmetric_divergence"]


def symmetric_divergence(first: Tensor, second: Tensor) -> Tensor:
    r"""Return :math:`\tfrac12(KL(p\|q) + KL(q\|p))` of two logits' softmax, the mean over all but the last dimension.

    >>> symmetric_divergence(torch.zeros(2, 3), torch.zeros(2, 3))
    tensor(0.)
    """  # noqa: E501
    log_p, log_q = torch.log_softmax(first, -1), torch.log_softmax(second, -1)
    # the two divergences add up to Σ (p − q)(log p − log q)
    return 0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1).mean()


@dataclass(frozen=True)
class RDrop(ForwardPenalty):
    r"""R-Drop: :math:`\tfrac{\alpha}{2B}\sum_b(KL(p_b\|q_b) + KL(q_b\|p_b))` of two passes under dropout.

    The module is called a second time with the same inputs, so a step costs two forward passes, and batch
    normalization sees the batch twice. The task loss stays that of the first pass; the authors' code takes
    the mean of both, whose expectation is the same.

    Args:
        strength: α ≥ 0, a number or a schedule.
        modules: the module whose output are the logits ``(..., classes)``: by default the whole, called as
            ``self(x)``; else a glob over names, a class, a predicate, or a list.
        name: its name in logs.

    Raises:
        ValueError: a strength out of range.

    References:
        Liang et al., *R-Drop: Regularized Dropout for Neural Networks*, NeurIPS 2021.
    """

    strength: ScheduleLike
    _: KW_ONLY
    modules: ModuleSelect = ""
    name: str | None = None

    def __post_init__(self) -> None:
        check_strength("RDrop", self.strength)

    @property
    def schedule(self) -> ScheduleLike:
        """The strength."""
        return self.strength

    @property
    def log_name(self) -> str:
        """``name``, or ``r_drop``."""
        return self.name or "r_drop"

    def value(self, call: Call, strength: float) -> Tensor:
        """Return α times the divergence between the output and that of a second call."""
        again = Call(call.module, call.args, call.kwargs, call.module(*call.args, **call.kwargs))
        return strength * symmetric_divergence(call.output_tensor(), again.output_tensor())
