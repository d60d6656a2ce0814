"""Which function: the penalties, each with its value, gradient and proximal operator."""

from lightning_reg.penalties.activity import ActivityPenalty
from lightning_reg.penalties.base import Penalty
from lightning_reg.penalties.bound import Bound
from lightning_reg.penalties.confidence import ConfidencePenalty
from lightning_reg.penalties.elastic_net import ElasticNet
from lightning_reg.penalties.forward import ForwardPenalty
from lightning_reg.penalties.group_lasso import GroupLasso
from lightning_reg.penalties.group_nonconvex import GroupMCP, GroupSCAD
from lightning_reg.penalties.hoyer import Hoyer, HoyerSquare
from lightning_reg.penalties.jacobian import JacobianPenalty
from lightning_reg.penalties.l0 import L0
from lightning_reg.penalties.l1 import L1
from lightning_reg.penalties.l2 import L2
from lightning_reg.penalties.l2_norm import L2Norm
from lightning_reg.penalties.l2_sp import L2SP
from lightning_reg.penalties.l_half import LHalf
from lightning_reg.penalties.l_inf import LInf
from lightning_reg.penalties.log_sum import LogSum
from lightning_reg.penalties.mcp import MCP
from lightning_reg.penalties.nuclear_norm import NuclearNorm
from lightning_reg.penalties.orthogonality import Orthogonality
from lightning_reg.penalties.overlapping_group_lasso import OverlappingGroupLasso
from lightning_reg.penalties.r_drop import RDrop
from lightning_reg.penalties.scad import SCAD
from lightning_reg.penalties.slope import SLOPE
from lightning_reg.penalties.sparse_group_lasso import SparseGroupLasso
from lightning_reg.penalties.spectral_norm import SpectralNorm
from lightning_reg.penalties.total_variation import TotalVariation

__all__ = [
    "L0",
    "L1",
    "L2",
    "L2SP",
    "MCP",
    "SCAD",
    "SLOPE",
    "ActivityPenalty",
    "Bound",
    "ConfidencePenalty",
    "ElasticNet",
    "ForwardPenalty",
    "GroupLasso",
    "GroupMCP",
    "GroupSCAD",
    "Hoyer",
    "HoyerSquare",
    "JacobianPenalty",
    "L2Norm",
    "LHalf",
    "LInf",
    "LogSum",
    "NuclearNorm",
    "Orthogonality",
    "OverlappingGroupLasso",
    "Penalty",
    "RDrop",
    "SparseGroupLasso",
    "SpectralNorm",
    "TotalVariation",
]
