"""Regularization for PyTorch Lightning: penalties, exact sparsity and dropout schedules for any module.

Every name is loaded when it is first asked for, so that importing the package costs nothing: Lightning does
so for every Trainer, through the entry points that :mod:`lightning_reg.cli.entry_point` serves. The core
(penalties, selections, schedules, :func:`attach`) needs torch alone; :class:`RegularizedModule` and the
callbacks of :mod:`lightning_reg.callbacks` need Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_reg.apply import Apply
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
    from lightning_reg.groups.coupled import Coupled
    from lightning_reg.hosts.attachment import Attachment, attach
    from lightning_reg.look.compaction import compact
    from lightning_reg.modules import (
        LinearRegression,
        LogisticRegression,
        PoissonRegression,
        RegularizedClassifier,
        RegularizedModule,
        RegularizedRegressor,
        SparseMLP,
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
    from lightning_reg.schedules.base import Schedule
    from lightning_reg.schedules.shapes import (
        Constant,
        Cosine,
        Exponential,
        Linear,
        MultiStep,
        Piecewise,
        Polynomial,
    )
    from lightning_reg.schedules.target_sparsity import TargetSparsity

    __version__: str

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

#: Where each name comes from.
_HOMES = {
    "apply": ("Apply",),
    "hosts.attachment": (
        "Attachment",
        "attach",
    ),
    "look.compaction": ("compact",),
    "groups.coupled": ("Coupled",),
    "dropout": (
        "AnnealedDropout",
        "ByDepth",
        "CurriculumDropout",
        "DropHead",
        "DropoutSite",
        "EarlyDropout",
        "LateDropout",
        "find_sites",
        "register_site",
    ),
    "modules": (
        "LinearRegression",
        "LogisticRegression",
        "PoissonRegression",
        "RegularizedClassifier",
        "RegularizedModule",
        "RegularizedRegressor",
        "SparseMLP",
    ),
    "penalties": (
        "L0",
        "L1",
        "L2",
        "L2SP",
        "MCP",
        "SCAD",
        "ActivityPenalty",
        "ConfidencePenalty",
        "ElasticNet",
        "ForwardPenalty",
        "GroupLasso",
        "Hoyer",
        "HoyerSquare",
        "JacobianPenalty",
        "L2Norm",
        "LHalf",
        "LInf",
        "NuclearNorm",
        "Orthogonality",
        "Penalty",
        "RDrop",
        "SparseGroupLasso",
        "SpectralNorm",
    ),
    "schedules.base": ("Schedule",),
    "schedules.shapes": (
        "Constant",
        "Cosine",
        "Exponential",
        "Linear",
        "MultiStep",
        "Piecewise",
        "Polynomial",
    ),
    "schedules.target_sparsity": ("TargetSparsity",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name == "plot":
        value = import_module("lightning_reg.look.plot")
    elif name in _HOME_OF:
        value = getattr(import_module(f"lightning_reg.{_HOME_OF[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lightning-reg")
    except PackageNotFoundError:  # a checkout that was never installed
        return "0+unknown"
