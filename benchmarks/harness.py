"""Interleaved timing with ``torch.utils.benchmark``, peak memory, and records that can be compared.

``torch.utils.benchmark`` because its timer measures one call at a time: every round can then run every case
once, in turn, so that a busy moment of the machine meets all of them. pytest-benchmark and asv finish one
case before they begin the next.
"""

from __future__ import annotations

import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import lightning
import torch
from torch.utils.benchmark import Timer

RESULTS = Path(__file__).parent / "results"
#: A case that takes longer than this, in seconds, runs in every fifth round only.
SLOW = 0.1
#: A change of a ratio that a comparison names.
CHANGED = 0.1


class Row(TypedDict, total=False):
    """One case in one setting. Times are in seconds, memory is in MiB."""

    group: str
    case: str
    threads: int
    least: float
    median: float
    against: str
    ratio: float
    wanted: float
    peak: float


def interleaved(
    cases: Mapping[str, Callable[[], object]], threads: int, rounds: int = 20
) -> dict[str, list[float]]:
    """Return the seconds of each call, one in every round, cases in turn."""
    timers = {n: Timer("run()", globals={"run": run}, num_threads=threads) for n, run in cases.items()}
    times: dict[str, list[float]] = {name: [] for name in cases}
    gc.disable()
    for i in range(rounds):
        for name, timer in timers.items():
            if i % 5 == 0 or times[name][0] < SLOW:
                times[name].append(timer.timeit(1).median)
    gc.enable()
    return times


def rows(
    group: str,
    times: Mapping[str, list[float]],
    threads: int,
    against: Mapping[str, str] | str,
    wanted: Mapping[str, float] | None = None,
) -> list[Row]:
    """Summarise: the least and the median, and the ratio of the least to that of the case ``against``."""
    found: list[Row] = []
    for name, seconds in times.items():
        other = against if isinstance(against, str) else against[name]
        row = Row(group=group, case=name, threads=threads, least=min(seconds))
        row.update(median=statistics.median(seconds), against=other, ratio=min(seconds) / min(times[other]))
        if wanted and name in wanted:
            row["wanted"] = wanted[name]
        found.append(row)
    return found


def peak_of(*command: str) -> float:
    """Return what a child process prints last: MiB by which one call lifts its peak."""
    output = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True).stdout
    return float(output.split()[-1])


def lift_of_peak(run: Callable[[], object]) -> float:
    """Call ``run``; by how much it lifts the peak of this process, or of CUDA's allocator, in MiB."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.max_memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    resident = _status("VmRSS")
    run()
    return max(0.0, _status("VmHWM") - resident)


def _status(field: str) -> float:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) / 1024


def record(part: str, measured: list[Row], whole: bool = True) -> None:
    """Write ``results/<part>.json``, after saying what has changed since it was last written.

    Of a part that is not measured as a whole, the other rows and the machine they are from stay.
    """
    path = RESULTS / f"{part}.json"
    written = json.loads(path.read_text()) if path.exists() else {"rows": []}
    compare(written["rows"], measured)
    if whole or not written["rows"]:
        written = {"machine": machine(), "rows": measured}
    else:
        written["rows"] = merged(written["rows"], measured)
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(written, indent=1) + "\n")
    print(f"wrote {path.name}", flush=True)


def merged(before: list[Row], now: list[Row]) -> list[Row]:
    """Put rows in the place of those of their name, or at the end of their group."""
    new = {_key(row): row for row in now}
    found = [new.pop(_key(row), row) for row in before]
    for row in new.values():
        last = max((i for i, other in enumerate(found) if other["group"] == row["group"]), default=len(found))
        found.insert(last + 1, row)
    return found


def compare(before: list[Row], now: list[Row]) -> None:
    """Print the cases whose ratio has changed by more than CHANGED."""
    old = {_key(row): row for row in before}
    for row in now:
        was = old.get(_key(row), {}).get("ratio")
        if was and "ratio" in row and abs(row["ratio"] / was - 1.0) > CHANGED:
            print(f"{row['group']}, {row['case']}, {row['threads']} threads: {was:.2f} -> {row['ratio']:.2f}")


def _key(row: Row) -> tuple[Any, ...]:
    return row["group"], row["case"], row["threads"]


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
