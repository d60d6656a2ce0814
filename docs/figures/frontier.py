"""Accuracy over the weights that are not zero: ``frontier.png``, which ``make.py`` makes from its record."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "frontier.py"
OURS = 3  # the first ways of the table


def frontier() -> Figure:
    """Return the figure of what ``python -m benchmarks.frontier`` has recorded."""
    benchmark = runpy.run_path(str(BENCHMARK))
    found = benchmark["summary"](json.loads(benchmark["RECORD"].read_text()))
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for i, (way, cells) in enumerate(found.items()):
        left = [100 * (1 - zeros) for _, _, zeros in cells]
        means, deviations = [mean for mean, _, _ in cells], [deviation for _, deviation, _ in cells]
        style = "-o" if i < OURS else "--s"
        axes.errorbar(left, means, deviations, fmt=style, markersize=4, capsize=2, label=way)
    axes.set(xscale="log", xlabel="weights that are not zero, %", ylabel="test accuracy, %")
    axes.set_xticks([50, 20, 10, 5, 2], ["50", "20", "10", "5", "2"])
    axes.minorticks_off()
    axes.invert_xaxis()
    axes.legend(fontsize=8)
    return figure
