"""Which function: the penalties, each with its value, gradient and proximal operator."""

from lightning_reg.penalties.activity import ActivityPenalty
from lightning_reg.penalties.base import Penalty
from lightning_reg.penalties.confidence import ConfidencePenalty
from lightning_reg.penalties.elastic_net import ElasticNet
from lightning_reg.penalties.forward import ForwardPenalty
from lightning_reg.penalties.jacobian import JacobianPenalty
from lightning_reg.penalties.l1 import L1
from lightning_reg.penalties.l2 import L2
from lightning_reg.penalties.l2_norm import L2Norm
from lightning_reg.penalties.r_drop import RDrop

__all__ = [
    "L1",
    "L2",
    "ActivityPenalty",
    "ConfidencePenalty",
    "ElasticNet",
    "ForwardPenalty",
    "JacobianPenalty",
    "L2Norm",
    "Penalty",
    "RDrop",
]
