"""Cross-validation of a path: the data in parts, and the mean over them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, Subset, TensorDataset

from lightning_reg.tune.frame import Row

__all__ = ["split", "with_folds"]


def split(data: Any, count: int, seed: int) -> list[tuple[Any, Any]]:
    """Return (what to train on, what is held out) for each of ``count`` random parts.

    Args:
        data: a data set, or a loader of one, whose batches the parts then have.
        count: K.
        seed: of the order.

    Raises:
        ValueError: there is no data set to divide, or not that many samples.
    """
    loader = data if isinstance(data, DataLoader) and data.batch_size is not None else None
    whole = data.dataset if loader is not None else data
    if not isinstance(whole, Dataset) or not hasattr(whole, "__len__"):
        raise ValueError(
            f"folds={count} needs a data set to divide, not {type(data).__name__}; give a Dataset"
        )
    size = len(whole)
    if not 2 <= count <= size:
        raise ValueError(f"folds={count} is out of range for {size} samples; give 2 or more, 5 as a rule")
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    parts = order.tensor_split(count)
    pairs = [(torch.cat([*parts[:k], *parts[k + 1 :]]), parts[k]) for k in range(count)]
    sets = [(_subset(whole, rest), _subset(whole, part)) for rest, part in pairs]
    if loader is None:
        return sets
    return [
        (_loader(rest, loader, isinstance(loader.sampler, RandomSampler)), _loader(part, loader))
        for rest, part in sets
    ]


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
