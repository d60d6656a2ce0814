r"""``apply="decoupled"``: decay the weights apart from the optimizer's update, as AdamW does for L2.

With :math:`u_t` the optimizer's update, :math:`w \leftarrow w - \rho_t\,\partial\Omega(w) - u_t`. The factor
:math:`\rho_t` is the learning rate; for L2 it may be another, see :data:`~lightning_reg.penalties.l2.Decay`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_reg.apply.gradient import add_to_
from lightning_reg.apply.optimizers import decay_rates
from lightning_reg.apply.stochastic_rounding import generator_at, round_, rounded_after
from lightning_reg.apply.term import Term, found_inf
from lightning_reg.penalties.l2 import L2
from lightning_reg.tensors.grad_mode import without_grad
from lightning_reg.tensors.precision import wide
from lightning_reg.tensors.shards import local
from lightning_reg.tensors.steps import StepSize

__all__ = ["Awaited", "decay_", "decay_where_agreed_"]


class Awaited(NamedTuple):
    """A decay that waits for the update, to see where it agrees."""

    place: str
    weight: Tensor
    before: Tensor
    factor: float


@without_grad
def decay_(term: Term, optimizer: Optimizer, strength: float, clock: Callable[[], int]) -> list[Awaited]:
    """``w ← w − lr · ∂Ω(w)`` for each tensor that ``optimizer`` is about to step; D-Adaptation's lr is d·lr.

    16-bit weights are rounded stochastically, by bits that ``clock``, the optimizer steps taken, decides.

    Before the update, as in Loshchilov and Hutter, *Decoupled Weight Decay Regularization*, ICLR 2019, and
    in ``torch.optim.AdamW``.

    Returns:
        What :func:`decay_where_agreed_` needs after the update: nothing, but for a cautious decay.
    """
    if strength == 0.0 or found_inf(optimizer):
        return []
    by_rate: dict[float, list[nn.Parameter]] = {}
    for group, parameters in term.stepped(optimizer):
        for parameter, rate in zip(parameters, decay_rates(optimizer, group, parameters), strict=True):
            by_rate.setdefault(_factor(term, group, rate), []).append(parameter)
    if len(by_rate) > 1 and term.bound.couples:
        raise ValueError(
            "apply='decoupled' on coupled groups needs one learning rate for all their tensors, and the "
            f"optimizer's groups have {sorted(by_rate)}; use apply='gradient' or apply='proximal'"
        )
    if isinstance(term.penalty, L2) and term.penalty.cautious:
        return [
            Awaited(term.place(parameter), real, real.clone(), rate * strength)
            for rate, parameters in by_rate.items()
            for parameter in parameters
            for real in [torch.view_as_real(parameter) if parameter.is_complex() else local(parameter)]
        ]
    for rate, parameters in by_rate.items():
        if term.in_use.computed:
            term.mask_(parameters)
        if any(map(term.in_use.through_map, parameters if term.in_use.computed else ())):
            through = [p for p in parameters if term.bound.couples or term.in_use.through_map(p)]
            add_to_(term, through, lambda p: p, strength, -rate)
            parameters = [p for p in parameters if all(p is not done for done in through)]
        sizes = [StepSize(rate)] * len(parameters)
        for bound, weights, _ in rounded_after(term, parameters, sizes, clock):
            bound.add_gradient_(weights, weights, strength, alpha=-rate)
    return []


@without_grad
def decay_where_agreed_(awaited: Sequence[Awaited], clock: Callable[[], int]) -> None:
    r"""``w ← w − ρ λ w₀`` where the update has not moved the weight :math:`w_0` away from zero.

    The update :math:`u = w_0 - w` and the decay agree where :math:`u\,w_0 \ge 0`. The weights before the
    update are kept until here, one copy of them.

    Reference: Chen et al., *Cautious Weight Decay*, 2025.
    """
    for place, weight, before, factor in awaited:
        old, new = wide(before), wide(weight)
        agreed = torch.where((old - new) * old >= 0, old, torch.zeros_like(old))
        new = new.sub(agreed, alpha=factor)
        if new.dtype != weight.dtype:
            new = round_(new, weight.dtype, generator_at(clock(), place, weight.device))
        weight.copy_(new)


def _factor(term: Term, group: dict[str, Any], rate: float) -> float:
    """What λ is multiplied by: the rate, or what L2's ``decay`` puts in its place."""
    decay = term.penalty.decay if isinstance(term.penalty, L2) else "lr"
    if decay == "independent":
        return 1.0
    if decay == "corrected" and rate:
        now = float(group["lr"])
        highest = max(now, float(group.get("max_lr", group.get("initial_lr", now))))
        return rate * now / highest
    return rate
