"""What averages weights while they train, and word of each of its updates.

Nothing in torch or Lightning says when an average has been updated. So the methods that update one are
exchanged in their classes while somebody listens, and put back after that.
"""

from __future__ import annotations

import functools
import math
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lightning_reg.tensors.precision import wide
from lightning_reg.tensors.shards import local

__all__ = ["Listener", "copies_in", "listen", "listen_no_more", "pairs_of", "resemble", "values_of"]

#: What may update an average: a method of its own, or a hook of the callback that holds it.
_METHODS = ("update_parameters", "update", "step", "forward")
_HOOKS = ("on_train_batch_end", "on_train_epoch_start", "on_train_epoch_end", "on_before_zero_grad")


class Listener(Protocol):
    """Who wants to know of updates."""

    def updated(self, owner: Any, given: Iterable[Any]) -> None:
        """``owner`` has updated its average, from what it was ``given``."""


_LISTENERS: weakref.WeakSet[Listener] = weakref.WeakSet()
#: A word of a class's name, as Stochastic, Weight and Averaging, or EMA and Callback; and those that average.
_WORD = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_AVERAGES = frozenset({"ema", "swa", "polyak", "modelema", "emacallback", "weightema"})
#: The cosine from which an average is one of these weights.
ALIKE = 0.5
#: By class and method: what was in the class itself, None where it inherits the method.
_REPLACED: dict[tuple[type, str], Any] = {}


def listen(listener: Listener, holders: Iterable[Any]) -> None:
    """Tell ``listener`` of all updates of torch's ``AveragedModel``, and of others that ``holders`` hold."""
    if listener not in _LISTENERS:
        _LISTENERS.add(listener)
        weakref.finalize(listener, _put_back)
    _replace(AveragedModel, "update_parameters")
    for owner in _owners(holders):
        hooks = _METHODS if isinstance(owner, nn.Module) else (*_METHODS[:-1], *_HOOKS)
        for name in hooks:
            if callable(getattr(type(owner), name, None)):
                _replace(type(owner), name)


def listen_no_more(listener: Listener) -> None:
    """Tell it nothing more; with the last one the classes are as they were."""
    _LISTENERS.discard(listener)
    _put_back()


def _put_back() -> None:
    if list(_LISTENERS):
        return
    for (cls, name), method in _REPLACED.items():
        if method is None:
            delattr(cls, name)
        else:
            setattr(cls, name, method)
    _REPLACED.clear()


def _says_average(cls: type) -> bool:
    """Whether a class is named as one that averages weights."""
    return any(_is_average(base.__name__) for base in cls.__mro__)


def _is_average(name: str) -> bool:
    words = [word.lower() for word in _WORD.findall(name)]
    return any(word in _AVERAGES or word.startswith("averag") for word in words)


def _replace(cls: type, name: str) -> None:
    method: Callable[..., Any] = getattr(cls, name)
    if (cls, name) in _REPLACED or not hasattr(method, "__get__"):
        return

    @functools.wraps(method)
    def updating(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        for listener in list(_LISTENERS):
            listener.updated(self, (*args, *kwargs.values()))
        return result

    if not isinstance(vars(cls).get(name), (staticmethod, classmethod)):
        _REPLACED[cls, name] = vars(cls).get(name)
        setattr(cls, name, updating)


def _owners(holders: Iterable[Any]) -> Iterator[Any]:
    """What is named as an average: a callback, a module, or what one of them has as an attribute."""
    for holder in holders:
        inside = holder.modules() if isinstance(holder, nn.Module) else (holder,)
        for one in inside:
            for found in (one, *values_of(one)):
                if _says_average(type(found)) and not isinstance(found, AveragedModel):
                    yield found


def values_of(owner: Any) -> Iterator[Any]:
    """The attributes of an object, and what lists and mappings among them hold."""
    for value in list(getattr(owner, "__dict__", {}).values()):
        yield value
        if isinstance(value, Mapping):
            yield from list(value.values())
        elif isinstance(value, (list, tuple)):
            yield from value


def copies_in(owner: Any) -> Iterator[Mapping[str, Tensor] | list[Tensor]]:
    """Yield what may be averages of weights: the parameters of modules, lists and mappings of tensors."""
    if isinstance(owner, AveragedModel):
        yield list(owner.module.parameters())
        return
    attributes: Any = getattr(owner, "__dict__", {})
    for value in list(attributes.values()):
        some: Any = list(value.values()) if isinstance(value, Mapping) else value
        if isinstance(value, nn.Module):
            some = [value]
        if not isinstance(some, (list, tuple)) or not some:
            continue
        if all(isinstance(one, Tensor) for one in some):
            yield value if isinstance(value, Mapping) else list(some)
            yield [one for one in some if one.dim() > 0]
        for one in some:
            if isinstance(one, nn.Module) and not isinstance(one, AveragedModel):
                yield list(one.parameters())


def pairs_of(
    copies: Mapping[str, Tensor] | list[Tensor], models: Iterable[nn.Module]
) -> list[tuple[Tensor, Tensor]]:
    """Return parameters of the first of ``models`` that ``copies`` match, with their averages; maybe none."""
    found: list[tuple[Tensor, Tensor]]
    for model in models:
        named = dict(model.named_parameters())
        if isinstance(copies, Mapping):
            found = [(p, copies[n]) for n, p in named.items() if n in copies and copies[n].shape == p.shape]
            if len(found) == len(named) and not _same(found):
                return found
            continue
        for mine in (list(named.values()), [p for p in named.values() if p.requires_grad]):
            if [p.shape for p in mine] == [copy.shape for copy in copies]:
                found = list(zip(mine, copies, strict=True))
                if not _same(found):
                    return found
    return []


@torch.no_grad()
def resemble(pairs: Iterable[tuple[Tensor, Tensor]]) -> bool:
    """Whether averages point where the weights do, as an average of gradients does not."""
    sums = [0.0, 0.0, 0.0]
    for live, average in pairs:
        mine, other = local(live.detach()), local(average.detach())
        if mine.shape != other.shape or mine.device != other.device:
            return True
        mine, other = wide(mine).flatten(), wide(other).flatten()
        for i, product in enumerate((mine @ other.conj(), mine @ mine.conj(), other @ other.conj())):
            sums[i] += float(product.real)
    return sums[0] > ALIKE * math.sqrt(sums[1] * sums[2])


def _same(pairs: Iterable[tuple[Tensor, Tensor]]) -> bool:
    """Whether some are no copies at all."""
    return any(live is copy for live, copy in pairs)
