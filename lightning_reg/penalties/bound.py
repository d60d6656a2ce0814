"""What acts on the tensors of one module: a penalty, or a penalty together with what it knows of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lightning_reg.tensors.grad_mode import without_grad
from lightning_reg.tensors.precision import real_dtype
from lightning_reg.tensors.shards import entries, local, part, whole
from lightning_reg.tensors.steps import StepSize

if TYPE_CHECKING:
    from lightning_reg.groups.layout import Layout

__all__ = ["Bound", "Held", "added_up"]

#: Weights looked at to say how many are zero: a share to about 0.001.
SAMPLE = 2**17


class Held(NamedTuple):
    """Weights whose zeros an average of each holds.

    Attributes:
        weights: after the optimizer's step.
        averages: of each weight's subgradient in units of λ, in float32 or wider.
        steps: a step for each tensor, or for each weight; none is 0.
        shares: of this step in each tensor's averages, in (0, 1]; a tensor where each row has its own.
    """

    weights: Sequence[Tensor]
    averages: Sequence[Tensor]
    steps: Sequence[StepSize]
    shares: Sequence[Any]


def added_up(values: Iterable[Tensor], like: Tensor) -> Tensor:
    """Add up values, which are computed as they are asked for, outside autocast, on ``like``'s device."""
    total = torch.zeros((), device=like.device, dtype=real_dtype(like.dtype))
    with torch.autocast(like.device.type, enabled=False):
        for value in values:
            total = total + value.to(total.device)
    return total


class Bound(ABC):
    """What the engine calls, on lists of tensors.

    Most penalties are the same function of any tensor and are their own binding. One that needs more (how
    the owning module lays out its groups, a starting weight, the vectors of a power iteration) makes a
    binding of its own in :meth:`Penalty.bind <lightning_reg.Penalty.bind>`.
    """

    @property
    def elementwise(self) -> bool:
        """Whether gradient and prox act on each weight by itself, so that a shard needs no other."""
        return False

    @property
    def holds_zeros(self) -> bool:
        """Whether the prox makes zeros, and :meth:`hold_zeros_` keeps them from the noise of batches."""
        return False

    #: Whether tensors share groups, so that they need one call together.
    couples = False

    def levels(self, weight: Tensor) -> Sequence[Layout]:
        """Return the groups of one tensor whose norms count, of each kind; none where others do."""
        return ()

    def free(self, weight: Tensor) -> int:
        """Return how many weights of a tensor no strength cuts, since their factor is 0."""
        return 0

    @abstractmethod
    def total(self, weights: Sequence[Tensor], strength: float, like: Tensor) -> Tensor:
        """Return the penalty of ``weights``, a differentiable scalar; 0 on ``like``'s device if none."""

    @abstractmethod
    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        """Return the gradient of one tensor."""

    @without_grad
    def add_gradient_(
        self, targets: Sequence[Tensor], weights: Sequence[Tensor], strength: float, alpha: float = 1.0
    ) -> None:
        """``targets += alpha · gradient(weights)``; a target may be the weight itself.

        For where :meth:`gradient` is that of a sharded tensor as a whole.
        """
        for target, weight in zip(targets, weights, strict=True):
            local(target).add_(part(self.gradient(weight, strength), weight), alpha=alpha)

    @abstractmethod
    def prox_(self, weights: Sequence[Tensor], strength: float, steps: Sequence[StepSize]) -> None:
        """``w ← prox(w)``, with a step for each tensor, or for each weight."""

    def ridge(self, weight: Tensor, strength: float) -> float | Tensor:
        r"""Return ρ of a term :math:`\rho|w - w_0|^2/2` in it, which shortens the steps of what acts next."""
        return 0.0

    def warn(self) -> None:  # noqa: B027 - mostly nothing to say
        """Say, before the first step, what of the network keeps zeros from meaning what they should."""

    def hold_zeros_(self, held: Held, strength: float) -> Sequence[int]:
        """Before :meth:`prox_`, set to zero what averages keep there.

        Args:
            held: the weights and their averages, both changed in place.
            strength: λ, not 0.

        Returns:
            The positions of those that still want :meth:`prox_`; the others have had it in the same pass.
        """
        raise NotImplementedError(f"{type(self).__name__} has no zeros to hold")

    def standing_in(self, weights: Sequence[Tensor], others: Sequence[Tensor]) -> Bound:
        """Return what acts on each of ``others`` as this does on the one of ``weights`` in its place."""
        return self

    def of_rows(self, weight: Tensor, rows: Tensor) -> Bound | None:
        """Return what acts on some rows of ``weight`` as this does on all; None where it needs all."""
        return None

    #: Whether it looks at the weights as steps come, see :meth:`at_step_`.
    follows_steps = False

    def at_step_(self, step: int) -> None:  # noqa: B027 - mostly nothing to do
        """Look at the weights, before anything acts on them in this optimizer step."""

    def at_rest(self) -> Bound:
        """Return what gives the same gradient and is not moved on by it."""
        return self

    def sizes(self, weights: Sequence[Tensor]) -> Tensor:
        """Return the modulus of every weight, or of a random sample of many; of groups, their norms."""
        total = sum(weight.numel() for weight in weights)
        found = []
        for weight in weights:
            if total > SAMPLE:
                generator = torch.Generator().manual_seed(weight.numel())
                count = -(-weight.numel() * SAMPLE // total)
                chosen = torch.randint(max(weight.numel(), 1), (count,), generator=generator)
                flat = entries(weight.detach(), chosen.to(weight.device))
            else:
                flat = whole(weight.detach()).flatten()
            found.append(flat.abs().float().cpu())
        return torch.cat(found) if found else torch.zeros(0)

    def pressed_sizes(self, weights: Sequence[Tensor]) -> Tensor:
        """Return the same as a strength is to see it, which guards may have kept from zero."""
        return self.sizes(weights)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what must survive a checkpoint, tensors by parameter name; mostly nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 - mostly nothing to do
        """Take up what :meth:`state_dict` returned; names of tensors that are not here are left out."""
