"""A penalty on how much outputs change with inputs."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_reg.penalties.batch_dimension import batch_dimension
from lightning_reg.penalties.forward import Call, ForwardPenalty
from lightning_reg.penalties.regularizer import check_strength
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.select.modules import ModuleSelect
from lightning_reg.tensors.precision import sum_of_squares

__all__ = ["JacobianPenalty", "jacobian_penalty"]


def jacobian_penalty(output: Tensor, inputs: Tensor, directions: Tensor) -> Tensor:
    r"""Return :math:`\tfrac{C}{P}\sum_p\tfrac1B\sum_b\|v_{pb}^\top J_b\|^2`, an estimate of the mean ‖J‖²_F.

    Args:
        output: ``(B, ...)`` with C entries a sample, a function of ``inputs``.
        inputs: ``(B, ...)``, requiring gradients; sample b of the output depends on sample b alone.
        directions: :math:`v`, ``(P, B, C)`` of unit vectors. With the C axes, it is exact.
    """
    flat = output.flatten(1)
    total = flat.new_zeros(())
    for direction in directions:
        (row,) = torch.autograd.grad(flat, inputs, direction.to(flat.dtype), create_graph=True)
        total = total + sum_of_squares(row)
    return total * (flat.shape[1] / (len(directions) * len(flat)))


@dataclass(frozen=True)
class JacobianPenalty(ForwardPenalty):
    r"""Half the squared norm of the Jacobian, averaged over the batch: :math:`\tfrac{\lambda}{2B}\sum_b\|J_b\|_F^2`.

    It is estimated from random unit directions, one backward pass each. A network with a small Jacobian
    changes little under small changes of its input. The samples of a batch must not mix: batch normalization
    in training mode makes the estimate another.

    Args:
        strength: λ ≥ 0, a number or a schedule.
        modules: the module between whose first inputs and output: by default the whole, called as
            ``self(x)``; else a glob over names, a class, a predicate, or a list.
        projections: how many random directions a step.
        name: its name in logs.

    Raises:
        ValueError: a strength out of range, or fewer than one projection.

    References:
        Hoffman, Roberts and Yaida, *Robust Learning with Jacobian Regularization*, 2019.
    """  # noqa: E501

    strength: ScheduleLike
    _: KW_ONLY
    modules: ModuleSelect = ""
    projections: int = 1
    name: str | None = None
    needs_input_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_strength("JacobianPenalty", self.strength)
        if self.projections < 1:
            raise ValueError(f"JacobianPenalty(projections={self.projections}); give 1 or more")

    @property
    def schedule(self) -> ScheduleLike:
        """The strength."""
        return self.strength

    @property
    def log_name(self) -> str:
        """``name``, or ``jacobian``."""
        return self.name or "jacobian"

    def value(self, call: Call, strength: float) -> Tensor:
        """Return the estimate for one call.

        Raises:
            TypeError: the first argument is not a tensor of floats.
            ValueError: samples are not the first dimension.
        """
        output = call.output_tensor()
        if batch_dimension(output, call.order, None, call.module) != 0:
            raise ValueError(
                f"{type(call.module).__name__} puts sequences first, and JacobianPenalty needs samples "
                "first; name a module that takes batch_first=True with modules="
            )
        inputs = call.args[0] if call.args else None
        if not isinstance(inputs, Tensor) or not inputs.requires_grad:
            raise TypeError(
                f"the first argument of {type(call.module).__name__} is not a tensor of floats, so there is "
                "no Jacobian; name a module that takes one with modules="
            )
        shape = (self.projections, len(output), output[0].numel())
        directions = torch.randn(shape, device=output.device, dtype=output.dtype)
        directions = directions / directions.norm(dim=2, keepdim=True)
        return 0.5 * strength * jacobian_penalty(output, inputs, directions)
