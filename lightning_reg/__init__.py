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
from lightning_reg.penalties import L1, L2, ElasticNet, GroupLasso, L2Norm, LInf, Penalty, SparseGroupLasso
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
    from lightning_reg.modules import RegularizedModule

__all__ = [
    "L1",
    "L2",
    "Apply",
    "Attachment",
    "Constant",
    "Cosine",
    "ElasticNet",
    "Exponential",
    "GroupLasso",
    "L2Norm",
    "LInf",
    "Linear",
    "MultiStep",
    "Penalty",
    "Piecewise",
    "Polynomial",
    "RegularizedModule",
    "Schedule",
    "SparseGroupLasso",
    "attach",
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
