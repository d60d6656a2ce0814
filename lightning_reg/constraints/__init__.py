"""Sets that weights are kept in: each one a projection, applied after every optimizer step.

To add one, write a file here: a frozen dataclass that inherits from :class:`Constraint` and gives
:meth:`Constraint.project_`, in place; for a set of each group, :class:`GroupConstraint` and
:meth:`GroupConstraint.project_groups_`. Then it works in every way in, with its name in ``__all__`` here and
at the root. Test it by a row in ``tests/constraints/cases.py``, and by a file beside it where it does more
than project. For the name as a callback, add four lines to
``callbacks/constraints.py``; without them ``PenaltyCallback(YourConstraint(...))`` does the same.
"""

from lightning_reg.constraints.base import Constraint, GroupConstraint
from lightning_reg.constraints.box import Box
from lightning_reg.constraints.keep_largest import KeepLargest
from lightning_reg.constraints.l1_ball import L1Ball
from lightning_reg.constraints.max_norm import MaxNorm
from lightning_reg.constraints.max_rank import MaxRank
from lightning_reg.constraints.n_m import NM
from lightning_reg.constraints.non_negative import NonNegative
from lightning_reg.constraints.norm_budget import NormBudget
from lightning_reg.constraints.refit import Refit
from lightning_reg.constraints.simplex import Simplex
from lightning_reg.constraints.unit_norm import UnitNorm

__all__ = [
    "NM",
    "Box",
    "Constraint",
    "GroupConstraint",
    "KeepLargest",
    "L1Ball",
    "MaxNorm",
    "MaxRank",
    "NonNegative",
    "NormBudget",
    "Refit",
    "Simplex",
    "UnitNorm",
]
