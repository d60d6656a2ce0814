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
from lightning_reg.penalties import (
    L1,
    L2,
    ActivityPenalty,
    ConfidencePenalty,
    ElasticNet,
    ForwardPenalty,
    JacobianPenalty,
    L2Norm,
    Penalty,
    RDrop,
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
    "L1",
    "L2",
    "ActivityPenalty",
    "Apply",
    "Attachment",
    "ConfidencePenalty",
    "Constant",
    "Cosine",
    "ElasticNet",
    "Exponential",
    "ForwardPenalty",
    "JacobianPenalty",
    "L2Norm",
    "Linear",
    "LinearRegression",
    "LogisticRegression",
    "MultiStep",
    "Penalty",
    "Piecewise",
    "PoissonRegression",
    "Polynomial",
    "RDrop",
    "RegularizedClassifier",
    "RegularizedModule",
    "RegularizedRegressor",
    "Schedule",
    "SparseMLP",
    "attach",
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


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        from lightning_reg import modules

        return getattr(modules, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
