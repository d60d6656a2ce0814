"""What ``"weights"`` leaves out, and by which rule: what a practitioner would not decay."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_reg.select.wrappers import Place
from lightning_reg.tensors.shards import is_flattened

__all__ = ["is_norm", "kept_from_decay", "why_no_weight"]

_NORMS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else []),  # torch 2.4
)
#: Modules whose "weight" is one, whatever their class is called and however few inputs they have.
_LAYERS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag)
# hand-written ones: LayerNorm2d, LlamaRMSNorm, BatchNormAct2d, but not NormedLinear or NormLinear
_NORM_NAME = re.compile(r"norm(?!ed|alized|_?linear|_?conv|_?mlp|_?head|_?att)\w{0,9}$", re.IGNORECASE)
_POSITION_NAME = re.compile(r"pos(ition(al)?)?_?(emb|enc)|relpos|relative_?position|rotary", re.IGNORECASE)
_POSITIONS = {"pos", "position", "positions", "positional", "relpos", "rpe", "wpe"}
_BIASES = re.compile(r"bias(es)?$")
_SCALES = {
    *("gain", "gains", "gamma", "beta", "alpha", "scale", "scales", "affine", "b", "b1", "b2", "g", "m"),
    *("magnitude", "magnitudes", "temperature", "tau", "norm", "norms", "shift", "ia3"),
}


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a normalization layer, by its class or, where hand-written, by its class's name.

    >>> is_norm(nn.LayerNorm(3)), is_norm(nn.Linear(3, 3))
    (True, False)
    """
    if isinstance(module, _LAYERS):
        return False
    return isinstance(module, _NORMS) or bool(_NORM_NAME.search(type(module).__name__))


def why_no_weight(
    name: str, parameter: Tensor, module: nn.Module, containers: Iterable[nn.Module], kept: bool
) -> str:
    """Return the rule by which ``"weights"`` leaves a parameter out, and ``""`` for a weight.

    A class, as far as it is known, decides first, then names, then the shape.

    Args:
        name: its dotted name.
        parameter: the tensor.
        module: the module that owns it.
        containers: the modules around it, the nearest last.
        kept: whether the model itself says that it is not decayed.

    >>> table = nn.Embedding(8, 4)
    >>> why_no_weight("wpe.weight", table.weight, table, [table], False)
    'position table'
    """
    owner, _, attribute = name.rpartition(".")
    owner = owner.rpartition(".")[2]
    words = _words(attribute)
    if isinstance(module, (nn.ParameterList, nn.ParameterDict)):  # its own name says what its members are
        words += [word for word in _words(owner) if len(word) > 1]
    table = isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    if is_norm(module):
        return "normalization"
    if _has_bias(words) or (table and _has_bias(_words(owner))):
        return "bias"
    if _is_position(words, owner, module, list(containers), table):
        return "position table"
    token = words[-1] in ("token", "tokens") and len(words) > 1
    if token or (words[0] in ("cls", "class") and _is_vector(parameter)):
        return "token"
    if kept:
        return "no_weight_decay of the model"
    if is_flattened(parameter):
        raise ValueError(
            "select='weights' goes by dimensions, which FullyShardedDataParallel (FSDP1) flattens; name "
            "parameters, as in select='*.weight', or use FSDP2 (ModelParallelStrategy in Lightning)"
        )
    if is_lazy(parameter):  # no shape yet; torch's lazy layers call theirs "weight"
        return "" if attribute == "weight" else "bias"
    if parameter.dim() < 2:
        return "fewer than two dimensions"
    if "log" in words and not isinstance(module, _LAYERS):  # as A_log of state-space models
        return "logarithm"
    if _is_vector(parameter) and type(module).__name__.startswith("Dora"):  # the norms that PEFT's DoRA keeps
        return "scale"
    if _is_vector(parameter) and "weight" not in attribute and "kernel" not in attribute:
        # (1, C) alone may be the coefficients of a linear model
        if _SCALES.intersection(words):
            return "scale"
        if parameter.dim() > 2:
            return "one dimension above 1"
    return ""


def kept_from_decay(place: Place) -> Iterator[str]:
    """Yield the names, from the root, that the module at ``place`` says are not decayed.

    By ``no_weight_decay()`` as in timm, and by a parameter's ``_no_weight_decay`` as in state-space models.
    """
    prefix = f"{place.name}." if place.name else ""
    told: Any = getattr(type(place.module), "no_weight_decay", None)
    if isinstance(told, Callable) and not isinstance(told, property):  # type: ignore[arg-type]
        try:
            names = place.module.no_weight_decay()  # type: ignore[operator]
        except TypeError:  # something else of that name, which takes arguments
            names = ()
        if isinstance(names, (set, frozenset, list, tuple)):
            yield from (prefix + name for name in names if isinstance(name, str))
    for attribute, parameter in place.module._parameters.items():
        if parameter is not None and getattr(parameter, "_no_weight_decay", False):
            yield prefix + attribute


def _words(name: str) -> list[str]:
    return name.lower().split("_")


def _has_bias(words: Iterable[str]) -> bool:
    return any(_BIASES.match(word) for word in words)


def _is_vector(parameter: Tensor) -> bool:
    return not is_lazy(parameter) and sum(size > 1 for size in parameter.shape) < 2


def _is_position(
    words: list[str], owner: str, module: nn.Module, containers: list[nn.Module], table: bool
) -> bool:
    if table:
        around = [type(one).__name__ for one in containers[-2:]]
        named = any(_POSITION_NAME.search(one) and "oken" not in one and "ord" not in one for one in around)
        return (
            named or bool(_POSITIONS.intersection(_words(owner))) or _words(owner)[0] in ("rel", "relative")
        )
    if isinstance(module, _LAYERS):
        return False
    return bool(_POSITIONS.intersection(words) or _POSITION_NAME.search(type(module).__name__))
