r"""The step of every weight of a tensor, as a proximal operator takes it.

:mod:`lightning_reg.apply.optimizers` knows the step that each optimizer takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_reg.tensors.precision import wide
from lightning_reg.tensors.shards import is_sharded, local, whole

__all__ = ["StepSize", "in_one_metric"]


class StepSize(NamedTuple):
    r"""The step of every weight of a tensor, :math:`\eta = n/(a\sqrt{v - m^2} + \epsilon)`, kept in parts.

    Kept in parts because the whole would be a copy of the tensor; :meth:`on` makes it a piece at a time.

    Attributes:
        numerator: :math:`n`; the whole step where ``second_moment`` is None.
        second_moment: :math:`v`, shaped as the weight, or None for one step for all.
        root_scale: :math:`a`.
        eps: :math:`\epsilon`.
        mean: :math:`m`, shaped as the weight, or None for 0.
    """

    numerator: float
    second_moment: Tensor | None = None
    root_scale: float = 1.0
    eps: float = 0.0
    mean: Tensor | None = None

    @classmethod
    def of(cls, step: float | Tensor) -> StepSize:
        """Return a step given as one number, or as one number for each weight."""
        if isinstance(step, Tensor) and step.dim():
            return cls(1.0, step.reciprocal().square_())
        return cls(float(step))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that :meth:`on` takes pieces of."""
        _, second_moment, _, _, mean = self
        if mean is not None and second_moment is not None:
            return second_moment, mean
        return () if second_moment is None else (second_moment,)

    @property
    def parts(self) -> tuple[float, float]:
        r"""The step as :math:`n'/(\sqrt{v - m^2} + \epsilon')`, with one factor less: n' and ε'."""
        return self.numerator / self.root_scale, self.eps / self.root_scale

    def on(self, moments: Sequence[Tensor], out: Tensor | None = None, factor: float = 1.0) -> Tensor:
        """Return ``factor`` times the step for a piece, given the same piece of each of :attr:`tensors`."""
        second_moment = moments[0]
        if len(moments) == 2:
            centred = second_moment.addcmul(moments[1], moments[1], value=-1.0).clamp_(min=0.0)
            eta = torch.sqrt(centred, out=out)
        else:
            eta = torch.sqrt(second_moment, out=out)
        # n/(a√x + ε) is (n/a)/(√x + ε/a), with one pass less
        if self.eps:
            eta.add_(self.eps / self.root_scale)
        numerator = torch.full((), factor * self.numerator / self.root_scale, dtype=torch.float64)
        return torch.div(numerator, eta, out=eta)

    def beside(self, ridge: float | Tensor) -> StepSize:
        r"""Return what is left of the steps beside a term :math:`\rho|w - w_0|^2/2` that has acted.

        The operator of the sum of a quadratic and any other function acts one after the other, the quadratic
        first, with :math:`\eta/(1 + \eta\rho)` for the other:
        :math:`n/(a\sqrt{v - m^2} + \epsilon + n\rho)`.

        Args:
            ridge: :math:`\rho`, one number, or one for each weight.
        """
        if isinstance(ridge, Tensor):
            eta = self.dense()
            return StepSize.of(eta / (1.0 + eta * ridge))
        if self.second_moment is None:
            return self._replace(numerator=self.numerator / (1.0 + self.numerator * ridge))
        return self._replace(eps=self.eps + self.numerator * ridge)

    def taking(self, tensors: Sequence[Tensor]) -> StepSize:
        """Return the same with these in the place of :attr:`tensors`."""
        if not tensors:
            return self
        second_moment, mean = (*tensors, None)[:2]
        return self._replace(second_moment=second_moment, mean=mean)

    def wide(self) -> StepSize:
        """Return the same in float32 or wider."""
        return self.taking([wide(tensor) for tensor in self.tensors])

    def local(self) -> StepSize:
        """Return the steps of the weights that this process holds of a sharded tensor."""
        if self.second_moment is None or not is_sharded(self.second_moment):
            return self
        return self.taking([local(tensor) for tensor in self.tensors])

    def whole(self) -> StepSize:
        """Return the steps of all weights of a sharded tensor, gathered."""
        return self.taking([whole(tensor) for tensor in self.tensors])

    def dense(self) -> Tensor | float:
        """Return the step of every weight, shaped as the weight, or the one number."""
        return self.on(self.tensors) if self.tensors else self.numerator


def in_one_metric(
    weights: Sequence[Tensor], steps: Sequence[StepSize], *others: Sequence[Tensor]
) -> Iterator[tuple[StepSize, list[tuple[Tensor, ...]]]]:
    """Put together tensors of one dtype and device whose steps differ in their tensors alone.

    Args:
        weights: of any shape.
        steps: one for each weight.
        others: more in the shapes of the weights, such as their averages.

    Yields:
        A step without its tensors, and rows of a weight, the others, and the tensors of its step.
    """
    groups: dict[tuple[object, ...], tuple[StepSize, list[tuple[Tensor, ...]]]] = {}
    for weight, step, *more in zip(weights, steps, *others, strict=True):
        row = (weight, *more, *step.tensors)
        numerator, _, root_scale, eps, _ = step
        key = (numerator, root_scale, eps, weight.device, *[tensor.dtype for tensor in row])
        if key not in groups:
            groups[key] = StepSize(numerator, None, root_scale, eps), []
        groups[key][1].append(row)
    yield from groups.values()
