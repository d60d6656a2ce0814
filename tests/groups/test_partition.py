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


def test_a_bias_goes_with_its_rows() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.LSTM(3, 5))
    sets = partition(select_parameters(net, "all"), "rows")
    assert [[s.name for s, _ in members] for members in sets] == [
        ["0.weight", "0.bias"],
        ["1.weight", "1.bias"],
        ["2.weight_ih_l0", "2.bias_ih_l0"],
        ["2.weight_hh_l0", "2.bias_hh_l0"],
    ]
    assert all(layout.count == members[0][1].count for members in sets for _, layout in members)
    layer = nn.Linear(3, 4)
    rows = torch.cat([layer.weight, layer.bias[:, None]], 1).detach()
    value = GroupLasso(0.5, select="all")(layer).detach()
    torch.testing.assert_close(value, 0.5 * 2.0 * rows.norm(dim=1).sum())
