"""One builder of groups: what a penalty sets to zero is what the metric counts, over layers and forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_reg import Coupled, GroupLasso
from lightning_reg.groups.forms import Groups
from lightning_reg.groups.partition import partition
from lightning_reg.metrics import GroupSparsity, group_sparsity
from lightning_reg.select.parameters import select_parameters


def _thirds(name: str, parameter: nn.Parameter, module: nn.Module) -> Tensor:
    """Labels 0 to 2 and −1, in no group."""
    return (torch.arange(parameter.numel()) % 4 - 1).view(parameter.shape)


def _filters(name: str, parameter: nn.Parameter, module: nn.Module) -> str:
    return "filters"


CASES: dict[str, tuple[nn.Module, Groups, int]] = {
    "linear rows": (nn.Linear(3, 4), "rows", 4),
    "linear columns": (nn.Linear(3, 4), "columns", 3),
    "tensor": (nn.Linear(3, 4), "tensor", 1),
    "filters": (nn.Conv2d(3, 4, 2), "filters", 4),
    "channels": (nn.Conv2d(3, 4, 2), "channels", 3),
    "transposed rows": (nn.ConvTranspose2d(4, 6, 3), "rows", 6),
    "transposed columns": (nn.ConvTranspose2d(4, 6, 3), "columns", 4),
    "grouped transposed filters": (nn.ConvTranspose1d(4, 6, 3, groups=2), "filters", 6),
    "lstm rows": (nn.LSTM(3, 4), "rows", 8),
    "lstm columns": (nn.LSTM(3, 4), "columns", 7),
    "gru rows": (nn.GRU(3, 4), "rows", 8),
    "embedding rows": (nn.Embedding(5, 3), "rows", 5),
    "heads": (nn.MultiheadAttention(8, 2), "heads", 4),
    "labels": (nn.Linear(4, 4), _thirds, 3),
    "a rule that returns a word": (nn.Conv2d(3, 4, 2), _filters, 4),
    "coupled": (
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
        Coupled([{"0.weight": "rows", "0.bias": "rows", "2.weight": "columns"}]),
        4,
    ),
}


@pytest.mark.parametrize(("module", "groups", "count"), CASES.values(), ids=CASES)
def test_the_metric_counts_what_the_penalty_made(module: nn.Module, groups: Groups, count: int) -> None:
    penalty = GroupLasso(1.0, groups=groups)
    chosen = select_parameters(module, penalty.select)
    bound = penalty.bind(chosen)
    weights = [s.parameter for s in chosen]
    with torch.no_grad():
        for members in partition(chosen, groups):  # every other group dies
            for s, layout in members:
                view = layout.view(s.parameter.fill_(1.0))
                dead = torch.arange(layout.count) % 2 == 0
                view.mul_(layout.spread(~dead, view))
    sizes = bound.sizes(weights)
    assert sizes.numel() == count
    share = (sizes == 0).float().mean()
    torch.testing.assert_close(group_sparsity(module, groups), share)
    metric = GroupSparsity(groups)
    metric.update(module)
    torch.testing.assert_close(metric.compute(), share)
    assert share > 0.0


def test_a_tensor_alone_tells_no_heads() -> None:
    with pytest.raises(ValueError, match="depends on the module"):
        group_sparsity(torch.ones(4, 4), "heads")
    with pytest.raises(ValueError, match="needs a module"):
        group_sparsity(torch.ones(4, 4), _thirds)
