"""Accuracy over the weights that are not zero: ``frontier.png``, which ``make.py`` makes from its record."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

from matplotlib.figure import Figure

from lightning_reg.look.drawing import COLOURS, legend, style

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "frontier.py"
OURS = 3  # the first ways of the table


def frontier() -> Figure:
    """Return the figure of what ``python -m benchmarks.frontier`` has recorded."""
    benchmark = runpy.run_path(str(BENCHMARK))
    found = benchmark["summary"](json.loads(benchmark["RECORD"].read_text()))
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.subplots()
    style(axes, "", "weights that are not zero, %", "test accuracy, %")
    for i, (way, cells) in enumerate(found.items()):
        left = [100 * (1 - zeros) for _, _, zeros in cells]
        means, deviations = [mean for mean, _, _ in cells], [deviation for _, deviation, _ in cells]
        look = {"fmt": "-o" if i < OURS else "--s", "color": COLOURS[i], "markersize": 4, "capsize": 2}
        axes.errorbar(left, means, deviations, label=way, **look)
    axes.set_xscale("log")
    axes.set_xticks([50, 20, 10, 5, 2], ["50", "20", "10", "5", "2"])
    axes.minorticks_off()
    axes.invert_xaxis()
    legend(axes, len(found))
    return figure
