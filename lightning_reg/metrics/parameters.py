"""The weights' metrics in torchmetrics' form: updated with a module, reduced over processes."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_reg.groups.forms import Groups
from lightning_reg.metrics.functional import (
    Target,
    count_groups,
    count_zeros,
    effective_rank,
    named_tensors,
    power_sum,
)
from lightning_reg.select.parameters import Select

__all__ = ["EffectiveRank", "GroupSparsity", "ParameterNorm", "Sparsity"]


class _ParameterMetric(Metric):
    """A mean over all that was seen: a sum and a count, both added up over processes."""

    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, select: Select, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.select = select
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        """Return the mean over what was seen."""
        return (self.total / self.count).float()

    def _add(self, total: Tensor, count: Tensor | float) -> None:
        self.total += total.to(self.total)
        self.count += torch.as_tensor(count).to(self.count)


@final
class Sparsity(_ParameterMetric):
    """The fraction of exact zeros among the selected weights, see :func:`~lightning_reg.metrics.sparsity`.

    Several updates, and several processes, count together: the zeros of all over the entries of all.

    Args:
        select: of a module, which parameters.
        tolerance: the largest modulus that still counts as zero.
        kwargs: of :class:`torchmetrics.Metric`.

    >>> metric = Sparsity()
    >>> metric.update(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    >>> metric.compute()
    tensor(0.7500)
    """

    higher_is_better = True

    def __init__(self, select: Select = "weights", tolerance: float = 0.0, **kwargs: Any) -> None:
        super().__init__(select, **kwargs)
        self.tolerance = tolerance

    def update(self, target: Target) -> None:
        """Count the zeros of a module or of tensors."""
        self._add(*count_zeros(target, self.select, self.tolerance))


@final
class GroupSparsity(_ParameterMetric):
    """The fraction of groups that are all zero, see :func:`~lightning_reg.metrics.group_sparsity`.

    Several updates, and several processes, count together.

    Args:
        groups: which weights make a group, see :mod:`lightning_reg.groups.forms`.
        select: of a module, which parameters.
        tolerance: the largest modulus that still counts as zero.
        kwargs: of :class:`torchmetrics.Metric`.

    >>> metric = GroupSparsity("columns")
    >>> metric.update(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    >>> metric.compute()
    tensor(0.5000)
    """

    higher_is_better = True

    def __init__(
        self, groups: Groups = "rows", select: Select = "weights", tolerance: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(select, **kwargs)
        self.groups = groups
        self.tolerance = tolerance

    def update(self, target: Target) -> None:
        """Count the dead groups of a module or of tensors."""
        self._add(*count_groups(target, self.groups, self.select, self.tolerance))


@final
class ParameterNorm(_ParameterMetric):
    r"""The norm of all selected weights together, see :func:`~lightning_reg.metrics.parameter_norm`.

    Over several updates or processes, :math:`\|w\|_p^p` is averaged, so that the replicas of one model give
    that model's norm; ``order=inf`` averages the largest moduli.

    Args:
        select: of a module, which parameters.
        order: :math:`p \ge 1`, or ``inf``.
        kwargs: of :class:`torchmetrics.Metric`.

    >>> metric = ParameterNorm(order=1)
    >>> metric.update(torch.tensor([3.0, -4.0]))
    >>> metric.compute()
    tensor(7.)
    """

    higher_is_better = False

    def __init__(self, select: Select = "weights", order: float = 2.0, **kwargs: Any) -> None:
        super().__init__(select, **kwargs)
        self.order = order

    def update(self, target: Target) -> None:
        """Measure a module or tensors."""
        self._add(power_sum(target, self.select, self.order), 1)

    def compute(self) -> Tensor:
        """Return the norm."""
        mean = super().compute()
        return mean if self.order == float("inf") else mean ** (1.0 / self.order)


@final
class EffectiveRank(_ParameterMetric):
    """The mean effective rank of the selected matrices, see :func:`~lightning_reg.metrics.effective_rank`.

    Each matrix counts the same, over several updates and processes too. Give it a tensor of activations,
    ``(samples, features)``, for the effective rank of a representation.

    Args:
        select: of a module, which parameters; those with fewer than two dimensions are left out.
        kwargs: of :class:`torchmetrics.Metric`.

    >>> metric = EffectiveRank()
    >>> metric.update(torch.eye(3))
    >>> metric.compute()
    tensor(3.)
    """

    higher_is_better = None

    def __init__(self, select: Select = "weights", **kwargs: Any) -> None:
        super().__init__(select, **kwargs)

    def update(self, target: Target) -> None:
        """Measure the matrices of a module, or tensors."""
        for _, tensor in named_tensors(target, self.select):
            if tensor.dim() >= 2:
                self._add(effective_rank(tensor), 1)
