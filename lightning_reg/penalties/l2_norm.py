"""The norm that is not squared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lightning_reg.groups.layout import Layout, Slices
from lightning_reg.groups.spanning import local_layout
from lightning_reg.penalties._factors import Factors
from lightning_reg.penalties.base import Penalty
from lightning_reg.penalties.bound import Bound, Held
from lightning_reg.penalties.group_lasso import GroupLasso
from lightning_reg.prox.dual_averaging import hold_groups_
from lightning_reg.prox.group import shrink_each_in_metric_, shrink_views_
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.schedules.target_sparsity import TargetSparsity
from lightning_reg.select.parameters import Select, Selected
from lightning_reg.tensors.grad_mode import without_grad
from lightning_reg.tensors.precision import norm, real_dtype
from lightning_reg.tensors.shards import local
from lightning_reg.tensors.steps import StepSize

__all__ = ["L2Norm"]


@dataclass(frozen=True)
class L2Norm(Penalty):
    r"""One norm a tensor, not squared: :math:`\lambda\|w\|_2`.

    This is what ``sum(torch.norm(p, 2) for p in model.parameters())`` adds, and what many tutorials call
    L2. Its gradient :math:`\lambda w/\|w\|_2` has length λ however large the tensor is, and is 0 at 0; its
    prox sets whole tensors to zero. Weight decay is :class:`~lightning_reg.L2`.

    Args:
        strength: λ ≥ 0, in units of loss per unit of weight.
        select: what it applies to.
        factors: what λ is multiplied by for each tensor: a dict of numbers by parameter name, or a callable
            ``(name, parameter, module) -> number``.
        name: its name in logs.

    Raises:
        ValueError: a negative, NaN or infinite strength.

    >>> L2Norm(0.1).value(torch.tensor([3.0, 4.0]), strength=0.1)
    tensor(0.5000)

    References:
        Yuan and Lin, *Model Selection and Estimation in Regression with Grouped Variables*, JRSS B 68(1),
        2006, for one group a tensor, without the size weight.
    """

    by_norms: ClassVar[bool] = True
    kind: ClassVar[str] = "norms"
    turn: ClassVar[int] = 35
    holds_zeros = True

    strength: ScheduleLike
    select: Select = "weights"
    _: KW_ONLY
    factors: Factors | None = field(default=None, repr=False, compare=False)
    name: str | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        if isinstance(self.strength, TargetSparsity) and self.strength.floor != 0:
            raise ValueError(
                f"L2Norm({self.strength!r}) makes whole tensors zero, which only a network with a way around "
                "them survives; allow it by floor=0, or use GroupLasso"
            )

    def bind(self, selected: Sequence[Selected]) -> Bound:
        """Return this penalty itself, or what gives each tensor a strength of its own: one group each."""
        if self.factors is None:
            return self
        groups = GroupLasso(
            self.strength, self.select, groups="tensor", size_weighted=False, factors=self.factors
        )
        return groups.bind(selected)

    def levels(self, weight: Tensor) -> Sequence[Layout]:
        """Return the tensor as one group."""
        return (Slices(tuple(weight.shape), ()),)

    def value(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\lambda\|w\|_2`."""
        return norm(weight) * strength

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\lambda w/\|w\|_2`, and 0 at 0."""
        length = norm(weight)
        factor = torch.where(length > 0, strength / length, 0.0)
        return weight * factor.to(real_dtype(weight.dtype))

    def prox(self, weight: Tensor, strength: float, step: float | Tensor) -> Tensor:
        """Return the weight shortened by step times strength, or zero, in the metric of the steps."""
        result = weight.detach().clone()
        self.prox_([result], strength, [StepSize.of(step)])
        return result

    @without_grad
    def hold_zeros_(self, held: Held, strength: float) -> Sequence[int]:
        """Set tensors to zero that the averages keep there."""
        for weight, average, step, share in zip(*held, strict=True):
            layout = local_layout(weight, Slices(tuple(weight.shape), ()))
            hold_groups_(
                [local(weight)],
                [layout],
                [local(average)],
                [step.local()],
                [share],
                strength,
                lambda views, layouts: shrink_views_(views, layouts, 1.0),
                together=True,
            )
        return range(len(held.weights))

    @without_grad
    def prox_(self, weights: Sequence[Tensor], strength: float, steps: Sequence[StepSize]) -> None:
        """Shorten each tensor, or set it to zero, in its metric."""
        layouts = [local_layout(weight, Slices(tuple(weight.shape), ())) for weight in weights]
        steps = [step.local() for step in steps]
        shrink_each_in_metric_([local(weight) for weight in weights], layouts, steps, strength)
