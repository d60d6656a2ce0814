from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchmetrics import MeanMetric, MeanSquaredError
from torchmetrics.classification import MulticlassAccuracy

from lightning_reg import metrics
from lightning_reg.metrics import functional as f
from tests.distributed.launch import SERVER
from tests.ports import free_port

SEEDS = st.integers(0, 10_000)


def sparse_matrix(seed: int, shape: tuple[int, ...] = (6, 4)) -> np.ndarray:
    generator = np.random.default_rng(seed)
    matrix = generator.normal(size=shape) * (generator.random(shape) > 0.6)
    matrix[generator.integers(shape[0])] = 0.0
    matrix[:, generator.integers(shape[1])] = 0.0
    return matrix


def net() -> nn.Sequential:
    module = nn.Sequential(nn.Conv2d(2, 3, 2), nn.LayerNorm(4), nn.Linear(4, 5)).double()
    with torch.no_grad():
        module[0].weight.copy_(torch.from_numpy(sparse_matrix(1, (3, 2, 2, 2))))
        module[2].weight.copy_(torch.from_numpy(sparse_matrix(2, (5, 4))))
    return module


def arrays(module: nn.Module) -> list[np.ndarray]:
    return [p.detach().numpy() for n, p in module.named_parameters() if n in ("0.weight", "2.weight")]


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.sampled_from([0.0, 0.1, 1.0]))
def test_sparsity_against_numpy(seed: int, tolerance: float) -> None:
    matrix = sparse_matrix(seed)
    expected = np.mean(np.abs(matrix) <= tolerance)
    assert f.sparsity(torch.from_numpy(matrix), tolerance=tolerance).item() == pytest.approx(expected)


@settings(max_examples=50, deadline=None)
@given(SEEDS)
def test_group_sparsity_against_numpy(seed: int) -> None:
    matrix = sparse_matrix(seed)
    tensor = torch.from_numpy(matrix)
    assert f.group_sparsity(tensor, "rows").item() == pytest.approx(np.mean(~matrix.any(axis=1)))
    assert f.group_sparsity(tensor, "columns").item() == pytest.approx(np.mean(~matrix.any(axis=0)))


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.sampled_from([1.0, 1.5, 2.0, 3.0, np.inf]))
def test_norm_against_numpy(seed: int, order: float) -> None:
    matrix = sparse_matrix(seed)
    expected = np.linalg.norm(matrix.ravel(), order)
    assert f.parameter_norm(torch.from_numpy(matrix), order=order).item() == pytest.approx(expected, 1e-12)


@settings(max_examples=50, deadline=None)
@given(SEEDS)
def test_effective_rank_against_numpy(seed: int) -> None:
    matrix = np.random.default_rng(seed).normal(size=(6, 4))
    values = np.linalg.svd(matrix, compute_uv=False)
    shares = values / values.sum()
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert f.effective_rank(torch.from_numpy(matrix)).item() == pytest.approx(expected, 1e-12)


def test_effective_rank_at_its_ends() -> None:
    assert f.effective_rank(torch.ones(3, 4)).item() == pytest.approx(1.0, abs=1e-4)
    assert f.effective_rank(torch.zeros(3, 4)).item() == 0.0
    assert f.effective_rank(torch.eye(4, dtype=torch.bfloat16)).item() == pytest.approx(4.0)


def test_a_module_is_its_selected_parameters_together() -> None:
    module = net()
    conv, linear = arrays(module)
    both = np.concatenate([conv.ravel(), linear.ravel()])
    assert f.sparsity(module).item() == pytest.approx(np.mean(both == 0))
    assert f.parameter_norm(module).item() == pytest.approx(np.linalg.norm(both))
    rows = np.concatenate([conv.reshape(3, -1).any(1), linear.any(1)])
    columns = np.concatenate([conv.transpose(1, 0, 2, 3).reshape(2, -1).any(1), linear.any(0)])
    assert f.group_sparsity(module).item() == pytest.approx(np.mean(~rows))
    assert f.group_sparsity(module, "columns").item() == pytest.approx(np.mean(~columns))
    assert f.sparsity(module, "2.weight").item() == pytest.approx(np.mean(linear == 0))


def test_groups_by_label() -> None:
    def rows(name: str, parameter: nn.Parameter, module: nn.Module) -> Tensor:
        labels = torch.arange(len(parameter)).view(-1, *[1] * (parameter.dim() - 1))
        return 7 + 3 * labels.expand_as(parameter)

    module = net()
    assert f.group_sparsity(module, rows).item() == f.group_sparsity(module, "rows").item()


def test_half_precision_neither_overflows_nor_loses_bits() -> None:
    assert f.parameter_norm(torch.full((100,), 300.0, dtype=torch.float16)).item() == 3000.0
    ones = torch.ones(100_000, dtype=torch.bfloat16)
    assert f.parameter_norm(ones, order=1).item() == 100_000.0


CASES = [
    (metrics.Sparsity, {}, lambda m: f.sparsity(m)),
    (metrics.GroupSparsity, {"groups": "columns"}, lambda m: f.group_sparsity(m, "columns")),
    (metrics.ParameterNorm, {"order": 3.0}, lambda m: f.parameter_norm(m, order=3.0)),
    (metrics.ParameterNorm, {"order": float("inf")}, lambda m: f.parameter_norm(m, order=float("inf"))),
    (
        metrics.EffectiveRank,
        {},
        lambda m: (f.effective_rank(m[0].weight) + f.effective_rank(m[2].weight)) / 2,
    ),
]


@pytest.mark.parametrize(("cls", "options", "function"), CASES)
def test_class_and_function_agree_and_reset(cls: Any, options: dict[str, Any], function: Any) -> None:
    module, metric = net(), cls(**options)
    for _ in range(2):  # the second look changes nothing
        metric.update(module)
        torch.testing.assert_close(metric.compute(), function(module).float())
    metric.reset()
    assert metric.total == 0
    torch.testing.assert_close(metric(module), function(module).float())


def test_updates_count_together() -> None:
    metric = metrics.Sparsity()
    metric.update(torch.zeros(1, 1))
    metric.update(torch.ones(3, 1))
    assert metric.compute() == 0.25


def test_the_gap_has_the_sign_of_overfitting() -> None:
    loss = metrics.GeneralizationGap(MeanSquaredError())
    loss(torch.zeros(2), torch.tensor([1.0, 1.0]), stage="train")
    loss(torch.zeros(2), torch.tensor([2.0, 0.0]), stage="validation")
    assert loss.compute() == 1.0
    accuracy = metrics.GeneralizationGap(MulticlassAccuracy(num_classes=2, average="micro"))
    accuracy.update(torch.tensor([0, 1]), torch.tensor([0, 1]), stage="train")
    accuracy.update(torch.tensor([0, 1]), torch.tensor([0, 0]), stage="validation")
    assert accuracy.compute() == 0.5
    accuracy.reset()
    assert accuracy.train_metric.update_count == accuracy.validation_metric.update_count == 0


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="tolerance=-1"):
        f.sparsity(torch.ones(2), tolerance=-1)
    with pytest.raises(ValueError, match="no entries"):
        f.sparsity(torch.ones(0))
    with pytest.raises(ValueError, match="no entries"):
        f.parameter_norm(torch.ones(0))
    with pytest.raises(ValueError, match="order=0"):
        f.parameter_norm(torch.ones(2), order=0)
    with pytest.raises(ValueError, match="matches none"):
        f.sparsity(net(), "encoder.*")
    with pytest.raises(TypeError, match="neither a module nor"):
        f.sparsity([1.0])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="needs two dimensions"):
        f.group_sparsity(torch.ones(2), "columns")
    with pytest.raises(ValueError, match="groups='cols' is unknown"):
        f.group_sparsity(torch.ones(2, 2), "cols")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one label for each entry"):
        f.group_sparsity(net(), lambda n, p, m: torch.zeros(2))
    with pytest.raises(ValueError, match="needs a module"):
        f.group_sparsity(torch.ones(2, 2), lambda n, p, m: torch.zeros(2))
    with pytest.raises(ValueError, match="of shape"):
        f.effective_rank(torch.ones(3))
    with pytest.raises(TypeError, match="is not a torchmetrics"):
        metrics.GeneralizationGap(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="higher_is_better="):
        metrics.GeneralizationGap(MeanMetric())
    with pytest.raises(ValueError, match="stage='test'"):
        metrics.GeneralizationGap(MeanSquaredError()).update(stage="test")  # type: ignore[arg-type]


def _reduce(rank: int, address: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    mine, other = sparse_matrix(rank), sparse_matrix(1 - rank)
    both = np.concatenate([mine, other])

    def reduced(metric: Any, *targets: Any) -> float:
        metric.update(torch.from_numpy(mine), *targets)
        return metric.compute().item()

    assert reduced(metrics.Sparsity()) == pytest.approx(np.mean(both == 0))
    assert reduced(metrics.GroupSparsity()) == pytest.approx(np.mean(~both.any(axis=1)))
    mean_square = (np.sum(mine**2) + np.sum(other**2)) / 2
    assert reduced(metrics.ParameterNorm()) == pytest.approx(np.sqrt(mean_square))
    ranks = [f.effective_rank(torch.from_numpy(m)).item() for m in (mine, other)]
    assert reduced(metrics.EffectiveRank()) == pytest.approx(np.mean(ranks))
    replicated = metrics.ParameterNorm()
    replicated.update(torch.from_numpy(both if rank == 0 else np.concatenate([other, mine])))
    assert replicated.compute().item() == pytest.approx(np.linalg.norm(both))
    gap = metrics.GeneralizationGap(MeanSquaredError())
    gap.update(torch.zeros(1), torch.full((1,), float(rank)), stage="train")
    gap.update(torch.zeros(1), torch.full((1,), 3.0 * rank), stage="validation")
    assert gap.compute().item() == pytest.approx(4.5 - 0.5)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_reduced_over_two_processes() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    mp.start_processes(_reduce, (address,), nprocs=2, start_method=SERVER.get_start_method())
