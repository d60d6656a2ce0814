"""Lightning callbacks: what to attach to a Trainer.

Hook wiring only; every formula lives in :mod:`lightning_reg.penalties` and :mod:`lightning_reg.dropout`.
"""

from lightning_reg.callbacks.adaptive_dropout import AdaptiveDropout
from lightning_reg.callbacks.constraints import Box, MaxNorm, NonNegative, NormBudget, UnitNorm
from lightning_reg.callbacks.dropout_injector import DropoutInjector
from lightning_reg.callbacks.dropout_scheduler import DropoutScheduler
from lightning_reg.callbacks.forward_penalty import ForwardPenaltyCallback
from lightning_reg.callbacks.penalty import (
    ElasticNetPenaltyCallback,
    L1PenaltyCallback,
    L2PenaltyCallback,
    PenaltyCallback,
)
from lightning_reg.callbacks.regularization_monitor import RegularizationMonitor
from lightning_reg.callbacks.structured import GroupLassoPenaltyCallback, SparseGroupLassoPenaltyCallback
from lightning_reg.tune.strength_finder import DropoutFinder, StrengthFinder

__all__ = [
    "AdaptiveDropout",
    "Box",
    "DropoutFinder",
    "DropoutInjector",
    "DropoutScheduler",
    "ElasticNetPenaltyCallback",
    "ForwardPenaltyCallback",
    "GroupLassoPenaltyCallback",
    "L1PenaltyCallback",
    "L2PenaltyCallback",
    "MaxNorm",
    "NonNegative",
    "NormBudget",
    "PenaltyCallback",
    "RegularizationMonitor",
    "SparseGroupLassoPenaltyCallback",
    "StrengthFinder",
    "UnitNorm",
]
