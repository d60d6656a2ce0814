"""``compare`` gives every kind one budget, goes on from what is kept, and may recommend none."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_reg import L1, L2
from lightning_reg.callbacks import DropoutInjector, L1PenaltyCallback
from lightning_reg.tune import Comparison, Contender, accuracy, compare
from lightning_reg.tune._search import following, search
from lightning_reg.tune.kinds import kinds_of, strength_range
from tests.distributed.launch import SERVER
from tests.support import Net, data

CPU = {"accelerator": "cpu"}
SHORT: dict[str, Any] = {"epochs": 1, "budget": 4, "seeds": 2, "trainer": CPU}


def contender(kind: str, scores: list[float], zeros: float = 0.0) -> Contender:
    two = [0.5] * len(scores)
    return Contender(kind, None, f"use {kind}", scores, two, two, [zeros] * len(scores), two)


def test_the_recommendation_is_the_simplest_within_one_standard_error() -> None:
    none, l2, l1 = (
        contender("none", [0.80, 0.82]),
        contender("l2", [0.90, 0.94]),
        contender("l1", [0.89, 0.93]),
    )
    assert l2.error == pytest.approx(0.02)
    assert Comparison([none, l2, l1], "accuracy").recommendation() is l2
    sparse = contender("l1", [0.89, 0.93], zeros=0.5)  # 0.01 below, within 0.02
    assert Comparison([none, l2, sparse], "accuracy").recommendation() is sparse
    far = contender("l1", [0.88, 0.91], zeros=0.5)  # 0.025 below
    assert Comparison([none, l2, far], "accuracy").recommendation() is l2
    near = contender("none", [0.90, 0.91])
    comparison = Comparison([near, l2, sparse], "accuracy", test_score=0.875)
    assert comparison.recommendation() is near
    assert "Recommended: none (l2 is within one standard error)" in str(comparison)
    assert "Test accuracy of it: 0.875" in str(comparison)
    broken = contender("l2", [float("nan")] * 2)
    assert Comparison([none, broken], "accuracy").best() is none


def test_the_search_refines_and_leaves_its_range_upwards() -> None:
    def loss_at(best: float) -> Any:
        return lambda value: abs(torch.tensor(value / best).log().item())

    inside = search(loss_at(0.02), 1e-5, 1.0, 8, log=True)
    assert len(inside) == 8 and 1 / 2 < min(inside, key=inside.get) / 0.02 < 2  # type: ignore[arg-type]
    above = search(loss_at(300.0), 1e-3, 10.0, 8, log=True)
    assert 1 / 3 < min(above, key=above.get) / 300 < 3  # type: ignore[arg-type]
    tied = search(lambda value: (0.5, loss_at(0.02)(value)), 1e-5, 1.0, 8, log=True)  # as accuracies are
    assert tied.keys() == inside.keys()
    rates = search(lambda rate: abs(rate - 0.9), 0.1, 0.8, 6, log=False)
    assert max(rates) == 0.8 == min(rates, key=rates.get)  # type: ignore[arg-type]
    assert following({1e-5: 1.0, 1e-3: 2.0}, True, floor=1e-6) == pytest.approx(1e-7)
    assert following({1e-7: 1.0, 1e-5: 2.0}, True, floor=1e-6) == pytest.approx(1e-6)


def test_equal_scores_are_told_apart_by_the_loss() -> None:
    seen: list[tuple[float, float]] = []

    def score(module: Any, batches: Any) -> float:
        (batch,) = list(batches)
        seen.append((1.0, float(nn.functional.mse_loss(module.net(batch[0]), batch[1]))))
        return 1.0

    found = compare(Net, ["l2"], data(), data(24), score=score, **SHORT | {"seeds": 1})
    lowest = min(loss for _, loss in seen[1:])  # the first is of none
    assert found["l2"].losses == [pytest.approx(lowest)]
    assert found["l2"].value in dict(found["l2"].searched) and len(seen) == 5


def test_every_kind_has_the_same_budget_and_all_seeds(tmp_path: Path) -> None:
    runs: list[tuple[str, float, int, float]] = []
    how = {**SHORT, "directory": tmp_path, "on_run": lambda *run: runs.append(run)}
    asked = ["l2 decoupled", L2(0.0, name="mine"), L1PenaltyCallback(0.0, apply="proximal")]
    asked.append(DropoutInjector(0.1, after=nn.ReLU))
    found = compare(Net, [*asked, "early stopping"], data(), data(24), data(16), **how)
    names = ["none", "l2 decoupled", "mine", "l1, proximal", "injected dropout", "early stopping"]
    assert [c.kind for c in found] == names
    for name in names:
        tried = 1 if name in ("none", "early stopping") else 4
        assert [run[2] for run in runs if run[0] == name] == [0] * tried + [1]
        assert len(found[name].searched) == tried and len(found[name].scores) == 2
    assert found["l1, proximal"].code.startswith("PenaltyCallback(L1(")
    assert eval(found["mine"].code, {"PenaltyCallback": lambda p, apply: p, "L2": L2}).name == "mine"
    assert found.test_score is not None and found.test_score < 0  # a loss, with its sign turned

    def refuse(*_: Any) -> None:
        raise AssertionError("trained again")

    again: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pl.Trainer, "fit", refuse)
        how["on_run"] = lambda *run: again.append(run)
        second = compare(Net, [*asked, "early stopping"], data(), data(24), data(16), **how)
    assert again == runs and second.contenders == found.contenders
    with pytest.raises(ValueError, match="holds another comparison: seeds differ"):
        compare(Net, [*asked, "early stopping"], data(), data(24), **{**how, "seeds": 3})
    found.to_csv(tmp_path / "all.csv")
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 1 + 2 * len(names)


class Interrupt(pl.Callback):
    """Ctrl-C in a fit, counted over all of them."""

    def __init__(self, at: int) -> None:
        self.at, self.fits = at, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.fits += 1
        if self.fits == self.at:
            raise KeyboardInterrupt


def test_ctrl_c_keeps_the_finished_runs(tmp_path: Path) -> None:
    def run(at: int, directory: Path | None) -> tuple[Comparison, int]:
        watch = Interrupt(at)
        how = SHORT | {"trainer": CPU | {"callbacks": [watch]}, "directory": directory}
        return compare(Net, ["l2", "early stopping"], data(), data(24), data(16), **how), watch.fits

    finished: list[str] = []
    with pytest.raises((KeyboardInterrupt, SystemExit)):  # Lightning makes the one out of the other
        watch = {"callbacks": [Interrupt(5)]}  # two runs of none and two of l2 are finished
        how: Any = SHORT | {"trainer": CPU | watch, "on_kind": lambda c: finished.append(c.kind)}
        compare(Net, ["l2", "early stopping"], data(), data(24), directory=tmp_path, **how)
    assert finished == ["none"] and len(list(tmp_path.glob("*.pt"))) == 4
    resumed, fits = run(0, tmp_path)
    whole, all_fits = run(0, None)
    assert (fits, all_fits) == (5, 9)
    same(resumed, whole)


def same(one: Comparison, other: Comparison) -> None:
    """The same but for the time it took."""
    assert one.test_score == other.test_score
    for ours, theirs in zip(one, other, strict=True):
        assert replace(ours, seconds=[]) == replace(theirs, seconds=[])


@pytest.mark.slow
def test_processes_give_the_serial_comparison(tmp_path: Path) -> None:
    how = SHORT | {"directory": tmp_path}
    kinds = ["l1", L2(0.0), DropoutInjector(0.1, after=nn.ReLU)]
    with ProcessPoolExecutor(2, SERVER) as pool:
        same(
            compare(Net, kinds, data(), data(24), data(16), map=pool.map, **how),
            compare(Net, kinds, data(), data(24), data(16), **SHORT),
        )
    assert len(list(tmp_path.glob("*.pt"))) == 2 + 3 * 5


def test_the_test_data_are_used_once() -> None:
    class Counted(TensorDataset):
        uses = 0

    test = Counted(*data(16).tensors)
    seen: list[int] = []

    def score(module: Any, batches: Any) -> float:
        (batch,) = list(batches)
        seen.append(len(batch[0]))
        return -float(nn.functional.mse_loss(module.net(batch[0]), batch[1]))

    found = compare(Net, ["l2"], data(), data(24), test, score=score, **SHORT)
    assert seen.count(16) == 2 and seen[-2:] == [16, 16] and seen.count(24) == 2 + 5
    assert found.score_name == "score"


def test_ranges_fit_the_penalty() -> None:
    module = Net()
    assert strength_range(module, L2(0.0), "decoupled", data()) == (1e-3, 10.0)
    assert strength_range(module, L2(0.0), "gradient", data()) == (1e-5, 1.0)
    low, high = strength_range(module, L1(0.0), "proximal", data())
    assert high == pytest.approx(1e4 * low) and 0 < high < 100
    linear = TensorDataset(torch.zeros(4, 10), torch.zeros(4, 1))  # no gradient: any strength would do
    assert strength_range(module, L1(0.0), "proximal", linear)[1] > 0


@pytest.mark.parametrize(
    ("kinds", "sentence"),
    [
        (["l3"], "kind 'l3' is unknown; known are 'none', 'early stopping'"),
        ([L1(0.0), L1(0.0)], "two kinds are called 'l1'"),
        (L1(0.0), "is not a list; write kinds="),
        ([3], "3 is no kind of regularization; give a name"),
    ],
)
def test_what_cannot_be_compared_is_refused(kinds: Any, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        kinds_of(kinds, Net(), data(), None)
    with pytest.raises(ValueError, match="make no comparison"):
        compare(Net, None, data(), data(), epochs=60, budget=100)
    with pytest.raises(TypeError, match="score='accuracy' is not a function; give"):
        compare(Net, None, data(), data(), score="accuracy")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="compare trains a LightningModule, and Linear has no training_step"):
        compare(nn.Linear(2, 1), None, data(), data())
    with pytest.raises(TypeError, match="None is not data; give a Dataset"):
        compare(Net, ["none"], data(), None, **SHORT)  # type: ignore[arg-type]


class Noisy(pl.LightningModule):
    """Forty features, of which one counts: no regularization overfits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@pytest.mark.slow
def test_l1_wins_where_most_features_are_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(460, 40, generator=generator)
    labels = (inputs[:, 0] + 0.3 * torch.randn(460, generator=generator) > 0).long()
    train, validation, test = (
        TensorDataset(inputs[part], labels[part]) for part in (slice(60), slice(60, 260), slice(260, 460))
    )
    found = compare(
        Noisy, ["l1"], train, validation, test, score=accuracy, epochs=60, budget=360, trainer=CPU
    )
    assert found.recommendation().kind == "l1" and "PenaltyCallback(L1(" in found.advice()
    assert found["l1"].zeros[0] > 0.5 and found["l1"].score > found["none"].score + 0.05
    assert found.test_score is not None and found.test_score > found["none"].score
    assert found.plot().axes[0].get_title(loc="left") == "recommended: l1"
