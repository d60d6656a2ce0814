from __future__ import annotations

from lightning_reg.hosts.log_names import numbered


def test_no_name_comes_twice() -> None:
    assert numbered([]) == []
    assert numbered(["l1", "l1", "l1"]) == ["l1", "l1_2", "l1_3"]
    assert numbered(["l1_2", "l1", "l1"]) == ["l1_2", "l1", "l1_3"]
    assert numbered(["l1", "l1", "l1_2"]) == ["l1", "l1_2", "l1_2_2"]
