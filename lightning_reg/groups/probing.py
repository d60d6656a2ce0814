"""What a network makes of an example, and of one like it: what layers read, and what of that is constant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_reg.groups.tracing import call_with, tensors_in

__all__ = ["constant_at", "inputs_of", "probes_of"]


@torch.no_grad()
def probes_of(model: nn.Module, example: Any, asker: str) -> list[Any]:
    """Return the example and, where the model makes numbers of it, the example with noise.

    An example of zeros, or of one sample, tells too little about what is constant.

    Raises:
        ValueError: the model rejects the example.
    """
    example = tree_map(
        lambda one: one.clone() if isinstance(one, Tensor) and one.is_inference() else one, example
    )
    try:
        call_with(model, example)
    except Exception as error:
        raise ValueError(
            f"{asker} cannot run {type(model).__name__} with the example that it has: {error}; give an "
            "example that forward takes"
        ) from error
    generator = torch.Generator().manual_seed(0)

    def moved(one: Any) -> Any:
        if not isinstance(one, Tensor) or not one.is_floating_point() or not bool(one.isfinite().all()):
            return one
        scale = one.std().item() if one.numel() > 1 else 0.0
        noise = torch.randn(one.shape, generator=generator).to(one)
        return one + (scale or 1.0) * noise

    other = tree_map(moved, example)
    try:
        results = tensors_in(call_with(model, other))
    except Exception:  # it takes some numbers only
        return [example]
    return [example, other] if all(bool(one.isfinite().all()) for one in results) else [example]


@torch.no_grad()
def inputs_of(model: nn.Module, probes: Sequence[Any]) -> dict[nn.Module, list[Tensor]]:
    """Return what each linear layer and convolution reads in each of its calls, ``(positions, channels)``."""
    seen: dict[nn.Module, list[Tensor]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value: Tensor = (args[0] if args else kwargs["input"]).detach()
        if not isinstance(module, nn.Linear):
            value = value.movedim(value.dim() - 1 - len(module.kernel_size), -1)  # type: ignore[arg-type]
        seen.setdefault(module, []).append(value.reshape(-1, value.shape[-1]))

    hooks = [
        module.register_forward_pre_hook(note, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
    ]
    try:
        for probe in probes:
            call_with(model, probe)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def constant_at(inputs: Sequence[Tensor], places: Sequence[int]) -> Tensor | None:
    """Return what is read at some channels, where it is the same at every position; else None."""
    if not inputs or max(places) >= min(one.shape[1] for one in inputs):
        return None
    flat = torch.cat([one[:, list(places)] for one in inputs])
    return flat[0] if torch.allclose(flat, flat[:1], rtol=1e-6, atol=1e-7) else None
