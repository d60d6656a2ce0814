"""Regularization for PyTorch Lightning: penalties, exact sparsity and dropout schedules for any module.

The core (penalties, selections, schedules, :func:`attach`) needs torch alone. What needs Lightning is
loaded when it is first asked for: :class:`RegularizedModule` here, the callbacks in
:mod:`lightning_reg.callbacks`.
"""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from lightning_reg.apply import Apply
from lightning_reg.attach import Attachment, attach
from lightning_reg.compact import compact
from lightning_reg.coupled import Coupled
from lightning_reg.dropout import (
    AnnealedDropout,
    ByDepth,
    CurriculumDropout,
    DropHead,
    DropoutSite,
    EarlyDropout,
    LateDropout,
    find_sites,
    register_site,
)
from lightning_reg.penalties import (
    L0,
    L1,
    L2,
    L2SP,
    MCP,
    SCAD,
    ElasticNet,
    GroupLasso,
    Hoyer,
    HoyerSquare,
    L2Norm,
    LHalf,
    LInf,
    NuclearNorm,
    Orthogonality,
    Penalty,
    SparseGroupLasso,
    SpectralNorm,
)
from lightning_reg.schedules import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    MultiStep,
    Piecewise,
    Polynomial,
    Schedule,
)
from lightning_reg.target_sparsity import TargetSparsity

if TYPE_CHECKING:
    from lightning_reg.modules import RegularizedModule

__all__ = [
    "L0",
    "L1",
    "L2",
    "L2SP",
    "MCP",
    "SCAD",
    "AnnealedDropout",
    "Apply",
    "Attachment",
    "ByDepth",
    "Constant",
    "Cosine",
    "Coupled",
    "CurriculumDropout",
    "DropHead",
    "DropoutSite",
    "EarlyDropout",
    "ElasticNet",
    "Exponential",
    "GroupLasso",
    "Hoyer",
    "HoyerSquare",
    "L2Norm",
    "LHalf",
    "LInf",
    "LateDropout",
    "Linear",
    "MultiStep",
    "NuclearNorm",
    "Orthogonality",
    "Penalty",
    "Piecewise",
    "Polynomial",
    "RegularizedModule",
    "Schedule",
    "SparseGroupLasso",
    "SpectralNorm",
    "TargetSparsity",
    "attach",
    "compact",
    "find_sites",
    "register_site",
]

try:
    __version__ = _version("lightning-reg")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name == "RegularizedModule":
        from lightning_reg.modules import RegularizedModule

        return RegularizedModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
