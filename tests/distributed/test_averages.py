"""Averages of weights keep zeros in two processes: Lightning's, one's own, and one sharded by FSDP2."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distributed.launch import Launch


@pytest.mark.slow
def test_averages_in_two_processes_have_the_zeros_of_the_live_weights(tmp_path: Path) -> None:
    out = tmp_path / "weights.pt"
    Launch("tests.distributed.averages_program", [str(out)], 2, tmp_path, "rank").succeed(200)
    found = torch.load(out)
    assert len(found) >= 6
    for name, (live, average) in found.items():
        if name.endswith("UnitNorm"):
            torch.testing.assert_close(average.norm(dim=1), torch.ones(len(average)), msg=name)
            continue
        assert torch.equal(average == 0, live == 0), name
        assert float((live == 0).float().mean()) > 0.1, name
        assert not torch.equal(average, live), name
