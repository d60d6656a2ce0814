"""What regularization did to weights, as pure functions of a module or of tensors.

Each takes a module, whose parameters ``select`` names (see :mod:`lightning_reg.select.parameters`), or a
tensor, or a sequence of tensors, which are taken whole. Sharded tensors are made whole first.

Under a schedule-free optimizer, whose weights in training are a point between two averages, a
``LightningModule`` in a fit is measured with the weights of evaluation. Elsewhere write
``with evaluated(optimizer): sparsity(model)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_reg.groups.forms import Groups, check_groups, default_layout
from lightning_reg.groups.layout import Layout
from lightning_reg.groups.partition import choose, partition
from lightning_reg.prox.group import group_weights
from lightning_reg.prox.group_maxima import group_maxima
from lightning_reg.select.parameters import Select, named_parameters, select_parameters
from lightning_reg.tensors.evaluated import evaluated
from lightning_reg.tensors.memory import check_values
from lightning_reg.tensors.precision import norm
from lightning_reg.tensors.shards import whole

__all__ = [
    "Target",
    "count_groups",
    "count_zeros",
    "effective_rank",
    "generalization_gap",
    "group_sparsity",
    "named_tensors",
    "parameter_norm",
    "power_sum",
    "sparsity",
]

#: What is measured: the selected parameters of a module, or tensors.
Target: TypeAlias = "nn.Module | Tensor | Sequence[Tensor]"


def sparsity(target: Target, select: Select = "weights", tolerance: float = 0.0) -> Tensor:
    r"""Return the fraction of entries with :math:`|w| \le` ``tolerance``: by default, of exact zeros.

    Args:
        target: a module, a tensor or a sequence of tensors.
        select: of a module, which parameters.
        tolerance: the largest modulus that still counts as zero.

    Raises:
        ValueError: nothing is selected, there are no entries, or a negative tolerance.

    >>> sparsity(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    tensor(0.7500)
    """
    zeros, entries = count_zeros(target, select, tolerance)
    return (zeros / _not_empty(entries)).float()


def group_sparsity(
    target: Target, groups: Groups = "rows", select: Select = "weights", tolerance: float = 0.0
) -> Tensor:
    r"""Return the fraction of groups whose every entry has :math:`|w| \le` ``tolerance``.

    Args:
        target: a module, a tensor or a sequence of tensors.
        groups: which weights make a group, as in a penalty: see :mod:`lightning_reg.groups.forms`. Tensors
            are read as a linear layer's weight, ``(out, in, ...)``.
        select: of a module, which parameters; those that a :class:`~lightning_reg.Coupled` names, by default.
        tolerance: the largest modulus that still counts as zero.

    Raises:
        ValueError: nothing is selected, a parameter has no such groups, or a negative tolerance.

    >>> group_sparsity(torch.tensor([[0.0, 1.0], [0.0, 0.0]]), "rows")
    tensor(0.5000)
    """
    dead, count = count_groups(target, groups, select, tolerance)
    return (dead / _not_empty(count)).float()


@torch.no_grad()
def parameter_norm(target: Target, select: Select = "weights", order: float = 2.0) -> Tensor:
    r"""Return :math:`\bigl(\sum_i|w_i|^p\bigr)^{1/p}` over all entries together, in float32 or wider.

    Args:
        target: a module, a tensor or a sequence of tensors.
        select: of a module, which parameters.
        order: :math:`p \ge 1`; ``inf`` for the largest modulus.

    Raises:
        ValueError: nothing is selected, or an order below 1.

    >>> parameter_norm([torch.tensor([3.0]), torch.tensor([4.0])])
    tensor(5.)
    """
    return norm(torch.stack(_norms(target, select, order)), order)


def effective_rank(matrix: Tensor) -> Tensor:
    r"""Return :math:`\exp H(p)`, the entropy of singular values, :math:`p_i = \sigma_i/\sum_j\sigma_j`.

    Between 1 and the rank: 1 when one direction holds everything, the rank when all directions hold the same;
    0 for a zero matrix. More than two dimensions are read as a layer's weight, ``(out, in, ...)``.

    Args:
        matrix: ``(out, in, ...)``.

    Raises:
        ValueError: fewer than two dimensions, or no entries.

    >>> effective_rank(torch.eye(3)).round(decimals=3)
    tensor(3.)

    References:
        Roy and Vetterli, *The Effective Rank: A Measure of Effective Dimensionality*, EUSIPCO 2007.
    """
    if matrix.dim() < 2 or matrix.numel() == 0:
        raise ValueError(
            f"effective_rank needs a matrix with entries, and the tensor is of shape {tuple(matrix.shape)}"
        )
    values = torch.linalg.svdvals(_wide(whole(matrix.detach()).flatten(1)))
    total = values.sum()
    shares = values / torch.where(total > 0, total, 1.0)
    rank = torch.exp(torch.special.entr(shares).sum())
    return torch.where(total > 0, rank, torch.zeros_like(rank))


def generalization_gap(
    train: Tensor | float, validation: Tensor | float, higher_is_better: bool = False
) -> Tensor:
    """Return by how much validation is worse than training: positive where the model overfits.

    Args:
        train: a loss or a score on training data.
        validation: the same on validation data.
        higher_is_better: whether it is a score, such as accuracy, and not a loss.

    >>> generalization_gap(train=0.1, validation=0.4)
    tensor(0.3000)
    """
    gap = torch.as_tensor(validation) - torch.as_tensor(train)
    return -gap if higher_is_better else gap


def named_tensors(target: Target, select: Select = "weights") -> Iterator[tuple[str, Tensor]]:
    """Yield what a target stands for, whole and without graph, under the names of its parameters.

    A sharded tensor is gathered when its turn comes, so that one at a time is whole; all processes must ask.

    Raises:
        TypeError: neither a module nor tensors.
        ValueError: the selection matches nothing, or a tensor on the meta device.
    """
    if isinstance(target, nn.Module):
        with evaluated(_optimizers_of(target)):
            for s in select_parameters(target, select):
                check_values(s.name, s.parameter)
                yield s.name, whole(s.used().detach())
        return
    tensors = [target] if isinstance(target, Tensor) else list(target)
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise TypeError("the target is neither a module nor a tensor nor a sequence of tensors")
    yield from ((str(index), whole(tensor.detach())) for index, tensor in enumerate(tensors))


@torch.no_grad()
def count_zeros(target: Target, select: Select = "weights", tolerance: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return the number of zeros and of entries, as float64 scalars that add up over processes."""
    _check_tolerance(tolerance)
    zeros, entries = _zero(), _zero()
    for _, tensor in named_tensors(target, select):
        zeros += (tensor.abs() <= tolerance).sum().cpu()
        entries += tensor.numel()
    return zeros, entries


@torch.no_grad()
def count_groups(
    target: Target, groups: Groups = "rows", select: Select = "weights", tolerance: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the number of dead groups and of groups, as float64 scalars that add up over processes."""
    _check_tolerance(tolerance)
    dead, count = _zero(), _zero()
    for largest in _group_maxima(target, groups, select):
        dead += (largest <= tolerance).sum().cpu()
        count += largest.numel()
    return dead, count


@torch.no_grad()
def power_sum(target: Target, select: Select = "weights", order: float = 2.0) -> Tensor:
    r"""Return :math:`\sum_i|w_i|^p`, or the largest modulus for ``order=inf``."""
    found = torch.stack(_norms(target, select, order)).cpu().double()
    return found.max() if order == float("inf") else (found**order).sum()


def _norms(target: Target, select: Select, order: float) -> list[Tensor]:
    """The norm of each tensor that is not empty."""
    if not order >= 1.0:
        raise ValueError(f"order={order} is not a norm's; give a number of 1 or more, or inf")
    tensors = (tensor for _, tensor in named_tensors(target, select) if tensor.numel())
    found = [norm(tensor, order) for tensor in tensors]
    if not found:
        raise ValueError("the target has no entries to measure")
    return found


def _group_maxima(target: Target, groups: Groups, select: Select) -> Iterator[Tensor]:
    """The largest modulus of each group, a vector for each set of tensors that share their groups."""
    check_groups(groups)
    if isinstance(target, nn.Module):
        chosen = choose(named_parameters(target), select, groups)
        if not chosen:
            select_parameters(target, select)  # raises, as nothing matches
        with evaluated(_optimizers_of(target)):
            for members in partition([s.as_used() for s in chosen], groups):
                tensors = [whole(s.parameter.detach()) for s, _ in members]
                yield _maxima(tensors, [layout for _, layout in members])
        return
    if not isinstance(groups, str):
        raise ValueError(f"groups={groups!r} needs a module, whose parameters have names")
    for _, tensor in named_tensors(target, select):
        yield _maxima([tensor], [default_layout(tensor.shape, groups)])


def _optimizers_of(module: nn.Module) -> Sequence[Any]:
    """Those of the Trainer that fits a ``LightningModule``, which may keep other weights for evaluation."""
    return getattr(getattr(module, "_trainer", None), "optimizers", None) or ()


def _maxima(tensors: Sequence[Tensor], layouts: Sequence[Layout]) -> Tensor:
    maxima = group_maxima(tensors, layouts)
    # weights in no group are not a group; their weight is 0
    weights = torch.as_tensor(group_weights(layouts, maxima, size_weighted=False)).expand_as(maxima)
    return maxima[weights > 0]


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


def _not_empty(count: Tensor) -> Tensor:
    if count == 0:
        raise ValueError("the target has no entries to measure")
    return count


def _check_tolerance(tolerance: float) -> None:
    if not tolerance >= 0.0:
        raise ValueError(f"tolerance={tolerance} is out of range; give a number of 0 or more")
