"""The tables in README.md and the plot, from the records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path

from benchmarks.harness import RESULTS, Row

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- figures: written by `python -m benchmarks` -->", "<!-- end of figures -->"
#: What the plot shows of ResNet-50's list.
PLOTTED = [
    "L2 gradient",
    "L1 gradient",
    "L1 gradient, compiled",
    "elastic net gradient",
    "L1 proximal, Euclidean",
    "L1 proximal, Adam's metric",
    "L1 proximal, Adam's metric, compiled",
    "proxtorch L1",
    "add_loss, squares",
    "sum(p.abs().sum())",
    "tutorial's loop, torch.norm(p, 1)",
]


def write() -> None:
    """Write tables and plot anew."""
    measured: list[Row] = []
    stamps: dict[str, set[str]] = {}  # of each table: when and on what its records were made
    for path in sorted(RESULTS.glob("*.json")):
        content = json.loads(path.read_text())
        measured += content["rows"]
        machine = content["machine"]
        stamp = (
            f"torch {machine['torch']}, lightning {machine['lightning']}, {machine['cpu']}, {machine['date']}"
        )
        for row in content["rows"]:
            stamps.setdefault(row["group"], set()).add(stamp)
    tables = "\n\n".join(_tables(measured, stamps))
    text = README.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    README.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}")
    plot([row for row in measured if row["group"] == "ResNet-50"])


def _tables(measured: list[Row], stamps: Mapping[str, Iterable[str]]) -> Iterable[str]:
    order = list(dict.fromkeys(row["group"] for row in measured))
    for group, some in groupby(
        sorted(measured, key=lambda row: order.index(row["group"])), lambda r: r["group"]
    ):
        made = "; ".join(sorted(stamps[group]))
        yield f"## {group[0].upper()}{group[1:]}\n\n{made}.\n\n{_table(list(some))}"


def _table(measured: list[Row]) -> str:
    timed = [row for row in measured if "least" in row]
    threads = sorted({row["threads"] for row in timed})
    peaks = {row["case"]: row["peak"] for row in measured if "peak" in row}
    head = ["", "ratio is to", "wanted"]
    for count in threads:
        label = f"{count} thread{'s'[: count > 1]}"
        head += [f"least, {label}", "median", "ratio"]
    head += ["extra peak, MiB"] * bool(peaks)
    lines = [f"| {' | '.join(head)} |", f"|---|---|{'---:|' * (len(head) - 2)}"]
    for case in dict.fromkeys(row["case"] for row in measured):
        of_case = {row["threads"]: row for row in timed if row["case"] == case}
        first = next(iter(of_case.values()), None)
        against = first["against"] if first and first["against"] != case else ""
        cells = [case, against, _wanted(case, first)]
        for count in threads:
            row = of_case.get(count)
            cells += (
                [_time(row["least"]), _time(row["median"]), f"{row['ratio']:.2f}"] if row else ["", "", ""]
            )
        if peaks:
            cells.append(f"{peaks[case]:.1f}" if case in peaks else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _wanted(case: str, row: Row | None) -> str:
    if row is None or "wanted" not in row:
        return ""
    at_least = case.startswith(("tutorial", "sum", "add_loss", "L1 gradient, then"))
    return f"{'≥' if at_least else '≤'} {row['wanted']:.2f}"


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def plot(measured: list[Row]) -> None:
    """Bars of time by the axpy floor, on ground that reads on a light page and on a dark one."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    ink = "#7a7f87"
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    counts = sorted({row["threads"] for row in measured if "least" in row})
    for i, (count, colour) in enumerate(zip(counts, ("#2f7fd6", "#e08a1e"), strict=False)):
        times = {
            row["case"]: row["least"] for row in measured if row.get("least") and row["threads"] == count
        }
        names = [name for name in PLOTTED if name in times]
        places = [n + 0.38 * i for n in range(len(names))]
        values = [times[name] / times["axpy"] for name in names]
        bars = axes.barh(places, values, 0.36, color=colour, label=f"{count} thread{'s'[: count > 1]}")
        axes.bar_label(bars, fmt="%.1f", color=ink, padding=3, fontsize=8)
        axes.set_yticks([n + 0.19 for n in range(len(names))], names, color=ink, fontsize=9)
    axes.axvline(1.0, color=ink, linewidth=1, linestyle="--")
    axes.invert_yaxis()
    axes.set_xlabel(
        "time on ResNet-50's parameters, by that of grads += alpha · params", color=ink, fontsize=9
    )
    axes.tick_params(colors=ink)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(ink)
    axes.legend(frameon=False, labelcolor=ink)
    figure.savefig(RESULTS / "resnet50.png", dpi=130, transparent=True)
    plt.close(figure)
