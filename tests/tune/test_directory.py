"""A directory goes on with the same arguments, whatever the last digits of what is computed from the data."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_reg.tune._directory import PathDirectory


def test_the_last_digits_of_computed_strengths_do_not_make_another_path(tmp_path: Path) -> None:
    kept = PathDirectory(tmp_path)
    kept.claim({"epochs": 3, "strengths": [0.1, 0.01], "kinds": [["l1", 1e-5, None]]})
    kept.claim({"epochs": 3, "strengths": [0.1000001, 0.01], "kinds": [["l1", 1.00001e-5, None]]})
    for name, other in (
        ("epochs", 4),
        ("strengths", [0.101, 0.01]),
        ("strengths", [0.1]),
        ("kinds", [["l2", 1e-5, None]]),
        ("kinds", [["l1", 1e-5, 1.0]]),
    ):
        about = {"epochs": 3, "strengths": [0.1, 0.01], "kinds": [["l1", 1e-5, None]], name: other}
        with pytest.raises(ValueError, match=f"holds another path: {name} differ; give another directory"):
            kept.claim(about)
