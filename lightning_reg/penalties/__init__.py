"""Which function: the penalties, each with its value, gradient and proximal operator."""

from lightning_reg.penalties.base import Penalty
from lightning_reg.penalties.elastic_net import ElasticNet
from lightning_reg.penalties.l1 import L1
from lightning_reg.penalties.l2 import L2
from lightning_reg.penalties.l2_norm import L2Norm

__all__ = ["L1", "L2", "ElasticNet", "L2Norm", "Penalty"]
