"""Group lasso: groups of weights stay or go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

from torch import Tensor

from lightning_reg.groups.forms import Groups
from lightning_reg.groups.layout import Layout
from lightning_reg.penalties._factors import Factors
from lightning_reg.penalties._of_norms import OfNorms
from lightning_reg.prox.group import group_weights, shrink_groups_in_metric_
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.select.parameters import Select
from lightning_reg.tensors.steps import StepSize

__all__ = ["GroupLasso"]


@dataclass(frozen=True)
class GroupLasso(OfNorms):
    r"""Group lasso: :math:`\lambda\sum_g \sqrt{|g|}\,\|w_g\|_2`.

    With ``apply="proximal"`` whole groups become exactly zero: units, filters, input features, heads. Under
    Adam and its like the prox is taken in the optimizer's own metric. A gradient never makes an exact zero.

    Args:
        strength: λ ≥ 0, in units of loss per unit of weight.
        select: what it applies to.
        groups: which weights make a group, see :mod:`lightning_reg.groups.forms`; a unit's incoming ones
            where not given.
        size_weighted: weigh a group by the root of its size; without, :math:`\lambda\sum_g\|w_g\|_2`.
        factors: what λ is multiplied by for each group: a tensor of ``(groups,)`` for one parameter, a dict
            of tensors or numbers by parameter name (for groups over several, by the name of the first), or a
            callable ``(name, parameter, module) -> tensor``; 0 leaves a group alone.
        name: its name in logs.

    Raises:
        ValueError: a negative, NaN or infinite strength, or unknown groups.

    >>> import torch
    >>> penalty = GroupLasso(0.1)
    >>> weight = torch.tensor([[3.0, 4.0], [0.03, 0.04]])  # (out, in)
    >>> penalty.value(weight, strength=0.1)
    tensor(0.7142)
    >>> penalty.prox(weight, strength=0.1, step=1.0)
    tensor([[2.9151, 3.8869],
            [0.0000, 0.0000]])

    References:
        Yuan and Lin, *Model Selection and Estimation in Regression with Grouped Variables*, JRSS B 68(1),
        2006; Deleu and Bengio, *Structured Sparsity Inducing Adaptive Optimizers for Deep Learning*, 2021.
    """

    by_norms: ClassVar[bool] = True
    kind: ClassVar[str] = "norms"
    turn: ClassVar[int] = 30

    strength: ScheduleLike
    select: Select = "weights"
    _: KW_ONLY
    groups: Groups = "rows"
    size_weighted: bool = True
    factors: Factors | None = field(default=None, repr=False, compare=False)
    name: str | None = None

    def of_norm(self, norms: Tensor, strength: float | Tensor) -> Tensor:
        r"""Return :math:`\lambda_g\|w_g\|_2`."""
        return norms * strength

    def slope(self, norms: Tensor, strength: float | Tensor) -> float | Tensor:
        r"""Return :math:`\lambda_g`."""
        return strength

    def joint_prox_(
        self,
        weights: Sequence[Tensor],
        layouts: Sequence[Layout],
        strength: float,
        steps: Sequence[StepSize],
    ) -> None:
        """Shorten each group by its threshold, or set it to zero."""
        threshold = group_weights(layouts, weights[0], self.size_weighted) * strength
        shrink_groups_in_metric_(weights, layouts, steps, threshold)
