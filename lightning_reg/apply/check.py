"""Which combinations of penalty, mode and optimizer there are, said before training starts."""

from __future__ import annotations

import warnings
from inspect import signature
from typing import get_args

from torch import nn
from torch.optim import LBFGS, Optimizer, SparseAdam

from lightning_reg.apply.floors import check_floors
from lightning_reg.apply.limit_in_use import least_limit
from lightning_reg.apply.optimizers import has_one_step
from lightning_reg.apply.optimizers.check import check_mode, check_placeable
from lightning_reg.apply.term import Apply, Metric, Term
from lightning_reg.penalties.l2 import L2
from lightning_reg.penalties.regularizer import Regularizer
from lightning_reg.schedules.target_sparsity import TargetSparsity
from lightning_reg.select.parameters import Selected, named_parameters
from lightning_reg.tensors.memory import check_steppable
from lightning_reg.tensors.precision import accumulator
from lightning_reg.tensors.shards import check_whole

__all__ = ["check_apply", "check_optimizer", "check_stored", "check_word", "default_apply"]


def default_apply(penalty: Regularizer, apply: Apply | None, default: Apply = "gradient") -> Apply:
    """Return ``apply``, or what stands in its place where None: a constraint has one way to act."""
    if apply is not None:
        return apply
    return "proximal" if getattr(penalty, "is_constraint", False) else default


def check_word(apply: Apply) -> None:
    """Refuse a word that is none of the four ways."""
    if apply not in get_args(Apply):
        raise ValueError(f"apply={apply!r} is unknown; it is one of {', '.join(map(repr, get_args(Apply)))}")


def check_apply(penalty: Regularizer, apply: Apply, metric: Metric = "optimizer") -> None:
    """Refuse what no optimizer could make right.

    Raises:
        TypeError: ``penalty`` is neither a penalty nor a constraint.
        ValueError: ``apply`` or ``metric`` is not one of theirs, or the penalty has no proximal operator.
    """
    if not isinstance(penalty, Regularizer):
        raise TypeError(
            f"{penalty!r} is not a penalty; give "
            f"{'them one by one' if type(penalty) in (list, tuple) else 'one such as L1(1e-4)'}"
        )
    check_word(apply)
    if metric not in get_args(Metric):
        raise ValueError(
            f"metric={metric!r} is unknown; it is one of {', '.join(map(repr, get_args(Metric)))}"
        )
    if penalty.is_constraint and apply != "proximal":
        raise ValueError(
            f"{type(penalty).__name__} is a constraint, which acts as a projection after the step, and not "
            f"as apply={apply!r}; leave apply= out"
        )
    if isinstance(penalty, L2) and not penalty.is_plain and apply != "decoupled":
        raise ValueError(
            f"L2(decay={penalty.decay!r}, cautious={penalty.cautious}) says how apply='decoupled' decays, "
            f"and this is apply={apply!r}; give apply='decoupled', or leave them out"
        )
    if metric != "optimizer" and apply != "proximal":
        raise ValueError(f"metric={metric!r} is for apply='proximal', not for apply={apply!r}; leave it out")
    if apply == "proximal" and not penalty.has_prox:
        raise ValueError(
            f"{type(penalty).__name__} has no proximal operator, which apply='proximal' needs; "
            "use apply='gradient'"
        )
    if isinstance(penalty.strength, TargetSparsity) and not penalty.makes_zeros and penalty.has_prox:
        raise ValueError(
            f"TargetSparsity steers by exact zeros, and {type(penalty).__name__} makes none; use L1 or a "
            "group penalty beside it"
        )
    if apply != "proximal" and isinstance(penalty.strength, TargetSparsity):
        raise ValueError(
            f"TargetSparsity steers by exact zeros, which apply={apply!r} does not make; use apply='proximal'"
        )
    if apply != "proximal" and not penalty.has_gradient:
        raise ValueError(
            f"{type(penalty).__name__} has no gradient that apply={apply!r} could follow; "
            "use apply='proximal'"
        )


def check_stored(term: Term) -> None:
    """Refuse to act in place on what a layer computes anew from other parameters.

    Raises:
        ValueError: the sentence names the weight, and what computes it.
    """
    for s in term.selected:
        if s.derived is None or s.derived.masked:
            continue
        least = least_limit(term.penalty, s)
        if least is not None and term.penalty.longest >= least:  # type: ignore[attr-defined]
            continue
        if term.penalty.is_constraint:
            what, use = type(term.penalty).__name__, "leave it out with select="
        else:
            what, use = "apply='proximal'", "use apply='gradient'"
        if s.derived.scale is not None:
            scale = next(o.name for o in named_parameters(term.module) if o.parameter is s.derived.scale)
            use += f", or select its scale, {scale!r}, in which each weight is a whole slice's norm"
        if least is not None:
            use += f", or give a limit of {least:.3g} or more, as one of its groups is always that long"
        raise ValueError(
            f"{s.name} is computed from other parameters by {s.derived.by}, so that {what} cannot act on it "
            f"in place; {use}"
        )


def check_optimizer(term: Term, apply: Apply, optimizer: Optimizer, metric: Metric = "optimizer") -> None:
    """Refuse what ``apply`` would do wrong under this optimizer.

    Raises:
        ValueError: the sentence names both sides, and a combination that works.
    """
    name, groups = type(optimizer).__name__, term.groups(optimizer)
    penalty = type(term.penalty).__name__
    for parameter in term.trainable(optimizer):
        check_steppable(term.name_of(parameter), parameter)
    if apply == "proximal":
        check_stored(term)
        check_floors(term)
    if term.penalty.is_constraint:
        if not term.bound.elementwise:
            check_whole((s.parameter for s in term.selected), penalty)
        check_placeable(optimizer, penalty, groups)
        return
    if isinstance(optimizer, LBFGS) and apply != "loss":
        raise ValueError(
            f"LBFGS evaluates the loss along a line search, which apply={apply!r} does not enter; "
            "use apply='loss', or add penalty(model) to the loss in your closure"
        )
    if isinstance(optimizer, SparseAdam) and apply in ("gradient", "loss"):
        raise ValueError(
            f"SparseAdam takes sparse gradients, and apply={apply!r} makes them dense; "
            "use apply='decoupled', or SGD or Adagrad"
        )
    # pytorch-optimizer keeps it beside the groups
    maximizes = any(g.get("maximize", getattr(optimizer, "maximize", False)) for g in groups)
    if maximizes and apply != "proximal":
        raise ValueError(
            f"{name}(maximize=True) climbs, so apply={apply!r} would reward what {penalty} is to punish; "
            "use apply='proximal', or minimize the negative objective"
        )
    steered = isinstance(term.penalty.strength, TargetSparsity)
    if apply == "loss" or steered or not term.bound.elementwise:
        what = repr(term.penalty) if apply != "loss" else "apply='loss'"
        check_whole((s.parameter for s in term.selected), what)
    check_mode(optimizer, apply, metric == "euclidean", groups)
    if apply in ("gradient", "loss"):
        _warn_of_dense(term, apply)
    if apply == "decoupled":
        _warn_of_own_decay(term, optimizer)
    if apply != "proximal" or metric != "optimizer":
        return
    if has_one_step(optimizer, groups):
        return
    if not term.penalty.prox_in_metric:
        other = ", or apply='gradient'" if term.penalty.has_gradient else ""
        raise ValueError(
            f"the proximal operator of {penalty} is for one step a tensor, and {name} takes a step of its "
            f"own for each weight; use SGD{other}"
        )
    for s in filter(_is_sparse, term.selected):
        if term.bound.of_rows(s.parameter, s.parameter) is None or accumulator(s.parameter.dtype):
            raise ValueError(
                f"the gradient of {s.name} is sparse, and {name} steps the rows that a batch names, of which "
                f"{type(term.penalty).__name__} as given can act on none by itself; use L1, or GroupLasso of "
                "rows, in float32 or wider, or sparse=False in the embedding"
            )
    if any(selected.parameter.is_complex() for selected in term.selected):
        raise ValueError(
            f"apply='proximal' on complex weights needs one step for both parts, and {name} takes two; "
            "use SGD, or apply='gradient'"
        )


def _warn_of_dense(term: Term, apply: Apply) -> None:
    """Warn where a sparse gradient becomes as large as the weight."""
    for s in term.selected:
        if _is_sparse(s):
            warnings.warn(
                f"apply={apply!r} makes the sparse gradient of {s.name} dense, since "
                f"{type(term.penalty).__name__} has one for every row; use apply='decoupled' or "
                "apply='proximal', which leave it sparse",
                stacklevel=2,
            )
            return


def _is_sparse(selected: Selected) -> bool:
    return isinstance(selected.module, (nn.Embedding, nn.EmbeddingBag)) and selected.module.sparse


def _warn_of_own_decay(term: Term, optimizer: Optimizer) -> None:
    """Warn where L2 would decay what the optimizer decays unasked, as AdamW does."""
    given = signature(type(optimizer)).parameters.get("weight_decay")
    if not isinstance(term.penalty, L2) or given is None or not given.default:
        return
    selected = {id(s.parameter): s.name for s in term.selected}
    for group in optimizer.param_groups:
        both = [selected[id(p)] for p in group["params"] if id(p) in selected]
        if both and group.get("weight_decay") == given.default:
            warnings.warn(
                f"{term.penalty!r} with apply='decoupled' and {type(optimizer).__name__}(weight_decay="
                f"{given.default}), its default, both decay {both[0]}; give weight_decay=0.0 to the "
                "optimizer, or leave the penalty out",
                stacklevel=2,
            )
            return
