"""L2, ridge or weight decay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar, Literal, TypeAlias, get_args

from torch import Tensor

from lightning_reg.penalties._factors import Factors
from lightning_reg.penalties.elementwise import ElementwisePenalty
from lightning_reg.prox import elementwise as prox
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.select.parameters import Select
from lightning_reg.tensors import kernels
from lightning_reg.tensors.precision import sum_of_squares
from lightning_reg.tensors.steps import StepSize

__all__ = ["L2", "Decay"]

#: What a decoupled decay multiplies λ by: the learning rate, nothing, or lr²/lr_max.
Decay: TypeAlias = Literal["lr", "independent", "corrected"]


@dataclass(frozen=True)
class L2(ElementwisePenalty):
    r"""Ridge: :math:`\tfrac{\lambda}{2}\sum_i w_i^2`, half the squared norm.

    The half makes the gradient :math:`\lambda w`, so that ``L2(λ)`` on ``SGD`` is ``weight_decay=λ``. Under
    Adam the two part ways: ``apply="decoupled"`` is AdamW's decay. The norm that is not squared, which many
    tutorials print and call L2, is :class:`~lightning_reg.L2Norm`; ``torch.nn`` has no ``L2Loss``.

    Args:
        strength: λ ≥ 0, in units of loss per squared unit of weight.
        select: what it applies to.
        factors: what λ is multiplied by for each weight, a tensor, a dict of tensors or numbers by parameter
            name, or a callable ``(name, parameter, module) -> tensor``; 0 leaves a weight alone.
        name: its name in logs.
        decay: of ``apply="decoupled"``, the factor of λ in :math:`w \leftarrow w - \rho\lambda w`: ``"lr"``
            is the learning rate, as in AdamW; ``"independent"`` is 1, so that a schedule of the rate leaves
            the decay alone; ``"corrected"`` is :math:`lr^2/lr_{max}`, as in AdamC, where :math:`lr_{max}` is
            the group's ``"max_lr"``, which ``OneCycleLR`` or you set, or its ``"initial_lr"``, which every
            scheduler sets; without either it is the rate of the step.
        cautious: of ``apply="decoupled"``, decay only where the update does not move the weight away from
            zero. It keeps a copy of the weights during the step.

    Raises:
        ValueError: a negative, NaN or infinite strength, or an unknown ``decay``.

    >>> import torch
    >>> L2(0.1).value(torch.tensor([3.0, 4.0]), strength=0.1)
    tensor(1.2500)

    References:
        Hoerl and Kennard, *Ridge Regression*, Technometrics 12(1), 1970; Loshchilov and Hutter, *Decoupled
        Weight Decay Regularization*, ICLR 2019; Defazio, *Why Gradients Rapidly Increase Near the End of
        Training*, 2025, for the correction; Chen et al., *Cautious Weight Decay*, 2025.
    """

    by_norms: ClassVar[bool] = True
    turn: ClassVar[int] = 3

    makes_zeros = False
    holds_zeros = False

    strength: ScheduleLike
    select: Select = "weights"
    _: KW_ONLY
    factors: Factors | None = field(default=None, repr=False, compare=False)
    name: str | None = None
    decay: Decay = field(default="lr", repr=False)
    cautious: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        if self.decay not in get_args(Decay):
            names = ", ".join(map(repr, get_args(Decay)))
            raise ValueError(f"L2(decay={self.decay!r}) is unknown; it is one of {names}")

    @property
    def is_plain(self) -> bool:
        """Whether a decoupled decay of it is AdamW's."""
        return self.decay == "lr" and not self.cautious

    @property
    def awaits_update(self) -> bool:
        """Whether it is cautious."""
        return self.cautious

    def value(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\tfrac{\lambda}{2}\sum_i|w_i|^2`."""
        return sum_of_squares(weight) * (strength * 0.5)

    def each(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\tfrac{\lambda}{2}|w_i|^2`."""
        return weight.abs().square() * (0.5 * strength)

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        r"""Return :math:`\lambda w`."""
        return strength * weight

    def prox(self, weight: Tensor, strength: float, step: float | Tensor) -> Tensor:
        """Return the weight divided by one plus step times strength."""
        return prox.shrink(weight, step * strength)

    def ridge(self, weight: Tensor, strength: float) -> float:
        """Return λ."""
        return strength

    def add_gradient_(
        self, targets: Sequence[Tensor], weights: Sequence[Tensor], strength: float, alpha: float = 1.0
    ) -> None:
        """``targets += alpha · λ · weights`` in one pass."""
        if targets and targets[0] is weights[0]:  # a decay: rounded as torch's AdamW rounds it
            kernels.scale_(targets, 1.0 + alpha * strength)
        else:
            kernels.add_scaled_(targets, weights, alpha * strength)

    def prox_(self, weights: Sequence[Tensor], strength: float, steps: Sequence[StepSize]) -> None:
        """Shrink in place, in each tensor's metric."""
        kernels.soft_threshold_in_metric_(weights, steps, threshold=0.0, shrink=strength)

    def loop(self, strength: float) -> tuple[str, str, float, float]:
        """The loop of elastic net, without its L1 part."""
        return "tensors.loops", "elastic_net", 0.0, strength
