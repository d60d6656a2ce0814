r"""Which proximal operators, one after the other, are not the operator of the sum.

They are it where one of the two functions is a quadratic, see :meth:`StepSize.beside
<lightning_reg.tensors.steps.StepSize.beside>`; for a soft threshold before functions of groups' norms, cones,
intervals and balls; for norms of nested groups, small ones first, and these after the cone of non-negative
weights. In the pairs below, and where groups cross, the difference goes to 0 with the learning rate.

References:
    Yu, *On Decomposing the Proximal Map*, NeurIPS 2013; Jenatton, Mairal, Obozinski and Bach, *Proximal
    Methods for Hierarchical Sparse Coding*, JMLR 12, 2011.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_reg.apply.term import Term
from lightning_reg.penalties.regularizer import Regularizer
from lightning_reg.prox.overlapping import are_nested

__all__ = ["warn_of_sums"]

#: By the kind of one, the kinds of the other.
_NOT_SUMS = {
    "concave": {"concave", "threshold", "norms", "moduli", "interval", "ball"},
    "norms": {"interval", "ball", "moduli"},
    "differences": {"concave", "norms", "moduli", "ball"},
    "moduli": {"ball"},
    "spectrum": {"threshold", "concave", "interval", "norms", "moduli", "differences", "ball"},
}


def warn_of_sums(term: Term, others: Iterable[Term]) -> None:
    """Warn where ``term`` and one of the ``others`` act on one tensor, and not as their sum would."""
    mine = {id(s.parameter): s for s in term.selected}
    for other in others:
        both = [mine[id(s.parameter)] for s in other.selected if id(s.parameter) in mine]
        way_out = "apply='gradient' for one of them where it has that"
        if term.penalty.kind == other.penalty.kind == "norms":
            both = [s for s in both if not _are_nested(other, term, s.parameter)]
            way_out = "OverlappingGroupLasso in the place of both"
        elif _add_up(term.penalty, other.penalty):
            both = []
        if both:
            warnings.warn(
                f"on {both[0].name} the proximal operators of {other.penalty!r} and {term.penalty!r}, one "
                "after the other, are not that of their sum; the difference falls with the learning rate: "
                f"let it decay to 0, or use {way_out}",
                stacklevel=2,
            )


def _are_nested(earlier: Term, later: Term, weight: Tensor) -> bool:
    """Whether each group of what acts first in a step lies in one of what acts next."""
    if earlier.penalty.is_constraint or later.penalty.is_constraint:
        return True  # what a constraint asks for holds at the end
    first, then = (earlier, later) if earlier.penalty.turn <= later.penalty.turn else (later, earlier)
    fine, coarse = first.bound.levels(weight), then.bound.levels(weight)
    same = getattr(first.penalty, "groups", None) == getattr(then.penalty, "groups", None)
    if first.bound.couples and coarse and not same:
        return False  # of other tensors it has weights too
    like = torch.empty(weight.shape, device=weight.device)
    return all(a == b or b.count == 1 or are_nested([a, b], like) for a, b in itertools.product(fine, coarse))


def _add_up(one: Regularizer, other: Regularizer) -> bool:
    if one.is_constraint and other.is_constraint:
        return True  # what the last one asks for holds, and so do most
    return other.kind not in _NOT_SUMS.get(one.kind, ()) and one.kind not in _NOT_SUMS.get(other.kind, ())
