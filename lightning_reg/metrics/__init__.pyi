"""The public names of the metrics, each listed once: ``_lazy`` reads this file, as type checkers do."""

from lightning_reg.metrics.functional import effective_rank as effective_rank
from lightning_reg.metrics.functional import generalization_gap as generalization_gap
from lightning_reg.metrics.functional import group_sparsity as group_sparsity
from lightning_reg.metrics.functional import parameter_norm as parameter_norm
from lightning_reg.metrics.functional import sparsity as sparsity
from lightning_reg.metrics.gap import GeneralizationGap as GeneralizationGap
from lightning_reg.metrics.parameters import EffectiveRank as EffectiveRank
from lightning_reg.metrics.parameters import GroupSparsity as GroupSparsity
from lightning_reg.metrics.parameters import ParameterNorm as ParameterNorm
from lightning_reg.metrics.parameters import Sparsity as Sparsity
from lightning_reg.tensors.evaluated import evaluated as evaluated
