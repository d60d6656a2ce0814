"""Lightning callbacks: what to attach to a Trainer.

Hook wiring only; every formula lives in :mod:`lightning_reg.penalties`.
"""

from lightning_reg.callbacks.penalty import (
    ElasticNetPenaltyCallback,
    L1PenaltyCallback,
    L2PenaltyCallback,
    PenaltyCallback,
)
from lightning_reg.callbacks.structured import GroupLassoPenaltyCallback, SparseGroupLassoPenaltyCallback

__all__ = [
    "ElasticNetPenaltyCallback",
    "GroupLassoPenaltyCallback",
    "L1PenaltyCallback",
    "L2PenaltyCallback",
    "PenaltyCallback",
    "SparseGroupLassoPenaltyCallback",
]
