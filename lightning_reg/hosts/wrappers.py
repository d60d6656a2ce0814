"""Optimizers and modules as Fabric, Accelerate and Lightning hand them back: what is inside.

Their classes are known by name, so that none of these libraries is imported.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn
from torch.optim import Optimizer

__all__ = ["accumulates", "bare_optimizer", "check_reachable", "left_scale", "runs_hooks", "scaler_of"]

_WRAPPERS = frozenset({"_FabricOptimizer", "AcceleratedOptimizer", "LightningOptimizer"})


def bare_optimizer(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer that steps, whose hooks run once for each step that is taken.

    Raises:
        TypeError: it is none of torch's, or runs no hooks.
    """
    inner: Any = optimizer
    while _is_a(inner, *_WRAPPERS):
        inner = inner.optimizer
    if not isinstance(inner, Optimizer):
        raise TypeError(
            f"{type(inner).__name__} is not a torch optimizer, which attach needs; give the optimizer that "
            "steps this model, such as torch.optim.Adam(model.parameters())"
        )
    if not runs_hooks(inner):
        raise TypeError(
            f"{type(inner).__name__} runs no hooks in its step, so attach would do nothing; give the "
            "optimizer inside it"
        )
    return inner


def runs_hooks(optimizer: Optimizer) -> bool:
    """Whether the step of a bare optimizer runs hooks."""
    # torch marks the step and makes the list in Optimizer.__init__, or when a state is loaded; some
    # optimizers around another one call neither
    hooks = getattr(optimizer, "_optimizer_step_post_hooks", None)
    return bool(getattr(type(optimizer).step, "hooked", False)) and isinstance(hooks, OrderedDict)


def scaler_of(optimizer: Optimizer) -> Any | None:
    """Return the ``GradScaler`` that a wrapped optimizer steps through, or None."""
    if _is_a(optimizer, "AcceleratedOptimizer"):
        return getattr(optimizer, "scaler", None)
    if _is_a(optimizer, "_FabricOptimizer"):
        wrapped: Any = optimizer
        return getattr(wrapped._strategy.precision, "scaler", None)
    return None


def left_scale(scaler: Any | None, optimizer: Optimizer) -> float:
    """Return the factor that ``scaler`` has left on the gradients: 1 from ``scaler.unscale_`` on.

    Args:
        scaler: a ``GradScaler``, or None.
        optimizer: the bare one.
    """
    if scaler is None or not scaler.is_enabled():
        return 1.0
    # no public method says whether unscale_ has been called
    state = scaler._per_optimizer_states.get(id(optimizer))
    return float(scaler.get_scale()) if state is None or state["stage"].name == "READY" else 1.0


def accumulates(optimizer: Optimizer) -> bool:
    """Whether Accelerate is inside an accumulation window, where a step of its optimizer takes none."""
    wrapped: Any = optimizer
    return _is_a(optimizer, "AcceleratedOptimizer") and not wrapped.gradient_state.sync_gradients


def check_reachable(model: nn.Module, optimizer: Any) -> None:
    """Refuse a strategy that keeps the step to itself.

    Raises:
        ValueError: DeepSpeed.
    """
    if any(_is_a(module, "DeepSpeedEngine") for module in model.modules()) or _is_a(
        optimizer, "DeepSpeedOptimizerWrapper", "DeepSpeedOptimizer"
    ):
        raise ValueError(
            "DeepSpeed steps an optimizer of its own, out of reach of attach; add penalty(model) to the loss"
        )


def _is_a(thing: Any, *names: str) -> bool:
    return any(base.__name__ in names for base in type(thing).__mro__)
