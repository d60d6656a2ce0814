"""The data's loss, without a Trainer: what ``training_step`` returns, and its mean over a data set."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

__all__ = [
    "Data",
    "Loss",
    "Score",
    "TensorBatches",
    "batches_of",
    "clone",
    "loss_of",
    "mean_gradient_",
    "mean_hessian",
    "mean_loss",
    "same_order",
    "size_of",
]

#: ``(module, batch) -> scalar``, a mean over the batch.
Loss: TypeAlias = Callable[[Any, Any], Tensor]
#: ``(module, batches) -> number``, higher being better.
Score: TypeAlias = Callable[[Any, Any], float]
#: A data set, or anything that yields batches again and again.
Data: TypeAlias = "Dataset[Any] | Iterable[Any]"


#: Numbers that rows of a Hessian which are found together may keep for each output of a model.
NUMBERS = 2**15


class TensorBatches:
    """Batches of a ``TensorDataset``, sliced and not collated one sample at a time.

    Args:
        data: tensors with a common first dimension.
        batch_size: all at once where None; smaller batches are shuffled by torch's generator.
    """

    def __init__(self, data: TensorDataset, batch_size: int | None = None) -> None:
        self.tensors = data.tensors
        self.batch_size = batch_size
        self.size = len(data)

    def __len__(self) -> int:
        return 1 if self.batch_size is None else -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[list[Tensor]]:
        if self.batch_size is None or self.batch_size >= self.size:
            yield list(self.tensors)
            return
        for chosen in torch.split(torch.randperm(self.size), self.batch_size):
            yield [tensor[chosen] for tensor in self.tensors]


class _Again:
    """Wraps a sequence of batches, which a Trainer would take for several loaders."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def batches_of(data: Any, batch_size: int | None = None) -> Any:
    """Return what yields the batches of ``data``.

    Raises:
        TypeError: it is neither a data set nor an iterable that can be gone through again.
    """
    if isinstance(data, TensorDataset):
        return TensorBatches(data, batch_size)
    if isinstance(data, DataLoader | TensorBatches | _Again):
        return data
    if isinstance(data, Dataset) and hasattr(data, "__getitem__"):
        sized: Any = data
        return DataLoader(data, batch_size or len(sized), shuffle=batch_size is not None)
    if isinstance(data, list | tuple):
        return _Again(data)
    if hasattr(data, "__iter__") and not isinstance(data, Iterator):
        return data
    raise TypeError(f"{data!r} is not data; give a Dataset, a DataLoader, or a list of batches")


def _all_of(batches: Any) -> Any:
    """Return batches of all samples in place of a loader that leaves out others each time."""
    sampler = getattr(batches, "sampler", None)
    if not (isinstance(batches, DataLoader) and batches.drop_last and isinstance(sampler, RandomSampler)):
        return batches
    data: Any = batches.dataset
    if sampler.replacement or sampler.num_samples != len(data):
        return batches
    return DataLoader(
        data, batches.batch_size, collate_fn=batches.collate_fn, num_workers=batches.num_workers
    )


@contextmanager
def same_order(*loaders: Any) -> Iterator[None]:
    """Put back the generators that loaders and their samplers hold, so that the order comes again."""
    parts = [
        (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
        for loader in loaders
    ]
    found = [getattr(owner, "generator", None) for owners in parts for owner in owners]
    generators = {id(g): g for g in found if isinstance(g, torch.Generator)}.values()
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def clone(module: nn.Module) -> Any:
    """Return a deep copy that knows of no Trainer."""
    trainer = getattr(module, "_trainer", None)
    copied = copy.deepcopy(module, {id(trainer): None} if trainer is not None else {})
    if trainer is not None:
        copied._trainer = None  # type: ignore[assignment]
    return copied


def loss_of(module: nn.Module, loss: Loss | None) -> Loss:
    """Return ``loss``, or ``module.training_step`` as one.

    Raises:
        TypeError: there is neither.
    """
    if loss is not None:
        return loss
    if not callable(getattr(module, "training_step", None)):
        raise TypeError(
            f"{type(module).__name__} has no training_step; give loss=, a function (module, batch) -> loss"
        )
    return _training_step


def _training_step(module: Any, batch: Any) -> Tensor:
    result = module.training_step(batch, 0)
    if isinstance(result, Mapping):
        result = result["loss"]
    if not isinstance(result, Tensor):
        raise TypeError(
            f"{type(module).__name__}.training_step returned {type(result).__name__}; give loss=, a function "
            "(module, batch) -> loss"
        )
    return result


@contextmanager
def _at_rest(module: nn.Module, training: bool = False) -> Iterator[None]:
    """In eval mode, or in training mode, with logging silent; both are undone."""
    modes = [(part, part.training) for part in module.modules()]
    silenced = [name for name in ("log", "log_dict") if hasattr(module, name)]
    own = {name: module.__dict__[name] for name in silenced if name in module.__dict__}
    module.train(training)
    for name in silenced:
        module.__dict__[name] = _silent
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
        for name in silenced:
            del module.__dict__[name]
        module.__dict__.update(own)


def _silent(*_: object, **__: object) -> None:
    """In place of ``log``."""


def mean_loss(module: nn.Module, batches: Iterable[Any], loss: Loss, training: bool = False) -> float:
    """Return the loss over all of ``batches``, weighted by their sizes; in eval mode but for ``training``."""
    with torch.no_grad():
        return float(_mean(module, _all_of(batches), loss, lambda value: value, training))


def mean_gradient_(module: nn.Module, batches: Iterable[Any], loss: Loss) -> float:
    """Replace every ``.grad`` by the gradient of :func:`mean_loss`, and return that loss."""
    module.zero_grad()
    batches = _all_of(batches)
    total = sum(_counted(module, batch) for batch in batches)

    def backward(value: Tensor) -> Tensor:
        (value / total).backward()  # type: ignore[no-untyped-call]
        return value.detach()

    with torch.enable_grad():
        return float(_mean(module, batches, loss, backward))


def mean_hessian(
    module: nn.Module, batches: Iterable[Any], loss: Loss, parameters: Sequence[Tensor]
) -> Tensor:
    """Return the Hessian of :func:`mean_loss` in ``parameters`` laid end to end, in float64 on the CPU."""
    batches = _all_of(batches)
    sizes = [_counted(module, batch) for batch in batches]
    count = sum(parameter.numel() for parameter in parameters)
    found = torch.zeros(count, count, dtype=torch.float64)

    def add(value: Tensor) -> Tensor:
        slopes = torch.autograd.grad(
            value / sum(sizes), parameters, create_graph=True, allow_unused=True, materialize_grads=True
        )
        slope = torch.cat([part.flatten() for part in slopes])
        at_once = max(1, min(count, NUMBERS // max(map(size_of, batches))))
        for rows in torch.split(torch.eye(count, dtype=slope.dtype, device=slope.device), at_once):
            found[rows.argmax(1).cpu()] += _products(slope, parameters, rows).cpu().double()
        return value.detach()

    with torch.enable_grad():
        _mean(module, batches, loss, add)
    return found


def _products(slope: Tensor, parameters: Sequence[Tensor], rows: Tensor) -> Tensor:
    """The Hessian times each of ``rows``."""
    if not slope.requires_grad:  # the loss is linear
        return torch.zeros_like(rows)
    options: Any = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    try:
        found = torch.autograd.grad(slope, parameters, rows, is_grads_batched=True, **options)
    except RuntimeError:  # an operation that has no batching rule
        each = [torch.autograd.grad(slope, parameters, row, **options) for row in rows]
        found = tuple(torch.stack(parts) for parts in zip(*each, strict=True))
    return torch.cat([part.flatten(1) for part in found], dim=1)


def _mean(
    module: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    weighted: Callable[[Tensor], Tensor],
    training: bool = False,
) -> Tensor:
    device = next(module.parameters()).device
    total, count = torch.zeros((), dtype=torch.float64), 0.0
    with _at_rest(module, training):
        for batch in batches:
            size = _counted(module, batch)
            value = loss(module, _to(batch, device))
            total += weighted(value * size).detach().cpu().double()
            count += size
    if count == 0:
        raise ValueError("the data have no batches; give at least one")
    return total / count


def _counted(module: Any, batch: Any) -> float:
    """What a batch counts in a mean over all: its rows, or what the module says of it."""
    said = getattr(module, "size_of_batch", None)
    return float(said(batch)) if callable(said) else size_of(batch)


def size_of(batch: Any) -> int:
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 1
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((size_of(part) for part in parts if isinstance(part, Tensor)), 1)


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: _to(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple) and not hasattr(batch, "_fields"):
        return type(batch)(_to(part, device) for part in batch)
    return batch
