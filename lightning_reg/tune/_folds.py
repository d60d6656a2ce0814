"""Parts of the data: folds of a cross-validation with the mean over them, and random halves."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, Subset, TensorDataset

from lightning_reg.tune.frame import Row

__all__ = ["halves", "samples", "some", "split", "with_folds"]


def split(data: Any, count: int, seed: int) -> list[tuple[Any, Any]]:
    """Return (what to train on, what is held out) for each of ``count`` random parts.

    Args:
        data: a data set, or a loader of one, whose batches the parts then have.
        count: K.
        seed: of the order.

    Raises:
        ValueError: there is no data set to divide, or not that many samples.
    """
    size = samples(data, f"folds={count}")
    if not 2 <= count <= size:
        raise ValueError(f"folds={count} is out of range for {size} samples; give 2 or more, 5 as a rule")
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    parts = order.tensor_split(count)
    pairs = [(torch.cat([*parts[:k], *parts[k + 1 :]]), parts[k]) for k in range(count)]
    return [(some(data, rest), some(data, part, held_out=True)) for rest, part in pairs]


def halves(data: Any, count: int, seed: int) -> list[Any]:
    """Return ``count`` random subsamples of half the data, without replacement; the first n are those of n.

    Args:
        data: a data set, or a loader of one, whose batches the subsamples then have.
        count: how many.
        seed: of the draws.

    Raises:
        ValueError: there is no data set to draw from, or not enough samples.
    """
    size = samples(data, "stability_selection")
    if size < 4:
        raise ValueError(f"stability_selection cannot halve {size} samples; give four or more")
    generator = torch.Generator().manual_seed(seed)
    return [some(data, torch.randperm(size, generator=generator)[: size // 2]) for _ in range(count)]


def samples(data: Any, asks: str) -> int:
    """Return how many samples there are.

    Raises:
        ValueError: there is no data set to divide, which ``asks`` needs.
    """
    whole = data.dataset if _is_loader(data) else data
    if not isinstance(whole, Dataset) or not hasattr(whole, "__len__"):
        raise ValueError(f"{asks} needs a data set to divide, not {type(data).__name__}; give a Dataset")
    return len(whole)


def some(data: Any, chosen: Tensor, held_out: bool = False) -> Any:
    """Return the chosen samples, of a loader in its batches, in a fixed order if they are held out."""
    if not _is_loader(data):
        return _subset(data, chosen)
    shuffle = not held_out and isinstance(data.sampler, RandomSampler)
    return _loader(_subset(data.dataset, chosen), data, shuffle)


def _is_loader(data: Any) -> bool:
    return isinstance(data, DataLoader) and data.batch_size is not None


def with_folds(rows: list[Row], folds: list[list[Row]]) -> list[Row]:
    """Return the whole path's rows, with the mean over the folds of what was held out."""
    scored = []
    for row, *others in zip(rows, *folds, strict=True):
        losses = [other["validation_loss"] for other in others]
        mean = math.fsum(losses) / len(losses)
        variance = math.fsum((loss - mean) ** 2 for loss in losses) / (len(losses) - 1)
        metrics = [other["metric"] for other in others]
        scored.append(
            row
            | {
                "validation_loss": mean,
                "validation_error": math.sqrt(variance / len(losses)),
                "metric": None if None in metrics else math.fsum(metrics) / len(metrics),
            }
        )
    return scored


def _subset(data: Dataset[Any], chosen: Tensor) -> Any:
    if isinstance(data, TensorDataset):
        return TensorDataset(*(tensor[chosen] for tensor in data.tensors))
    return Subset(data, chosen.tolist())


def _loader(data: Any, like: DataLoader[Any], shuffle: bool = False) -> DataLoader[Any]:
    return DataLoader(
        data,
        like.batch_size,
        shuffle=shuffle,
        num_workers=like.num_workers,
        collate_fn=like.collate_fn,
        pin_memory=like.pin_memory,
        drop_last=like.drop_last and shuffle,
    )
