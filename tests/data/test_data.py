from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris

from lightning_reg.data import SklearnDataModule, TableDataModule


def parts(module: Any) -> dict[str, tuple[torch.Tensor, ...]]:
    module.setup()
    return {name: dataset.tensors for name, dataset in module._parts.items()}


@pytest.mark.parametrize(
    ("name", "rows", "features"),
    [
        ("breast_cancer", 569, 30),
        ("diabetes", 442, 10),
        ("digits", 1797, 64),
        ("iris", 150, 4),
        ("wine", 178, 13),
    ],
)
def test_bundled_sets_are_split_and_standardised(name: Any, rows: int, features: int) -> None:
    module = SklearnDataModule(name)
    found = parts(module)
    assert module.num_features == features
    assert sum(len(x) for x, _ in found.values()) == rows
    assert len(found["test"][0]) == round(0.2 * rows)
    x = found["train"][0]
    torch.testing.assert_close(x.mean(0), torch.zeros(features), atol=1e-5, rtol=0)
    varied = x.std(0) > 0
    torch.testing.assert_close(x.std(0, correction=0)[varied], torch.ones(int(varied.sum())))


def test_the_split_is_the_seeds_and_no_row_is_in_two_parts() -> None:
    first, again = (parts(SklearnDataModule("iris", standardize=False)) for _ in range(2))
    other = parts(SklearnDataModule("iris", standardize=False, seed=1))
    assert torch.equal(first["train"][0], again["train"][0])
    assert not torch.equal(first["train"][0], other["train"][0])
    rows = np.concatenate([np.column_stack([x, y]) for x, y in first.values()])
    x, y = load_iris(return_X_y=True)
    expected = np.column_stack([x.astype(np.float32), y])
    assert np.array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])


def test_no_validation_rows_is_no_loader() -> None:
    module = SklearnDataModule("iris", val_fraction=0.0, test_fraction=0.0)
    module.setup()
    assert module.val_dataloader() == []
    assert len(module.predict_dataloader()) == 3


def matrix() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)


def test_numpy_files(tmp_path: Path) -> None:
    values = matrix()
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "b.npz", x=values[:, :2], y=values[:, 2])
    np.savez(tmp_path / "c.npz", values)
    found = [
        parts(TableDataModule(str(tmp_path / name), task="regression", standardize=False))["train"]
        for name in ("a.npy", "b.npz", "c.npz")
    ]
    for x, y in found:
        assert torch.equal(x, found[0][0])
        assert torch.equal(y, found[0][1])
    assert found[0][0].shape == (12, 2)
    chosen = TableDataModule(str(tmp_path / "a.npy"), "0", ["2"], task="regression", standardize=False)
    assert parts(chosen)["train"][0].shape == (12, 1)


BAD: list[tuple[np.ndarray, dict[str, Any], str]] = [
    (matrix(), {"target": "9"}, "has no column '9'; it has '0', '1', '2'"),
    (matrix(), {"features": ["0", "7"]}, "has no column '7'"),
    (matrix()[:0], {}, "the data set is empty"),
    (matrix()[:, :1], {}, "no column but the target"),
    (matrix()[0], {}, "a table has two dimensions"),
    (np.where(matrix() > 2.0, np.nan, matrix()), {}, "rows are missing or infinite"),
    (matrix()[:1], {"val_fraction": 0.9, "test_fraction": 0.0}, "none is left to train on"),
]


@pytest.mark.parametrize(("values", "options", "message"), BAD)
def test_bad_files(values: np.ndarray, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "table.npy"
    if "missing" in message:
        values[3, 0] = np.nan
    np.save(path, values)
    with pytest.raises(ValueError, match=message):
        TableDataModule(str(path), **{"task": "regression", **options}).setup()


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not bundled with scikit-learn"):
        SklearnDataModule("mnist")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size=0"):
        SklearnDataModule("iris", 0)
    with pytest.raises(ValueError, match="leave some rows to train on"):
        SklearnDataModule("iris", val_fraction=0.6, test_fraction=0.5)
    with pytest.raises(ValueError, match="is not a "):
        TableDataModule("table.xlsx")
    with pytest.raises(ValueError, match="task='rank'"):
        TableDataModule("table.csv", task="rank")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="there is no file"):
        TableDataModule(str(tmp_path / "none.npy")).setup()


@pytest.mark.slow
def test_csv_and_parquet(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame(matrix(), columns=["a", "b", "c"])
    frame["kind"] = ["cat", "dog"] * 10
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    loaded = []
    for name in ("t.csv", "t.parquet"):
        module = TableDataModule(str(tmp_path / name), "kind", standardize=False)
        loaded.append(parts(module)["train"])
        assert module.classes == ["cat", "dog"]
    torch.testing.assert_close(loaded[0][0], loaded[1][0])
    assert torch.equal(loaded[0][1], loaded[1][1])
    with pytest.raises(ValueError, match="has no column 'weight'; it has 'a', 'b', 'c', 'kind'"):
        TableDataModule(str(tmp_path / "t.csv"), "kind", ["a", "weight"]).setup()
    with pytest.raises(ValueError, match=r"column 'kind' .* holds something else than numbers"):
        TableDataModule(str(tmp_path / "t.csv"), "a").setup()
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match=r"empty.csv is empty"):
        TableDataModule(str(tmp_path / "empty.csv")).setup()
    (tmp_path / "header.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match="the data set is empty"):
        TableDataModule(str(tmp_path / "header.csv"), task="regression").setup()
