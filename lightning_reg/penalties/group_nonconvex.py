"""Groups without bias: MCP and SCAD of each group's norm."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

from torch import Tensor

from lightning_reg.groups.forms import Groups
from lightning_reg.groups.layout import Layout
from lightning_reg.penalties._factors import Factors
from lightning_reg.penalties._of_norms import OfNorms
from lightning_reg.prox.group import group_weights
from lightning_reg.prox.group_nonconvex import Piece, shrink_by_pieces_
from lightning_reg.prox.nonconvex import mcp, mcp_slope, scad, scad_slope
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.select.parameters import Select
from lightning_reg.tensors.steps import StepSize

__all__ = ["GroupMCP", "GroupSCAD"]


class _Concave(OfNorms):
    """With a concave ρ."""

    kind: ClassVar[str] = "concave"
    by_norms: ClassVar[bool] = True
    turn: ClassVar[int] = 30
    takes_complex: ClassVar[bool] = False

    @abstractmethod
    def pieces(self, strength: float | Tensor) -> Sequence[Piece]:
        """Return the parts of ρ that are not flat, each a parabola."""

    def joint_prox_(
        self,
        weights: Sequence[Tensor],
        layouts: Sequence[Layout],
        strength: float,
        steps: Sequence[StepSize],
    ) -> None:
        """Shorten short groups, or set them to zero; long ones stay as they are."""
        threshold = group_weights(layouts, weights[0], self.size_weighted) * strength
        shrink_by_pieces_(weights, layouts, steps, self.pieces(threshold), self.longest_step)


@dataclass(frozen=True)
class GroupMCP(_Concave):
    r"""MCP of each group's norm t: :math:`\lambda_gt - t^2/2\gamma`, up to :math:`\gamma\lambda_g`.

    :math:`\lambda_g = \lambda\sqrt{|g|}`, and from there on it is :math:`\gamma\lambda_g^2/2`: group lasso
    near 0, and flat for large groups, which it does not shrink. Not convex.

    The prox needs :math:`\gamma > \eta` for the step of each weight. A longer step counts as just below γ: a
    hard threshold at :math:`\gamma\lambda_g`.

    Args:
        strength: λ ≥ 0, in units of loss per unit of weight.
        select: what it applies to; real tensors.
        groups: which weights make a group, see :mod:`lightning_reg.groups.forms`.
        gamma: γ > 0; group lasso as it grows.
        size_weighted: weigh λ by the root of a group's size.
        factors: what λ is multiplied by for each group, as in :class:`~lightning_reg.GroupLasso`.
        name: its name in logs.

    Raises:
        ValueError: a negative, NaN or infinite strength, ``gamma`` that is not positive, or unknown groups.

    >>> import torch
    >>> penalty = GroupMCP(1.0, gamma=3.0, size_weighted=False)
    >>> weight = torch.tensor([[0.3, 0.4], [1.2, 1.6], [6.0, 8.0]])  # (out, in)
    >>> penalty.prox(weight, strength=1.0, step=1.0)
    tensor([[0.0000, 0.0000],
            [0.9000, 1.2000],
            [6.0000, 8.0000]])

    References:
        Huang, Breheny and Ma, *A Selective Review of Group Selection in High-Dimensional Models*, Statist.
        Sci. 27(4), 2012; Breheny and Huang, *Group Descent Algorithms for Nonconvex Penalized Linear and
        Logistic Regression Models with Grouped Predictors*, Stat. Comput. 25, 2015.
    """

    strength: ScheduleLike
    select: Select = "weights"
    _: KW_ONLY
    groups: Groups = "rows"
    gamma: float = 3.0
    size_weighted: bool = True
    factors: Factors | None = field(default=None, repr=False, compare=False)
    name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.gamma < float("inf"):
            raise ValueError(f"GroupMCP(gamma={self.gamma}) is out of range; give a finite number above 0")

    @property
    def longest_step(self) -> float:
        """γ."""
        return self.gamma

    def of_norm(self, norms: Tensor, strength: float | Tensor) -> Tensor:
        r"""Return :math:`\lambda_gt - t^2/2\gamma`, up to its top."""
        return mcp(norms, strength, self.gamma)

    def slope(self, norms: Tensor, strength: float | Tensor) -> Tensor:
        r"""Return :math:`(\lambda_g - t/\gamma)_+`."""
        return mcp_slope(norms, strength, self.gamma)

    def pieces(self, strength: float | Tensor) -> Sequence[Piece]:
        """Return the parabola."""
        return [Piece(1.0 / self.gamma, strength, strength * self.gamma)]


@dataclass(frozen=True)
class GroupSCAD(_Concave):
    r"""SCAD of each group's norm t: :math:`\lambda_gt`, up to :math:`\lambda_g`, then ever flatter.

    :math:`\lambda_g = \lambda\sqrt{|g|}`, and the slope is 0 from :math:`a\lambda_g` on, as that of
    :class:`~lightning_reg.SCAD`: group lasso near 0, without shrinking large groups. Not convex.

    The prox needs :math:`a - 1 > \eta` for the step of each weight. A longer step counts as just below it.

    Args:
        strength: λ ≥ 0, in units of loss per unit of weight.
        select: what it applies to; real tensors.
        groups: which weights make a group, see :mod:`lightning_reg.groups.forms`.
        a: a > 2; group lasso as it grows.
        size_weighted: weigh λ by the root of a group's size.
        factors: what λ is multiplied by for each group, as in :class:`~lightning_reg.GroupLasso`.
        name: its name in logs.

    Raises:
        ValueError: a negative, NaN or infinite strength, ``a`` that is not above 2, or unknown groups.

    >>> import torch
    >>> penalty = GroupSCAD(1.0, a=3.5, size_weighted=False)
    >>> weight = torch.tensor([[0.3, 0.4], [0.9, 1.2], [6.0, 8.0]])  # (out, in)
    >>> penalty.prox(weight, strength=1.0, step=1.0)
    tensor([[0.0000, 0.0000],
            [0.3000, 0.4000],
            [6.0000, 8.0000]])

    References:
        Wang, Chen and Li, *Group SCAD Regression Analysis for Microarray Time Course Gene Expression Data*,
        Bioinformatics 23(12), 2007; Huang, Breheny and Ma, *A Selective Review of Group Selection in
        High-Dimensional Models*, Statist. Sci. 27(4), 2012.
    """

    strength: ScheduleLike
    select: Select = "weights"
    _: KW_ONLY
    groups: Groups = "rows"
    a: float = 3.7
    size_weighted: bool = True
    factors: Factors | None = field(default=None, repr=False, compare=False)
    name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2.0 < self.a < float("inf"):
            raise ValueError(f"GroupSCAD(a={self.a}) is out of range; give a finite number above 2")

    @property
    def longest_step(self) -> float:
        """One less than a."""
        return self.a - 1.0

    def of_norm(self, norms: Tensor, strength: float | Tensor) -> Tensor:
        """Return SCAD of each norm."""
        return scad(norms, strength, self.a)

    def slope(self, norms: Tensor, strength: float | Tensor) -> Tensor:
        r"""Return :math:`\min(\lambda_g, (a\lambda_g - t)_+/(a - 1))`."""
        return scad_slope(norms, strength, self.a)

    def pieces(self, strength: float | Tensor) -> Sequence[Piece]:
        """Return the line and the parabola behind it."""
        top = strength * self.a
        return [Piece(0.0, strength, strength), Piece(1.0 / (self.a - 1.0), top / (self.a - 1.0), top)]
