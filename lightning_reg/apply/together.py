r"""Which proximal operators, one after the other, are not the operator of the sum.

They are it where one of the two functions is a quadratic, see :meth:`StepSize.beside
<lightning_reg.tensors.steps.StepSize.beside>`; for a soft threshold before functions of groups' norms, cones,
intervals and balls; for norms of nested groups, and these after the cone of non-negative weights. In the
pairs below the difference goes to 0 with the learning rate.

References:
    Yu, *On Decomposing the Proximal Map*, NeurIPS 2013; Jenatton, Mairal, Obozinski and Bach, *Proximal
    Methods for Hierarchical Sparse Coding*, JMLR 12, 2011.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from lightning_reg.apply.term import Term
from lightning_reg.penalties.regularizer import Regularizer

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
    mine = {id(s.parameter): s.name for s in term.selected}
    for other in others:
        names = [mine[id(s.parameter)] for s in other.selected if id(s.parameter) in mine]
        if names and not _add_up(term.penalty, other.penalty):
            warnings.warn(
                f"on {names[0]} the proximal operators of {other.penalty!r} and {term.penalty!r}, one after "
                "the other, are not that of their sum; the difference falls with the learning rate: let it "
                "decay to 0, or use apply='gradient' for one of them where it has that",
                stacklevel=2,
            )


def _add_up(one: Regularizer, other: Regularizer) -> bool:
    if one.is_constraint and other.is_constraint:
        return True  # what the last one asks for holds, and so do most
    return other.kind not in _NOT_SUMS.get(one.kind, ()) and one.kind not in _NOT_SUMS.get(other.kind, ())
