"""What an optimizer would make wrong, said before training starts."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer

from lightning_reg.apply.optimizers import facts_of, metric_names
from lightning_reg.apply.optimizers.facts import Facts, Group
from lightning_reg.apply.optimizers.trial import tried

__all__ = ["check_mode", "check_placeable"]


def check_mode(
    optimizer: Optimizer, apply: str, euclidean: bool = False, groups: Sequence[Group] | None = None
) -> None:
    """Refuse a mode whose effect the optimizer would undo, miss or scale by something unknown.

    Args:
        optimizer: the bare one.
        apply: the mode.
        euclidean: whether ``"proximal"`` takes the learning rate for the step of every weight.
        groups: those of its groups that the mode acts on; all of them where not given.

    Raises:
        ValueError: with the reason, and what works instead.
    """
    for group in groups or optimizer.param_groups:
        facts = facts_of(optimizer, group)
        if apply in ("decoupled", "proximal"):
            facts = tried(optimizer, facts)
        reason = _reason(facts, apply, euclidean)
        if reason is not None:
            raise ValueError(
                f"apply={apply!r} does not work under {type(optimizer).__name__}: {reason}; "
                f"{_instead(facts, apply)}"
            )


def check_placeable(optimizer: Optimizer, constraint: str, groups: Sequence[Group] | None = None) -> None:
    """Refuse a constraint on weights that the optimizer changes again apart from its steps.

    Raises:
        ValueError: with the reason.
    """
    for group in groups or optimizer.param_groups:
        facts = tried(optimizer, facts_of(optimizer, group))
        if facts.placed is not None:
            raise ValueError(
                f"{constraint} does not hold under {type(optimizer).__name__}: {facts.placed}; "
                f"use another optimizer, such as {metric_names().split(', ')[0]} or AdamW"
            )


def _reason(facts: Facts, apply: str, euclidean: bool) -> str | None:
    if apply == "gradient":
        return facts.gradient
    if apply == "loss":
        return facts.loss
    if apply == "decoupled":
        return None if callable(facts.rate) else facts.rate
    if facts.placed is not None:
        return facts.placed
    if euclidean:  # the learning rate is the step of each weight
        return facts.rate if facts.metric == Facts.metric and isinstance(facts.rate, str) else None
    return None if callable(facts.metric) else facts.metric


def _instead(facts: Facts, apply: str) -> str:
    if facts.instead is not None:
        return facts.instead
    modes = [f"apply={m!r}" for m in ("gradient", "decoupled") if _reason(facts, m, euclidean=False) is None]
    if not modes:
        return "use apply='loss', or add penalty(model) to the loss"
    advice = f"use {' or '.join(modes)}"
    if apply == "decoupled" and facts.metric == Facts.metric:
        return f"{advice}, or tell register_optimizer its rate"
    if apply != "proximal":
        return advice
    advice += f", or one of {metric_names()}"
    return f"{advice}, or tell it to register_optimizer" if facts.metric == Facts.metric else advice
