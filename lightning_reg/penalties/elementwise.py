"""What penalties of single weights share; without a kernel of their own, pieces that stay in a cache."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from lightning_reg.penalties._factors import Factors, WithFactors
from lightning_reg.penalties.base import Penalty
from lightning_reg.penalties.bound import Bound, Held
from lightning_reg.prox.dual_averaging import hold_zeros_
from lightning_reg.select.parameters import Selected
from lightning_reg.tensors import fused, kernels
from lightning_reg.tensors.chunks import pieces
from lightning_reg.tensors.grad_mode import without_grad
from lightning_reg.tensors.packs import is_small, packs, scratch
from lightning_reg.tensors.precision import accumulator, wide
from lightning_reg.tensors.steps import StepSize, in_one_metric

__all__ = ["ElementwisePenalty"]


class ElementwisePenalty(Penalty):
    """A penalty that is a sum over weights, in any diagonal metric."""

    factors: Factors | None
    elementwise = True

    @abstractmethod
    def each(self, weight: Tensor, strength: float) -> Tensor:
        """Return what each weight, in float32 or wider, adds to :meth:`value`; λ may be a tensor."""

    def bind(self, selected: Sequence[Selected]) -> Bound:
        """Return this penalty itself, or what gives each weight a strength of its own."""
        return self if self.factors is None else WithFactors(self, self.factors, selected)

    @without_grad
    def add_gradient_(
        self, targets: Sequence[Tensor], weights: Sequence[Tensor], strength: float, alpha: float = 1.0
    ) -> None:
        """``targets += alpha · gradient(weights)``, a piece at a time."""
        for target, weight in zip(targets, weights, strict=True):
            for target_piece, weight_piece in pieces(target, weight):
                target_piece.add_(self.gradient(weight_piece, strength), alpha=alpha)

    def of_rows(self, weight: Tensor, rows: Tensor) -> Bound | None:
        """Return this itself."""
        return self

    def threshold(self, strength: float, step: float | Tensor) -> float | Tensor:
        r"""Return τ: the proximal operator is zero where :math:`|w| \le \tau`, and nowhere else."""
        raise NotImplementedError(f"{type(self).__name__} makes no zeros")

    @without_grad
    def hold_zeros_(self, held: Held, strength: float) -> Sequence[int]:
        """Set to zero what the averages keep there, and do the prox too where it takes no other pass."""
        apart = any(isinstance(share, Tensor) for share in held.shares)  # of rows, which no loop takes
        loop = None if apart else self.loop(strength)
        left = range(len(held.weights)) if loop is None else fused.hold_and_act_(*held, *loop)
        rest: list[int] = []
        small: dict[float, list[int]] = {}
        for i in left:
            weight, average = held.weights[i], held.averages[i]
            step, share = held.steps[i], held.shares[i]
            if not apart and _is_packed(weight):
                small.setdefault(share, []).append(i)
                continue
            act = None if apart else self._soft_step(weight, strength)
            if act is None:
                rest.append(i)
            for piece, kept, *moments in pieces(weight, average, *step.tensors):
                if act is not None:
                    act(piece, kept, step, moments, share)
                    continue
                eta = step.on([wide(moment) for moment in moments]) if moments else step.numerator
                hold_zeros_(piece, kept, self.threshold(strength, eta), share)
        for share, chosen in small.items():
            weights, averages = [held.weights[i] for i in chosen], [held.averages[i] for i in chosen]
            for step, rows in in_one_metric(weights, [held.steps[i] for i in chosen], averages):
                act = self._soft_step(rows[0][0], strength)
                for pack, kept, *moments in packs(rows, changed=2):
                    if act is not None:
                        act(pack, kept, step, moments, share)
                        continue
                    eta = step.on(moments) if moments else step.numerator
                    hold_zeros_(pack, kept, self.threshold(strength, eta), share)
                    pack.copy_(self.prox(pack, strength, eta))
        return rest

    def _soft_step(self, weight: Tensor, strength: float) -> Callable[..., None] | None:
        """Return what holds zeros and soft-thresholds a piece of a weight, where that is the whole step."""
        soft = self.soft(strength)
        if soft is None or not weight.is_cpu or weight.dtype not in (torch.float32, torch.float64):
            return None
        return partial(_hold_and_soft_threshold_, soft)

    @without_grad
    def prox_(self, weights: Sequence[Tensor], strength: float, steps: Sequence[StepSize]) -> None:
        """``w ← prox(w)``, in a fused loop; else small tensors together, large ones a piece at a time."""
        rows, loop = list(zip(weights, steps, strict=True)), self.loop(strength)
        left = rows if loop is None else fused.act_in_metric_(rows, *loop)
        small = [row for row in left if _is_packed(row[0])]
        for weight, step in (row for row in left if not _is_packed(row[0])):
            for piece, *moments in pieces(weight, *step.tensors):
                eta = step.on([wide(moment) for moment in moments]) if moments else step.numerator
                piece.copy_(self.prox(wide(piece), strength, eta))
        for step, alike in in_one_metric([row[0] for row in small], [row[1] for row in small]):
            for pack, *moments in packs(alike, changed=1):
                pack.copy_(self.prox(pack, strength, step.on(moments) if moments else step.numerator))

    def soft(self, strength: float) -> tuple[float, float] | None:
        """Return the factors of |w| and of w²/2 where :meth:`prox` is a soft threshold, of real weights."""
        return None

    def loop(self, strength: float) -> tuple[str, str, float, float] | None:
        """The loop that is :meth:`prox`: its module, its name and its two parameters."""
        return None


def _hold_and_soft_threshold_(
    soft: tuple[float, float],
    piece: Tensor,
    kept: Tensor,
    step: StepSize,
    moments: Sequence[Tensor],
    share: float,
) -> None:
    """The threshold of each weight is computed once for both."""
    threshold: float | Tensor = step.numerator * soft[0]
    if moments:
        threshold = step.on(moments, out=scratch(0, piece), factor=soft[0])
    hold_zeros_(piece, kept, threshold, share)
    kernels.soft_threshold_piece_(piece, threshold, *soft)


def _is_packed(weight: Tensor) -> bool:
    """Whether a weight goes with others into one call; 16-bit ones go by themselves, into float32."""
    return weight.is_cpu and is_small(weight) and accumulator(weight.dtype) is None
