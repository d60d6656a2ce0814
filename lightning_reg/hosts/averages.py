"""Averages of weights keep the zeros: an average over weights that came and went has none of its own.

A moving average goes towards zero and does not arrive. So each average that Lightning's callbacks or the
module keep is given, after each of its updates, the zeros that the live model has then.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_reg.apply import Term
from lightning_reg.tensors.shards import local

__all__ = ["AveragesKeepZeros", "give_zeros_"]


@torch.no_grad()
def give_zeros_(term: Term, averaged: nn.Module) -> None:
    """Set to zero in ``averaged`` each weight of the term's selection that is zero in the term's module.

    Args:
        term: at work on a module.
        averaged: a copy of that module, with its parameters in the same order.
    """
    others = list(averaged.parameters())
    places = {id(parameter): i for i, parameter in enumerate(term.module.parameters())}
    if len(places) != len(others):
        return
    for selected in term.selected:
        place = places.get(id(selected.parameter))
        if place is not None and selected.parameter.requires_grad:
            other = local(others[place].detach())
            other.masked_fill_((local(selected.parameter.detach()) == 0).to(other.device), 0.0)


class AveragesKeepZeros:
    """Sees to it that the averages of a run keep the zeros of one term, until :meth:`remove`.

    It knows torch's ``AveragedModel``, wherever a callback or the module holds one (Lightning's
    ``WeightAveraging`` and ``EMAWeightAveraging`` do), and ``StochasticWeightAveraging``. It warns of other
    callbacks whose names say that they average weights.

    Args:
        term: whose zeros are kept.
        callbacks: the Trainer's.
    """

    def __init__(self, term: Term, callbacks: list[Any]) -> None:
        self._wrapped: list[tuple[Any, str]] = []
        self._term = term
        for module in term.module.modules():
            if isinstance(module, AveragedModel):
                self._wrap(module, "update_parameters", _module_of)
        for callback in callbacks:
            models = list(_averaged_models(callback))
            for model in models:
                self._wrap(model, "update_parameters", _module_of)
            names = [cls.__name__ for cls in type(callback).__mro__]
            if "StochasticWeightAveraging" in names:
                self._wrap(callback, "update_parameters", _average_of)
                # at the end it copies an average of the last epoch's start
                self._wrap(callback, "transfer_weights", _average_of, before=True)
            elif not models and _says_average(names[0]):
                warnings.warn(
                    f"{names[0]} averages weights out of reach of {term.penalty!r}, and averaging loses "
                    "exact zeros; use EMAWeightAveraging or StochasticWeightAveraging of Lightning, or save "
                    "the live weights",
                    stacklevel=2,
                )

    def _wrap(self, owner: Any, name: str, model_of: Callable[[Any], Any], before: bool = False) -> None:
        wrapper = vars(owner).get(name)
        if not hasattr(wrapper, "terms"):
            wrapper = vars(owner)[name] = _Wrapper(
                getattr(owner, name), functools.partial(model_of, owner), before
            )
        wrapper.terms.append(self._term)
        self._wrapped.append((owner, name))

    def remove(self) -> None:
        """Leave the averages alone."""
        for owner, name in self._wrapped:
            wrapper = vars(owner).get(name)
            if hasattr(wrapper, "terms") and self._term in wrapper.terms:
                wrapper.terms.remove(self._term)
                if not wrapper.terms:
                    del vars(owner)[name]
        self._wrapped = []


class _Wrapper:
    """A method of what averages, after or before which terms give the average their zeros."""

    def __init__(self, method: Callable[..., Any], model: Callable[[], Any], before: bool) -> None:
        self.method = method
        self.model = model
        self.before = before
        self.terms: list[Term] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.before:
            self._give()
        result = self.method(*args, **kwargs)
        if not self.before:
            self._give()
        return result

    def _give(self) -> None:
        model = self.model()
        if isinstance(model, nn.Module):
            for term in self.terms:
                give_zeros_(term, model)


def _module_of(owner: Any) -> Any:
    return owner.module


def _average_of(owner: Any) -> Any:
    return owner._average_model


def _averaged_models(callback: Any) -> Iterator[AveragedModel]:
    return (value for value in vars(callback).values() if isinstance(value, AveragedModel))


def _says_average(name: str) -> bool:
    low = name.lower()
    return name.startswith("EMA") or "weightaverag" in low or "modelema" in low or "emacallback" in low
