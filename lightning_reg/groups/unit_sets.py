"""From what goes together with a unit to the layouts of its parameters, or the reason why there are none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from lightning_reg.groups.layout import Labels, Layout, Slices
from lightning_reg.groups.tracing import Member, is_depthwise

__all__ = ["UnitSet", "is_response_normed", "is_stream", "layout_along", "rms_norms", "unit_set"]

_CONV = nn.modules.conv._ConvNd
_TRANSPOSED = nn.modules.conv._ConvTransposeNd
_NORM = nn.modules.batchnorm._NormBase

#: The layouts of one set of units, by the names of their parameters.
UnitSet = dict[str, Layout]


def rms_norms(model: nn.Module) -> dict[int, nn.Module]:
    """Return the modules that divide by a root mean square and scale, of any make, by their scale's identity.

    >>> list(rms_norms(nn.Sequential(nn.RMSNorm(3), nn.LayerNorm(3))).values())
    [RMSNorm((3,), eps=None, elementwise_affine=True)]
    """
    return {
        id(module.weight): module
        for module in model.modules()
        if "rmsnorm" in type(module).__name__.lower() and isinstance(module.weight, nn.Parameter)
    }


def is_response_normed(modules: Iterable[object]) -> bool:
    """Whether units pass a local response normalization, which mixes neighbours: told by its operators."""
    passed = [str(getattr(module, "_grad_fn", "")) for module in modules]
    return all(any(part in one for one in passed) for part in ("AvgPool", "Pow", "Div"))


def is_stream(members: Sequence[Member], norms: Mapping[int, nn.Module] | None) -> bool:
    """Whether units are channels of a residual stream: columns of an embedding, or of a table beside it."""
    return norms is not None and any(
        isinstance(module, nn.Embedding) or (isinstance(module, nn.Parameter) and id(module) not in norms)
        for module, _, _ in members
    )


def unit_set(
    members: Sequence[Member], names: Mapping[int, str], count: int, norms: Mapping[int, nn.Module] | None
) -> UnitSet | None:
    """Return the parameters of one set of units; None where these could not be cut.

    Args:
        members: what goes together with them.
        names: of the parameters and the modules, by identity.
        count: how many units there are.
        norms: those that a residual stream may be read through; None where no stream is asked for.

    Raises:
        ValueError: a stream is asked for, and something in it needs all of its channels.
    """
    if is_response_normed(module for module, _, _ in members):
        return None
    forms: UnitSet = {}
    reads = False
    for module, handler, units in members:
        whole = len(units) == count and not bool((units < 0).any())
        if handler == "prune_in_channels" and not is_depthwise(module):
            if isinstance(module, _CONV) and module.groups > 1:
                return None
            reads = reads or isinstance(module, nn.Linear | _CONV)
        elif norms is not None and (id(module) in norms or _is_scale(module)):
            continue
        elif norms is not None and isinstance(module, (nn.Parameter, nn.Embedding)):
            parameter = module if isinstance(module, nn.Parameter) else module.weight
            if not whole or parameter.shape[-1] != count or id(parameter) not in names:
                return None
            shape = tuple(parameter.shape)
            forms[names[id(parameter)]] = layout_along(shape, len(shape) - 1, units, count)
        elif isinstance(module, nn.Parameter) or (
            isinstance(module, nn.Module)
            and not isinstance(module, (nn.Linear, _CONV, _NORM, nn.PReLU))
            and (isinstance(module, nn.LayerNorm) or type(module).__module__.startswith("torch.nn"))
        ):
            if is_stream(members, norms):
                what = f"{names.get(id(module), 'a module')}, a {type(module).__name__},"
                why = (
                    "takes mean and variance of the residual stream, dead channels too; use RMSNorm, or"
                    if isinstance(module, nn.LayerNorm)
                    else "needs all channels of the residual stream;"
                )
                raise ValueError(f"Units(stream=True): {what} {why} leave stream out")
            return None
        elif isinstance(module, (nn.Linear, _CONV, _NORM)):
            if isinstance(module, _CONV) and module.groups > 1 and not is_depthwise(module):
                return None
            for parameter in module.parameters(recurse=False):
                dim = int(isinstance(module, _TRANSPOSED) and parameter.dim() > 1 and module.groups == 1)
                if parameter.shape[dim] != len(units) or bool((units < 0).any()):
                    return None  # a part of it is other units', as behind a concatenation
                forms[names[id(parameter)]] = layout_along(tuple(parameter.shape), dim, units, count)
    return forms if reads and forms else None


def _is_scale(module: object) -> bool:
    """Whether it is a vector of the stream's width, which scales zeros; what adds it is found out later."""
    return isinstance(module, nn.Parameter) and module.dim() == 1


def layout_along(shape: tuple[int, ...], dim: int, units: Tensor, count: int) -> Layout:
    """Return the layout of a tensor whose entries along a dimension are units, in some order."""
    if units.tolist() == list(range(count)):
        return Slices(shape, (dim,))
    index = units.view([-1 if d == dim else 1 for d in range(len(shape))])
    return Labels(index.expand(shape).contiguous())
