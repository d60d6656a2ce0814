"""What an optimizer without a row shows of itself, by its names and attributes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from torch.optim import Optimizer

from lightning_reg.apply.optimizers.facts import Facts, Group
from lightning_reg.apply.optimizers.rows import LOMO, LOOKAHEAD, ORTHOGONAL, SCHEDULE_FREE

__all__ = ["recognised", "steps_twice"]

_SHARPNESS = "it moves the weights away and back, with two gradients a step"
_SHARPNESS_AWARE = Facts(
    metric=_SHARPNESS,
    rate=_SHARPNESS,
    placed=_SHARPNESS,
    gradient=_SHARPNESS,
    instead="attach to the optimizer inside it, or add penalty(model) to both losses",
)
_TWO_STEPS = (("first_step", "second_step"), ("ascent_step", "descent_step"))
_PRIVATE = Facts(
    gradient="it makes the gradients anew from those of single examples",
    loss="it makes the gradients anew from those of single examples",
    instead="attach to its original_optimizer",
)


def recognised(optimizer: Optimizer, group: Group) -> Facts:
    """Return the facts of an optimizer that the registry does not know."""
    if _has(optimizer, "train", "eval"):  # to swap the weights for others
        return SCHEDULE_FREE
    names = [base.__name__.lower().replace("_", "") for base in type(optimizer).__mro__]
    if any("schedulefree" in name for name in names):
        return SCHEDULE_FREE
    if any(_has(optimizer, *pair) for pair in _TWO_STEPS):
        return _SHARPNESS_AWARE
    if _has(optimizer, "fused_backward"):
        return LOMO
    if hasattr(optimizer, "original_optimizer") and hasattr(optimizer, "noise_multiplier"):
        return _PRIVATE
    if any("lookahead" in name for name in names):
        return LOOKAHEAD
    if group.get("use_muon"):
        return Facts(ORTHOGONAL)
    if "d" in group and "d0" in group:
        return Facts(rate="its steps are those of an estimate beside the learning rate")
    try:
        float(group["lr"])
    except (KeyError, TypeError, ValueError, RuntimeError):
        return replace(Facts(), rate="its groups have no learning rate that is a number")
    return Facts()


@cache
def steps_twice(optimizer: type[Optimizer]) -> bool:
    """Whether it has methods to move the weights away and back, as sharpness-aware ones do."""
    return any(_has(optimizer, *pair) for pair in _TWO_STEPS)


def _has(optimizer: Optimizer | type[Optimizer], *methods: str) -> bool:
    return all(callable(getattr(optimizer, method, None)) for method in methods)
