"""The public names of the callbacks, each listed once: ``_lazy`` reads this file, as type checkers do."""

from lightning_reg.callbacks.adaptive_dropout import AdaptiveDropout as AdaptiveDropout
from lightning_reg.callbacks.constraints import NM as NM
from lightning_reg.callbacks.constraints import Box as Box
from lightning_reg.callbacks.constraints import KeepLargest as KeepLargest
from lightning_reg.callbacks.constraints import L1Ball as L1Ball
from lightning_reg.callbacks.constraints import MaxNorm as MaxNorm
from lightning_reg.callbacks.constraints import MaxRank as MaxRank
from lightning_reg.callbacks.constraints import NonNegative as NonNegative
from lightning_reg.callbacks.constraints import NormBudget as NormBudget
from lightning_reg.callbacks.constraints import Refit as Refit
from lightning_reg.callbacks.constraints import Simplex as Simplex
from lightning_reg.callbacks.constraints import UnitNorm as UnitNorm
from lightning_reg.callbacks.dropout_injector import DropoutInjector as DropoutInjector
from lightning_reg.callbacks.dropout_scheduler import DropoutScheduler as DropoutScheduler
from lightning_reg.callbacks.forward_penalty import ForwardPenaltyCallback as ForwardPenaltyCallback
from lightning_reg.callbacks.penalty import ElasticNetPenaltyCallback as ElasticNetPenaltyCallback
from lightning_reg.callbacks.penalty import GroupLassoPenaltyCallback as GroupLassoPenaltyCallback
from lightning_reg.callbacks.penalty import L1PenaltyCallback as L1PenaltyCallback
from lightning_reg.callbacks.penalty import L2PenaltyCallback as L2PenaltyCallback
from lightning_reg.callbacks.penalty import PenaltyCallback as PenaltyCallback
from lightning_reg.callbacks.penalty import (
    SparseGroupLassoPenaltyCallback as SparseGroupLassoPenaltyCallback,
)
from lightning_reg.callbacks.regularization_monitor import RegularizationMonitor as RegularizationMonitor
from lightning_reg.tune.strength_finder import DropoutFinder as DropoutFinder
from lightning_reg.tune.strength_finder import StrengthFinder as StrengthFinder
