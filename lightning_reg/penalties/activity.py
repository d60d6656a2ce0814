"""A penalty on activations."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from torch import Tensor, nn

from lightning_reg.penalties.base import Penalty
from lightning_reg.penalties.batch_dimension import batch_dimension
from lightning_reg.penalties.elastic_net import ElasticNet
from lightning_reg.penalties.forward import Call, ForwardPenalty
from lightning_reg.penalties.l1 import L1
from lightning_reg.penalties.l2 import L2
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.select.modules import ModuleSelect

__all__ = ["ActivityPenalty"]


@dataclass(frozen=True)
class ActivityPenalty(ForwardPenalty):
    r"""A norm of the outputs of modules, averaged over the batch: :math:`\tfrac1B\sum_b\Omega_\lambda(a_b)`.

    With :class:`~lightning_reg.L1`, :math:`\tfrac{\lambda}{B}\sum_{b,i}|a_{bi}|`, which makes representations
    sparse; with :class:`~lightning_reg.L2`, :math:`\tfrac{\lambda}{2B}\sum_{b,i}a_{bi}^2`.

    Args:
        penalty: an ``L1``, ``L2`` or ``ElasticNet``: which function, how strong; its ``select`` is not used.
        modules: whose outputs: a glob over module names, a module class, a predicate, or a list of these.
        batch_dim: which dimension of the outputs counts the samples. Where None, the first one, or the second
            of three where ``batch_first=False`` of the module, or of one around it, says so.
        name: its name in logs.

    Raises:
        TypeError: another penalty.
        ValueError: in training, the dimension is in doubt.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with ActivityPenalty(L1(0.1), modules=nn.ReLU).record(net) as term:
    ...     output = net(torch.ones(4, 2))
    ...     torch.isclose(term.value(), 0.1 * output.sum() / 4)
    tensor(True)

    References:
        Glorot, Bordes and Bengio, *Deep Sparse Rectifier Neural Networks*, AISTATS 2011.
    """

    penalty: Penalty
    _: KW_ONLY
    modules: ModuleSelect = nn.ReLU
    batch_dim: int | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.penalty, (L1, L2, ElasticNet)):
            raise TypeError(f"ActivityPenalty takes an L1, L2 or ElasticNet, and got {self.penalty!r}")

    @property
    def schedule(self) -> ScheduleLike:
        """The strength of the penalty inside."""
        return self.penalty.strength

    @property
    def log_name(self) -> str:
        """``name``, or ``activity_l1`` and the like."""
        return self.name or f"activity_{self.penalty.log_name}"

    def value(self, call: Call, strength: float) -> Tensor:
        """Return the penalty of the output, divided by the batch size."""
        output = call.output_tensor()
        dim = batch_dimension(output, call.order, self.batch_dim, call.module)
        return self.penalty.value(output, strength) / max(output.shape[dim] if output.dim() else 1, 1)
