"""Regularization for PyTorch Lightning: penalties, exact sparsity and dropout schedules for any module.

The core (penalties, selections, schedules, :func:`attach`) needs torch alone. What needs Lightning is
loaded when it is first asked for: :class:`RegularizedModule` here, the callbacks in
:mod:`lightning_reg.callbacks`.
"""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

import torch

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
    ActivityPenalty,
    ConfidencePenalty,
    ElasticNet,
    ForwardPenalty,
    GroupLasso,
    Hoyer,
    HoyerSquare,
    JacobianPenalty,
    L2Norm,
    LHalf,
    LInf,
    NuclearNorm,
    Orthogonality,
    Penalty,
    RDrop,
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
    from lightning_reg.modules import (
        LinearRegression,
        LogisticRegression,
        PoissonRegression,
        RegularizedClassifier,
        RegularizedModule,
        RegularizedRegressor,
        SparseMLP,
    )

__all__ = [
    "L0",
    "L1",
    "L2",
    "L2SP",
    "MCP",
    "SCAD",
    "ActivityPenalty",
    "AnnealedDropout",
    "Apply",
    "Attachment",
    "ByDepth",
    "ConfidencePenalty",
    "Constant",
    "Cosine",
    "Coupled",
    "CurriculumDropout",
    "DropHead",
    "DropoutSite",
    "EarlyDropout",
    "ElasticNet",
    "Exponential",
    "ForwardPenalty",
    "GroupLasso",
    "Hoyer",
    "HoyerSquare",
    "JacobianPenalty",
    "L2Norm",
    "LHalf",
    "LInf",
    "LateDropout",
    "Linear",
    "LinearRegression",
    "LogisticRegression",
    "MultiStep",
    "NuclearNorm",
    "Orthogonality",
    "Penalty",
    "Piecewise",
    "PoissonRegression",
    "Polynomial",
    "RDrop",
    "RegularizedClassifier",
    "RegularizedModule",
    "RegularizedRegressor",
    "Schedule",
    "SparseGroupLasso",
    "SparseMLP",
    "SpectralNorm",
    "TargetSparsity",
    "attach",
    "compact",
    "find_sites",
    "register_site",
]

_MODULES = frozenset(
    {
        "LinearRegression",
        "LogisticRegression",
        "PoissonRegression",
        "RegularizedClassifier",
        "RegularizedModule",
        "RegularizedRegressor",
        "SparseMLP",
    }
)

try:
    __version__ = _version("lightning-reg")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"

# hyper-parameters saved in a checkpoint load with weights_only=True
if hasattr(torch.serialization, "add_safe_globals"):  # torch 2.4
    torch.serialization.add_safe_globals(
        [
            public
            for public in list(vars().values())
            if isinstance(public, type) and issubclass(public, (Penalty, ForwardPenalty, Schedule))
        ]
    )


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        from lightning_reg import modules

        return getattr(modules, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
