"""The samples' part of a score's error, for any score and any form of batches."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.tune._jackknife import ALL, HALVES, Part, jackknife_error, part_of


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


def test_blocks_part_the_samples_whatever_the_batches() -> None:
    numbers = torch.arange(43)
    chunks = numbers.split(8)
    names = [[f"n{int(i)}" for i in chunk] for chunk in chunks]
    forms: list[list[Any]] = [
        list(chunks),
        [Pair(chunk, chunk) for chunk in chunks],
        [
            {"x": chunk, "name": name, "t": torch.tensor(1.0)}
            for chunk, name in zip(chunks, names, strict=True)
        ],
        [(chunk[:, None], None, "all") for chunk in chunks],
    ]

    def samples(batch: Any) -> list[int]:
        if isinstance(batch, dict):
            assert batch["name"] == [f"n{int(i)}" for i in batch["x"]] and batch["t"] == 1.0
            return batch["x"].tolist()  # type: ignore[no-any-return]
        if isinstance(batch, Pair):
            assert torch.equal(batch.x, batch.y)
        return (batch if isinstance(batch, torch.Tensor) else batch[0]).flatten().tolist()

    for form in forms:
        blocks = [[i for batch in Part(form, frozenset({b})) for i in samples(batch)] for b in sorted(ALL)]
        assert sorted(itertools.chain(*blocks)) == numbers.tolist()
        assert {len(block) for block in blocks} == {4, 5}  # dealt evenly over batches of 8
        rest = [i for batch in Part(form, ALL - {3}) for i in samples(batch)]
        assert sorted(rest + blocks[3]) == numbers.tolist()
        halves = [sum(len(samples(batch)) for batch in Part(form, half)) for half in HALVES]
        assert sum(halves) == 43 and max(halves) <= 23
        assert part_of(form, ALL) is form
    cyclic = next(iter(Part([torch.arange(100) % 10], frozenset({0}))))
    assert len(set(cyclic.tolist())) > 3  # samples that come in a cycle of classes are mixed


def test_what_cannot_be_cut_is_one_sample() -> None:
    class Graph:
        pass

    graphs = [Graph() for _ in range(12)]
    flat = [(torch.zeros(5), torch.zeros(3)) for _ in range(12)]  # as of bags: values and offsets
    for batches in (graphs, flat):
        assert [len(list(Part(batches, frozenset({b})))) for b in sorted(ALL)] == [2, 2] + [1] * 8


def test_of_a_mean_it_is_the_standard_error_of_the_blocks() -> None:
    values = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(values), batch_size=32)

    def mean(blocks: frozenset[int]) -> float:
        return float(torch.cat([batch for (batch,) in part_of(loader, blocks)]).mean())

    without = [mean(ALL - {b}) for b in sorted(ALL)]
    blocks = torch.tensor([mean(frozenset({b})) for b in sorted(ALL)])
    assert jackknife_error(without) == pytest.approx(float(blocks.std()) / math.sqrt(10))
    assert jackknife_error([*without, math.nan]) == jackknife_error(without)
    assert jackknife_error([1.0, math.nan]) == 0.0 == jackknife_error([])


def test_of_an_area_under_a_curve_it_is_what_new_samples_say() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        labels = (torch.arange(120) % 6 == 0).long()  # two of a class in a tenth, or none
        return labels + torch.randn(120, generator=generator), labels

    def area(outputs: torch.Tensor, labels: torch.Tensor) -> float:
        return float((outputs[labels == 1, None] > outputs[labels == 0]).double().mean())

    areas, errors = [], []
    for _ in range(60):
        outputs, labels = draw()
        areas.append(area(outputs, labels))
        without = [next(iter(Part([(outputs, labels)], ALL - {b}))) for b in sorted(ALL)]
        errors.append(jackknife_error([area(*part) for part in without]))
    expected = torch.tensor(areas).std()
    assert torch.tensor(errors).mean() == pytest.approx(float(expected), rel=0.25)
