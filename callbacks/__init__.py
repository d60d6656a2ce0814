"""Lightning callbacks: what to attach to a Trainer.

Hook wiring only; every formula lives in :mod:`lightning_reg.penalties`.
"""

from lightning_reg.callbacks.forward_penalty import ForwardPenaltyCallback
from lightning_reg.callbacks.penalty import (
    ElasticNetPenaltyCallback,
    L1PenaltyCallback,
    L2PenaltyCallback,
    PenaltyCallback,
)
from lightning_reg.callbacks.regularization_monitor import RegularizationMonitor

__all__ = [
    "ElasticNetPenaltyCallback",
    "ForwardPenaltyCallback",
    "L1PenaltyCallback",
    "L2PenaltyCallback",
    "PenaltyCallback",
    "RegularizationMonitor",
]
