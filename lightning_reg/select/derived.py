"""Weights that a layer computes from its parameters: parametrizations, weight norm, pruning masks.

The tensor that such a layer uses is no parameter. A penalty is of the tensor in use, and its gradient reaches
the parameters through the map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["Derived", "derived_tensors", "store_in_use_"]


@dataclass(frozen=True, eq=False)
class Derived:
    """A tensor that a layer computes from its parameters before it uses it.

    Attributes:
        attribute: its name in the layer: ``"weight"``.
        by: what computes it, for messages: ``"weight_norm"``.
        sources: the parameters that it is computed from; the first has the direction, or is masked.
        scale: of these, the one that holds the norms of the slices under ``weight_norm``; else None.
        masked: whether it is the first source times a pruning mask, so that what is not 0 is stored as it is.
        compute: returns the tensor, differentiable, and changes nothing.
        vectors: under ``spectral_norm`` alone, returns the singular vectors, left and right, that it keeps of
            the first source; else None.
        front: the dimension of the first source that is the rows of their matrix.
    """

    attribute: str
    by: str
    sources: tuple[nn.Parameter, ...]
    scale: nn.Parameter | None
    masked: bool
    compute: Callable[[], Tensor]
    vectors: Callable[[], tuple[Tensor, Tensor]] | None = None
    front: int = 0


def derived_tensors(module: nn.Module) -> list[Derived]:
    """Return the tensors that ``module`` itself computes from parameters, in the order of their making.

    >>> from torch.nn.utils.parametrizations import weight_norm
    >>> [(tensor.attribute, tensor.by) for tensor in derived_tensors(weight_norm(nn.Linear(2, 3)))]
    [('weight', 'weight_norm')]
    """
    found = []
    if parametrize.is_parametrized(module):
        lists: Any = module.parametrizations
        for attribute, one in lists.items():
            originals = [p for name, p in one._parameters.items() if p is not None]
            # norms that are kept are those in use only where nothing follows
            normed = type(one[0]).__name__ == "_WeightNorm" and len(originals) == 2 and len(one) == 1
            scale = originals[0] if normed else None
            order = [originals[1], originals[0]] if normed else originals
            sources = tuple(dict.fromkeys((*order, *one.parameters())))
            if sources:
                by = "weight_norm" if normed else type(one[-1]).__name__.lstrip("_")
                compute, vectors, front = partial(_parametrized, one), None, 0
                if len(one) == 1 and type(one[0]).__name__ == "_SpectralNorm" and originals[0].dim() > 1:
                    vectors, front = partial(_kept, one[0], "_u", "_v"), one[0].dim
                found.append(Derived(attribute, by, sources, scale, False, compute, vectors, front))
    for hook in module._forward_pre_hooks.values():
        derived = _by_hook(module, hook)
        if derived is not None:
            found.append(derived)
    return found


def store_in_use_(module: nn.Module) -> None:
    """Replace each tensor that ``module`` computes by a parameter with its values.

    >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))
    >>> store_in_use_(layer)
    >>> [name for name, _ in layer.named_parameters()]
    ['bias', 'weight']
    """
    found = derived_tensors(module)
    with torch.no_grad():
        values = [derived.compute().clone() for derived in found]
    if parametrize.is_parametrized(module):
        del module._modules["parametrizations"]
        module.__class__ = type(module).__bases__[0]  # copies share the class, so it stays as it is
    for key, hook in list(module._forward_pre_hooks.items()):
        if _by_hook(module, hook) is not None:
            del module._forward_pre_hooks[key]
    stores: list[dict[str, Any]] = [module._parameters, module._buffers, module.__dict__]
    for derived, value in zip(found, values, strict=True):
        for suffix in ("", "_orig", "_g", "_v", "_u", "_mask"):
            for held in stores:
                if isinstance(held.get(derived.attribute + suffix), Tensor):
                    del held[derived.attribute + suffix]
        trained = any(source.requires_grad for source in derived.sources)
        module.register_parameter(derived.attribute, nn.Parameter(value, trained))


def _by_hook(module: nn.Module, hook: Any) -> Derived | None:
    """What a hook of ``torch.nn.utils`` computes before each forward; None for other hooks."""
    kinds = {base.__name__ for base in type(hook).__mro__ if base.__module__.startswith("torch.nn.utils.")}
    if "WeightNorm" in kinds:
        scale, direction = getattr(module, f"{hook.name}_g"), getattr(module, f"{hook.name}_v")
        compute = partial(hook.compute_weight, module)
        return Derived(hook.name, "weight_norm", (direction, scale), scale, False, compute)
    if "SpectralNorm" in kinds:
        original = getattr(module, f"{hook.name}_orig")
        compute = partial(hook.compute_weight, module, do_power_iteration=False)
        vectors = partial(_kept, module, f"{hook.name}_u", f"{hook.name}_v")
        return Derived(hook.name, "spectral_norm", (original,), None, False, compute, vectors, hook.dim)
    if "BasePruningMethod" in kinds:
        name = hook._tensor_name
        original = getattr(module, f"{name}_orig")
        if isinstance(original, nn.Parameter):
            return Derived(name, "prune", (original,), None, True, partial(_masked, module, name, original))
    return None


def _kept(module: nn.Module, left: str, right: str) -> tuple[Tensor, Tensor]:
    return getattr(module, left), getattr(module, right)


def _masked(module: nn.Module, name: str, original: Tensor) -> Tensor:
    mask = getattr(module, f"{name}_mask", None)  # a new one each time that more is pruned
    return original if mask is None else original * mask


def _parametrized(one: Any) -> Tensor:
    with _evaluating(one):  # no power iteration by looking
        return one()  # type: ignore[no-any-return]


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
