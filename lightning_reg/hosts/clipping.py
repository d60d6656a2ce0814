r"""How much a host has clipped the gradients, which a proximal step must know.

Clipping by norm multiplies the gradients with a factor :math:`c \le 1`, so that the optimizer's step is c
times as long. A proximal step of the whole length would weigh λ with 1/c. So what is around the clipping
measures c, from the norms of each tensor's gradient before and after, and leaves it with the optimizer's
hooks until the step is over. Clipping by value changes a gradient's direction, and has no such factor.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_reg.apply.replaced import Replaced
from lightning_reg.hosts.seems_clipped import BY_VALUE, norms_of_gradients
from lightning_reg.hosts.step_hooks import found_hooks
from lightning_reg.hosts.wrappers import bare_optimizer, scaler_of
from lightning_reg.tensors.precision import norm
from lightning_reg.tensors.shards import local

__all__ = ["BetweenBackwardAndStep", "clipping_noticed", "notice_clipping_of", "notice_no_more"]

#: Up to which a tensor's own factor is taken for rounding of the common one.
ROUNDING = 1e-4
#: The same for the largest entries, which 16-bit gradients round more.
ROUNDING_OF_ONE = 1e-2


@contextmanager
def clipping_noticed(optimizer: Optimizer) -> Iterator[None]:
    """Measure by what factors the gradients of ``optimizer`` are clipped inside."""
    bare = bare_optimizer(optimizer)
    hooks = found_hooks(bare)
    if hooks is None or hooks.measures:  # nobody acts in its steps, or one clipping is inside another
        yield
        return
    held = [p for group in bare.param_groups for p in group["params"] if p.grad is not None]
    before, largest = norms_of_gradients(held), norms_of_gradients(held, math.inf)
    hooks.measures = True
    try:
        yield
    finally:
        hooks.measures = False
    after = norms_of_gradients(held)
    factors = _factors(before, after)
    if any(abs(c - 1.0) > ROUNDING for c in factors) and _bent(
        before, after, largest, norms_of_gradients(held, math.inf)
    ):
        warnings.warn(BY_VALUE, stacklevel=4)
        return
    for parameter, *noticed in zip(held, before, after, factors, strict=True):
        hooks.note_clipping(parameter, *noticed)


def _factors(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """The factor of each tensor: the common one, where there is one and where the gradient is 0."""
    total = math.hypot(*before)
    common = math.hypot(*after) / total if 0.0 < total < math.inf else 1.0
    if not 0.0 < common < math.inf:
        return [1.0] * len(before)
    own = [new / old if old > 0.0 and new > 0.0 else common for old, new in zip(before, after, strict=True)]
    return [common if abs(c - common) <= ROUNDING * common else c for c in own]


def _bent(*norms: Sequence[float]) -> bool:
    """Whether a tensor's largest entry was clipped more than the rest of it."""
    for before, after, largest, left in zip(*norms, strict=True):
        if before > 0.0 and largest > 0.0 and left / largest < (1.0 - ROUNDING_OF_ONE) * after / before:
            return True
    return False


class Clipped(Protocol):
    """Who needs to know of clipping."""

    def before_clipping(self, optimizer: Optimizer) -> None:
        """The gradients of the bare ``optimizer`` are about to be clipped."""


class _Clips(Replaced[Clipped]):
    """A module's method that clips, with what it does to the gradients measured."""

    def __call__(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        for user in self.users:
            user.before_clipping(bare_optimizer(optimizer))
        with clipping_noticed(optimizer):
            return self.__wrapped__(optimizer, *args, **kwargs)


class _ConfigureGradientClipping(_Clips):
    name = "configure_gradient_clipping"

    def __call__(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        own = getattr(self.__wrapped__, "__module__", "").startswith(("lightning.", "pytorch_lightning."))
        if own and not args and not kwargs.get("gradient_clip_val"):
            return self.__wrapped__(optimizer, **kwargs)  # which does nothing, at each step of most runs
        return super().__call__(optimizer, *args, **kwargs)


class _ClipGradients(_Clips):
    name = "clip_gradients"


def notice_clipping_of(module: nn.Module, user: Clipped) -> None:
    """Measure what a LightningModule's clipping does, until ``user`` needs it no more."""
    _way(module).add(module, user)


def notice_no_more(module: nn.Module, user: Clipped) -> None:
    """Undo :func:`notice_clipping_of`."""
    _way(module).remove(module, user)


def _way(module: Any) -> type[_Clips]:
    return _ConfigureGradientClipping if module.automatic_optimization else _ClipGradients


class BetweenBackwardAndStep:
    """Measures by how much gradients were clipped, where a host leaves no place just around its clipping.

    It keeps the norms of some gradients as the backward pass leaves them. It is for one process: several
    average their gradients after that.

    Args:
        parameters: the trained ones.
        optimizer: which steps them.
    """

    #: Gradients whose norms it keeps after the first step, the smallest ones that are not 0.
    TENSORS = 8

    def __init__(self, parameters: Sequence[nn.Parameter], optimizer: Optimizer) -> None:
        self._all = sorted(parameters, key=lambda parameter: parameter.numel())
        self._some = self._all
        self._optimizer, self._scaler = bare_optimizer(optimizer), scaler_of(optimizer)
        self._kept: dict[int, tuple[nn.Parameter, Tensor]] = {}
        self._hooks: list[Any] = []
        self._first = True
        self._register()

    def _register(self) -> None:
        """Come after all hooks that add to gradients, which some add in the first step."""
        self.remove()
        for parameter in self._some:
            untyped: Any = parameter
            self._hooks.append(untyped.register_post_accumulate_grad_hook(self._keep))

    def remove(self) -> None:
        """Leave no trace in the parameters."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._kept = [], {}

    @torch.no_grad()
    def _keep(self, parameter: nn.Parameter) -> None:
        self._kept[id(parameter)] = parameter, self._norm(parameter)

    def _norm(self, parameter: nn.Parameter) -> Tensor:
        gradient = parameter.grad
        assert gradient is not None
        return norm(local(gradient.to_dense()))

    @torch.no_grad()
    def note(self) -> None:
        """Note the factor, just before the step."""
        hooks = found_hooks(self._optimizer)
        if hooks is None:
            return
        kept = [(p, before, self._norm(p)) for p, before in self._kept.values() if p.grad is not None]
        scale = float(self._scaler.get_scale()) if self._scaler is not None else 1.0
        before = math.hypot(*(float(before) for _, before, _ in kept)) / scale
        after = math.hypot(*(float(after) for _, _, after in kept))
        if 0.0 < before < math.inf and after < math.inf:
            factor = 1.0 if after >= (1.0 - ROUNDING) * before else after / before
            for parameter in self._all:
                hooks.note_clipping(parameter, before, after, factor)
        self._kept = {}
        if self._first or before == 0.0:
            self._first = False
            self._some = [p for p, found, _ in kept if found][: self.TENSORS] or self._all
            self._register()
