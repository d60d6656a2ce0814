"""What a penalty is: a function of weights, its gradient and its proximal operator."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg.penalties._each_tensor import each_tensor
from lightning_reg.penalties.bound import Bound
from lightning_reg.penalties.in_use import InUse
from lightning_reg.penalties.regularizer import Regularizer, check_strength
from lightning_reg.schedules.base import evaluate
from lightning_reg.schedules.target_sparsity import TargetSparsity
from lightning_reg.select.grammar import in_short
from lightning_reg.select.parameters import Selected, check_select, named_parameters, select_parameters
from lightning_reg.tensors.grad_mode import without_grad
from lightning_reg.tensors.memory import check_values
from lightning_reg.tensors.packs import end_to_end
from lightning_reg.tensors.precision import real_dtype
from lightning_reg.tensors.shards import check_whole, is_sharded, local, part, sum_over_shards, whole
from lightning_reg.tensors.steps import StepSize

__all__ = ["Penalty"]


class Penalty(Regularizer, Bound):
    r"""A penalty :math:`\Omega_\lambda(w)` on each selected tensor, summed over them.

    Subclasses are frozen dataclasses that give a formula: :meth:`value` and :meth:`gradient`, and
    :meth:`prox` where one is known. They hold no state, so one object serves any number of modules. How
    a penalty acts on training is not its business: see ``apply`` of
    :class:`~lightning_reg.callbacks.PenaltyCallback` and :func:`~lightning_reg.attach`.

    A tensor that FSDP2 or tensor parallelism shards is gathered for these formulas, and every process
    computes them for the whole tensor: one all-gather, the memory of one whole tensor, and no work shared.
    Penalties of single weights and of groups do without, except L∞ on groups that span processes.

    Its attributes are those of :class:`~lightning_reg.penalties.regularizer.Regularizer`.
    """

    def __post_init__(self) -> None:
        """Check the arguments every penalty has."""
        check_strength(type(self).__name__, self.strength)
        check_select(self.select)

    # --- the formula ---------------------------------------------------------------------------------

    @abstractmethod
    def value(self, weight: Tensor, strength: float) -> Tensor:
        """Return the penalty of one tensor, a differentiable scalar, accumulated in float32 or wider."""

    @abstractmethod
    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        """Return the gradient of :meth:`value`, shaped as ``weight``; a subgradient at kinks."""

    def prox(self, weight: Tensor, strength: float, step: float | Tensor) -> Tensor:
        r"""Return :math:`\arg\min_x \tfrac12\sum_i (x_i - w_i)^2/\eta_i + \Omega_\lambda(x)`.

        Args:
            weight: :math:`w`.
            strength: :math:`\lambda`.
            step: :math:`\eta`, one number, or one for each weight where ``prox_in_metric`` holds.

        Raises:
            NotImplementedError: this penalty has no proximal operator.
        """
        raise NotImplementedError(f"{type(self).__name__} has no proximal operator")

    @property
    def has_prox(self) -> bool:
        """Whether :meth:`prox` is known."""
        return type(self).prox is not Penalty.prox

    # --- what the engine calls: lists of tensors, in place, no copy of the model ---------------------

    def bind(self, selected: Sequence[Selected]) -> Bound:
        """Return what acts on these parameters of one module: this penalty itself, where it needs no context.

        A penalty with a field ``factors`` has a strength of its own for each tensor.

        Args:
            selected: the parameters, with their names and the modules that own them.

        Raises:
            ValueError: one of them is not of a kind that this penalty is for, or ``factors`` do not fit.
        """
        return each_tensor(self, self, selected)

    def factor_shape(self, weight: Tensor) -> tuple[int, ...]:
        """Return the shape of a tensor's ``factors``: one number, where the formula does not split."""
        return ()

    @without_grad
    def add_gradient_(
        self, targets: Sequence[Tensor], weights: Sequence[Tensor], strength: float, alpha: float = 1.0
    ) -> None:
        """``targets += alpha · gradient(weights)``; a target may be the weight itself."""
        for target, weight in zip(targets, weights, strict=True):
            local(target).add_(part(self.gradient(whole(weight), strength), weight), alpha=alpha)

    @without_grad
    def prox_(self, weights: Sequence[Tensor], strength: float, steps: Sequence[StepSize]) -> None:
        """``w ← prox(w)`` for each tensor, with its own step."""
        for weight, step in zip(weights, steps, strict=True):
            result = self.prox(whole(weight), strength, step.whole().dense())
            local(weight).copy_(part(result, weight))

    # --- what users call -----------------------------------------------------------------------------

    def __call__(
        self,
        module: nn.Module | Tensor | Iterable[Tensor],
        step: int | None = None,
        total_steps: int | None = None,
    ) -> Tensor:
        """Return the penalty of ``module``, or of tensors, a differentiable scalar to add to a loss.

        Frozen parameters of a module are left out: they could not follow the gradient.

        Args:
            module: any module, in which the selection is resolved; or a tensor or several, which are taken
                as they are, such as ``layer.weight`` or ``model.parameters()``.
            step: optimizer steps taken, where the strength is a schedule.
            total_steps: length of the run, where the schedule needs it.

        Raises:
            TypeError: ``module`` is neither a module nor made of tensors.
            ValueError: the selection matches nothing, the strength is a schedule and ``step`` is None, a
                weight is complex that may not be, or the parameters are FSDP1's, DeepSpeed's (stage 3) or on
                the meta device.
        """
        if isinstance(self.strength, TargetSparsity):
            raise ValueError(
                "a strength of TargetSparsity is found in training; give it to a callback or to attach, with "
                "apply='proximal'"
            )
        if step is None and callable(self.strength):
            raise ValueError(
                f"{type(self).__name__} has a scheduled strength; call it as penalty(module, step=..., "
                "total_steps=...)"
            )
        strength = evaluate(self.strength, step or 0, total_steps)
        if not isinstance(module, nn.Module):
            tensors = self._tensors(module)
            return self.total(tensors, strength, like=tensors[0])
        selected = self.choose(named_parameters(module)) or select_parameters(module, self.select)
        self.check_weights(selected)
        check_whole((s.parameter for s in selected), "a term of the loss")
        for s in selected:
            check_values(s.name, s.parameter)
        weights = [s.parameter for s in selected if s.parameter.requires_grad]
        used, bound = InUse(self, selected).tensors(weights)
        return bound.total(used, strength, like=next(module.parameters()))

    def _tensors(self, given: object) -> list[Tensor]:
        """What was given in place of a module, if it is tensors that the formula is for."""
        tensors = [given] if isinstance(given, Tensor) else list(given) if isinstance(given, Iterable) else []
        if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
            raise TypeError(
                f"{type(self).__name__} takes a module, a tensor or several tensors, not {in_short(given)}"
            )
        if not self.takes_complex and any(tensor.is_complex() for tensor in tensors):
            raise ValueError(f"{type(self).__name__} is for real weights, and one given is complex")
        check_whole(tensors, "a term of the loss")
        for tensor in tensors:
            check_values("a tensor given", tensor)
        return tensors

    def total(self, weights: Sequence[Tensor], strength: Any, like: Tensor) -> Tensor:
        """Return the sum of :meth:`value` over ``weights``, outside autocast; 0 on ``like``'s device if none.

        At strength 0 no graph is built: a parameter the loss does not use keeps its gradient of None.
        """
        if not weights or (type(strength) is not Tensor and strength == 0.0):
            return torch.zeros((), device=like.device, dtype=real_dtype(like.dtype))
        tensors = end_to_end(weights) if self.elementwise else weights
        with torch.autocast(like.device.type, enabled=False):
            total = self._value(tensors[0], strength)
            for weight in tensors[1:]:
                total = total + self._value(weight, strength).to(total.device)
        return total

    def _value(self, weight: Tensor, strength: float) -> Tensor:
        """The value of one tensor, of all its shards where it is sharded."""
        if not is_sharded(weight):
            return self.value(weight, strength)
        if self.elementwise:
            return sum_over_shards(self.value(local(weight), strength), weight)
        return self.value(whole(weight), strength)
