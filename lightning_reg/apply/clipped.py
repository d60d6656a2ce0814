r"""How far a proximal step goes where the host has clipped the gradients by norm.

An optimizer that is given :math:`c_t g_t` for :math:`g_t` moves a weight c times as far, and the proximal
operator has to go with it, or λ weighs 1/c times as much. With momentum the update holds gradients of earlier
steps, each clipped by a factor of its own, so the factor is averaged as they are:

.. math::
    n_t = \mu\,n_{t-1} + 1, \qquad \bar c_t = \bar c_{t-1} + (c_t - \bar c_{t-1})/n_t,

with μ the momentum, or Adam's β₁. The average lies in the optimizer's state, beside that of the zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.tensors.steps import StepSize

__all__ = ["clipped_steps"]


def clipped_steps(
    key: str,
    optimizer: Optimizer,
    group: Mapping[str, Any],
    weights: Sequence[Tensor],
    steps: Sequence[StepSize],
    factors: Mapping[int, float],
) -> list[StepSize]:
    """Return the steps of gradients that were clipped.

    Args:
        key: of the optimizer's state; the factor lies under ``key + "/clip"``.
        optimizer: after its step.
        group: the parameter group of the weights.
        weights: what it has stepped.
        steps: for each, of a gradient that nobody has clipped.
        factors: by identity, what the gradients of this step were multiplied with; 1 where missing.
    """
    memory, mean_key, count_key = _memory(group), f"{key}/clip", f"{key}/clips"
    if not factors and not (memory and any(mean_key in optimizer.state[weight] for weight in weights)):
        return list(steps)
    shorter = []
    for weight, step in zip(weights, steps, strict=True):
        factor, state = factors.get(id(weight)), optimizer.state[weight] if memory else {}
        if memory and (factor is not None or mean_key in state):
            mean, count = state.get(mean_key, 1.0), state.get(count_key, 0.0)
            count = memory * count + 1.0
            mean += ((1.0 if factor is None else factor) - mean) / count
            state[mean_key], state[count_key] = mean, count
            factor = mean
        shorter.append(
            step if factor in (None, 1.0) else step._replace(numerator=step.numerator * float(factor or 0.0))
        )
    return shorter


def _memory(group: Mapping[str, Any]) -> float:
    """The share of the last step's update in this one's."""
    betas = group.get("betas")
    if betas:
        return float(betas[0])
    return float(group.get("momentum") or 0.0)
