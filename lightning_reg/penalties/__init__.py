"""Which function: the penalties, each with its value, gradient and proximal operator."""

from lightning_reg.penalties.base import Penalty
from lightning_reg.penalties.elastic_net import ElasticNet
from lightning_reg.penalties.group_lasso import GroupLasso
from lightning_reg.penalties.l1 import L1
from lightning_reg.penalties.l2 import L2
from lightning_reg.penalties.l2_norm import L2Norm
from lightning_reg.penalties.l_inf import LInf
from lightning_reg.penalties.sparse_group_lasso import SparseGroupLasso

__all__ = [
    "L1",
    "L2",
    "ElasticNet",
    "GroupLasso",
    "L2Norm",
    "LInf",
    "Penalty",
    "SparseGroupLasso",
]
