"""What regularization did: metrics of weights and of generalization, as functions and as torchmetrics.

The functions need torch alone; the classes load torchmetrics when they are first asked for.
"""

from typing import TYPE_CHECKING, Any

from lightning_reg.metrics.functional import (
    effective_rank,
    generalization_gap,
    group_sparsity,
    parameter_norm,
    sparsity,
)

if TYPE_CHECKING:
    from lightning_reg.metrics.gap import GeneralizationGap
    from lightning_reg.metrics.parameters import EffectiveRank, GroupSparsity, ParameterNorm, Sparsity

__all__ = [
    "EffectiveRank",
    "GeneralizationGap",
    "GroupSparsity",
    "ParameterNorm",
    "Sparsity",
    "effective_rank",
    "generalization_gap",
    "group_sparsity",
    "parameter_norm",
    "sparsity",
]


def __getattr__(name: str) -> Any:
    if name == "GeneralizationGap":
        from lightning_reg.metrics.gap import GeneralizationGap

        return GeneralizationGap
    if name in ("EffectiveRank", "GroupSparsity", "ParameterNorm", "Sparsity"):
        from lightning_reg.metrics import parameters

        return getattr(parameters, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
