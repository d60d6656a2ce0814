from __future__ import annotations

import io

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from lightning_reg import Cosine, Linear, MultiStep
from lightning_reg.look import plot
from tests.turns import everyday

matplotlib.use("Agg")


def rendered(figure: Figure) -> bytes:
    assert isinstance(figure, Figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def test_sparsity_draws_a_line_a_layer() -> None:
    history = [{"step": s, "sparsity": 0.0, "sparsity/a": s / 10, "sparsity/b": 0.5} for s in range(5)]
    figure = plot.sparsity(history)
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines] == ["a", "b"]
    np.testing.assert_allclose(lines[0].get_ydata(), [0.0, 0.1, 0.2, 0.3, 0.4])
    assert rendered(figure)
    with pytest.raises(ValueError, match="history is empty"):
        plot.sparsity([])


def test_histograms_count_every_weight() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    before = plot.weights_of(net)
    with torch.no_grad():
        net[0].weight[:, :2] = 0.0
    figure = plot.weight_histograms(before, plot.weights_of(net))
    axes = figure.axes[0]
    assert axes.texts[0].get_text() == "50% zeros"
    assert sum(patch.get_height() for patch in axes.patches[:60]) == 12
    assert not torch.equal(before["0.weight"], net[0].weight)
    assert rendered(figure)
    with pytest.raises(ValueError, match="no layer in common"):
        plot.weight_histograms(before, {})


@pytest.mark.parametrize("count", everyday(1, [76, 11, 500]))
def test_many_layers_are_rows_with_names_that_fit(count: int) -> None:
    layers = {f"sparsity/blocks.{i}.weight": i / count for i in range(count)}
    figure = plot.sparsity([{"step": step, **layers} for step in (50, 100)])
    axes = figure.axes[0]
    shown = axes.images[0].get_array()
    assert shown.shape == (count, 2) and shown[count - 1, 1] == pytest.approx((count - 1) / count)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[0] == "blocks.0.weight" and len(names) <= 30 and axes.get_legend() is None
    assert figure.get_size_inches()[1] <= 7.5
    assert rendered(figure)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([f"blocks.{i}.{part}.weight" for i in range(12) for part in ("attn", "mlp")], 24),
        ([f"blocks.{i}.{part}.weight" for i in range(12) for part in ("q", "k", "v", "o", "mlp")], 12),
        ([f"layer{i}" for i in range(500)], 24),
    ],
)
def test_histograms_of_many_layers_are_of_groups(names: list[str], expected: int) -> None:
    weights = {name: torch.ones(2) for name in names}
    groups = plot._together(names, 24)
    assert len(groups) == expected and [n for group in groups.values() for n in group] == names
    if expected == 12:
        figure = plot.weight_histograms(weights, {name: torch.zeros(2) for name in names})
        assert figure.axes[0].get_title(loc="left") == "blocks.0 (5)"
        assert sum(patch.get_height() for patch in figure.axes[0].patches[:60]) == 10
        assert rendered(figure)


def test_what_is_not_drawn_is_named() -> None:
    module = nn.Linear(2, 1)
    with pytest.raises(TypeError, match=r"sparsity draws a history, and got Linear; give the \.history of a"):
        plot.sparsity(module)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"weights by layer, and got Linear; give weights_of\(module\)"):
        plot.weight_histograms(plot.weights_of(module), module)  # type: ignore[arg-type]


def test_schedules() -> None:
    line = plot.schedule(Cosine(0.0, 1.0), 100).axes[0].lines[0]
    expected = [Cosine(0.0, 1.0)(int(step), 100) for step in line.get_xdata()]
    np.testing.assert_allclose(line.get_ydata(), expected)
    assert line.get_xdata()[-1] == 100
    several = plot.schedule(
        {"linear": Linear(0.0, 1.0), "steps": MultiStep(1.0, [0.5], 0.1), "constant": 0.3}
    )
    assert len(several.axes[0].lines) == 3
    assert rendered(several)


def test_path() -> None:
    figure = plot.regularization_path([0.1, 1.0], torch.tensor([[1.0, 2.0], [0.0, 0.5]]), ["a", "b"])
    lines = figure.axes[0].lines
    np.testing.assert_allclose(lines[1].get_ydata(), [2.0, 0.5])
    left, right = figure.axes[0].get_xlim()
    assert left > right, "strongest on the left"
    assert rendered(figure)
    with pytest.raises(ValueError, match="they must fit"):
        plot.regularization_path([0.1], [[1.0], [2.0]])


def test_figures_are_transparent_and_closed() -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    figure = plot.schedule(Linear(0.0, 1.0))
    assert figure.patch.get_alpha() == 0.0
    assert plt.get_fignums() == before
