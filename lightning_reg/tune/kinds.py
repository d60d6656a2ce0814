"""What is compared: kinds of regularization, each with one number to find, and where to look for it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from torch import nn

from lightning_reg.apply import Apply
from lightning_reg.dropout import find_sites
from lightning_reg.hosts.both_namespaces import shown
from lightning_reg.penalties import L1, L2, ElasticNet, GroupLasso, Penalty
from lightning_reg.tune._loss import batches_of, loss_of
from lightning_reg.tune.lambda_max import lambda_max

__all__ = ["NAMES", "PENALTIES", "Kind", "kinds_of", "strength_range"]

#: Kinds that ``compare`` knows by name, from the plainest.
NAMES = (
    "none",
    "early stopping",
    "l2",
    "l2 decoupled",
    "l1",
    "elastic net",
    "group lasso",
    "dropout",
)
#: Of these, the penalties, and how each acts.
PENALTIES: dict[str, tuple[Penalty, Apply]] = {
    "l2": (L2(0.0), "gradient"),
    "l2 decoupled": (L2(0.0), "decoupled"),
    "l1": (L1(0.0), "proximal"),
    "elastic net": (ElasticNet(0.0), "proximal"),
    "group lasso": (GroupLasso(0.0), "proximal"),
}


@dataclass(frozen=True)
class Kind:
    """One kind of regularization.

    Attributes:
        name: in the table.
        callbacks: ``(module, value) -> callbacks`` for the Trainer; it may set rates in the module.
        code: ``value -> text``: what to type to use it.
        low: the smallest value to try first; None where there is no value to find.
        high: the largest to try first.
        log: whether values are spaced evenly in their logarithm, and the range may be left upwards.
        stops_early: keep the weights of the epoch with the lowest validation loss.
    """

    name: str
    callbacks: Callable[[nn.Module, float], list[Any]]
    code: Callable[[float], str]
    low: float | None = None
    high: float | None = None
    log: bool = True
    stops_early: bool = False

    @property
    def chain(self) -> str:
        """Its name, fit for that of a file."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.name)


def strength_range(
    module: nn.Module, penalty: Penalty, apply: Apply, data: Any, loss: Any = None
) -> tuple[float, float]:
    """Return strengths between which the best one should lie.

    A penalty that makes zeros is useless above :func:`~lightning_reg.tune.lambda_max`, so the range ends
    there, four decades wide. Others have no such end: 1e-5 to 1, and 1e-3 to 10 for decoupled decay, whose
    strength is multiplied by the learning rate.
    """
    if apply == "decoupled":
        return 1e-3, 10.0
    loss = loss_of(module, None) if loss is None else loss
    try:
        top = lambda_max(module, penalty, batches_of(data), loss=loss, convex=False)
    except (ValueError, NotImplementedError):  # it makes no zeros
        return 1e-5, 1.0
    return (1e-4 * top, top) if top > 0.0 else (1e-5, 1.0)


def kinds_of(asked: Sequence[Any] | None, module: nn.Module, data: Any, loss: Any) -> list[Kind]:
    """Return what is asked for as kinds, ``"none"`` first.

    Args:
        asked: names, penalties, callbacks, or kinds; all names where None, but for dropout in a module that
            has no site for it.
        module: for the ranges, and for dropout.
        data: to train on, for the ranges.
        loss: of the module.

    Raises:
        ValueError: a name is unknown, or two kinds have one name.
        TypeError: one of them is neither name, penalty, callback nor kind.
    """
    if asked is None:
        asked = [name for name in NAMES if name != "dropout" or _can_drop(module)]
    if isinstance(asked, (str, Penalty)) or not isinstance(asked, Sequence):
        raise TypeError(f"kinds={asked!r} is not a list; write kinds=[{asked!r}]")
    made = [_kind(each, module, data, loss) for each in asked]
    kinds = [_named("none", module, data, loss), *(kind for kind in made if kind.name != "none")]
    names = [kind.name for kind in kinds]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two kinds are called {twice[0]!r}; give one of the penalties a name=")
    return kinds


def _kind(each: Any, module: nn.Module, data: Any, loss: Any) -> Kind:
    from lightning_reg.callbacks import DropoutInjector

    if isinstance(each, Kind):
        return each
    if isinstance(each, str):
        return _named(each, module, data, loss)
    if isinstance(each, Penalty):
        return _penalty(each, each.log_name.replace("_", " "), "gradient", "optimizer", module, data, loss)
    if isinstance(getattr(each, "penalty", None), Penalty):
        name = f"{each.penalty.log_name.replace('_', ' ')}, {each.apply}"
        return replace(
            _penalty(each.penalty, name, each.apply, "optimizer", module, data, loss),
            callbacks=partial(_with_strength, each),
        )
    if isinstance(each, DropoutInjector) and not callable(each.rate):
        return Kind(
            "injected dropout",
            partial(_injected, each),
            f"DropoutInjector({{:.3g}}, after={_shown(each.after)})".format,
            0.1,
            0.8,
            log=False,
        )
    if hasattr(each, "on_train_start"):
        name = type(each).__name__
        return Kind(name, partial(_copied, each), partial(_said, shown(each)))
    raise TypeError(
        f"{each!r} is no kind of regularization; give a name ({', '.join(map(repr, NAMES))}), a penalty, a "
        "callback, or a Kind"
    )


def _named(name: str, module: nn.Module, data: Any, loss: Any) -> Kind:
    if name == "none":
        return Kind(name, _nothing, partial(_said, "no regularization"))
    if name == "early stopping":
        code = 'EarlyStopping("val_loss"), and the weights of the best epoch'
        return Kind(name, _nothing, partial(_said, code), stops_early=True)
    if name == "dropout":
        if not _can_drop(module):
            raise ValueError(
                f"{type(module).__name__} has no dropout and no ReLU or GELU to put some after; leave out "
                '"dropout", or give DropoutInjector(0.1, after=...)'
            )
        if find_sites(module):
            code = "DropoutScheduler({:.3g})"
        else:
            code = f"DropoutInjector({{:.3g}}, after={_shown(_activations(module))})"
        return Kind(name, _dropout, code.format, 0.1, 0.8, log=False)
    if name not in PENALTIES:
        raise ValueError(f"kind {name!r} is unknown; known are {', '.join(map(repr, NAMES))}")
    penalty, apply = PENALTIES[name]
    return _penalty(penalty, name, apply, "optimizer", module, data, loss)


def _penalty(
    penalty: Penalty, name: str, apply: Any, metric: Any, module: nn.Module, data: Any, loss: Any
) -> Kind:
    ends = strength_range(module, penalty, apply, data, loss)
    return Kind(name, partial(_swept, penalty, apply, metric), partial(_written, penalty, apply), *ends)


# Functions of the module and not inner ones, so that a kind travels to other processes.


def _swept(penalty: Penalty, apply: Any, metric: Any, _: nn.Module, strength: float) -> list[Any]:
    from lightning_reg.callbacks import PenaltyCallback

    at = replace(penalty, strength=strength)  # type: ignore[type-var]
    return [PenaltyCallback(at, apply, log=False, metric=metric)]


def _written(penalty: Penalty, apply: Any, strength: float) -> str:
    given = [
        f"{part.name}={value!r}"
        for part in fields(penalty)  # type: ignore[arg-type]
        if part.name != "strength" and (value := getattr(penalty, part.name)) != part.default
    ]
    arguments = ", ".join([f"{strength:.3g}", *given])
    return f'PenaltyCallback({type(penalty).__name__}({arguments}), apply="{apply}")'


def _nothing(_: nn.Module, __: float) -> list[Any]:
    return []


def _copied(callback: Any, _: nn.Module, __: float) -> list[Any]:
    return [copy.deepcopy(callback)]


def _said(text: str, _: float) -> str:
    return text


def _with_strength(callback: Any, _: nn.Module, strength: float) -> list[Any]:
    made = copy.deepcopy(callback)
    made.penalty = replace(made.penalty, strength=strength)
    return [made]


def _dropout(module: nn.Module, rate: float) -> list[Any]:
    from lightning_reg.callbacks import DropoutInjector

    sites = find_sites(module)
    for site in sites:
        site.set(rate)
    return [] if sites else [DropoutInjector(rate, after=_activations(module))]


def _injected(injector: Any, _: nn.Module, rate: float) -> list[Any]:
    made = copy.deepcopy(injector)
    made.rate = rate
    return [made]


def _activations(module: nn.Module) -> list[type[nn.Module]]:
    kinds: tuple[type[nn.Module], ...] = (nn.ReLU, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.Tanh)
    return [kind for kind in kinds if any(type(part) is kind for part in module.modules())]


def _can_drop(module: nn.Module) -> bool:
    return bool(find_sites(module)) or bool(_activations(module))


def _shown(after: Any) -> str:
    if isinstance(after, list):
        inside = ", ".join(map(_shown, after))
        return inside if len(after) == 1 else f"[{inside}]"
    return f"nn.{after.__name__}" if isinstance(after, type) else repr(after)
