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
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import L1, L2
from lightning_reg.callbacks import DropoutInjector, L1PenaltyCallback
from lightning_reg.tune import Comparison, Contender, accuracy, compare
from lightning_reg.tune._jackknife import ALL, HALVES, Part
from lightning_reg.tune._search import following, search
from lightning_reg.tune.kinds import kinds_of, strength_range
from tests.distributed.launch import SERVER
from tests.support import Net, data

CPU = {"accelerator": "cpu"}
SHORT: dict[str, Any] = {"epochs": 1, "budget": 4, "seeds": 2, "trainer": CPU}


def contender(kind: str, scores: list[float], spread: float = 0.0, zeros: float = 0.0) -> Contender:
    two = [0.5] * len(scores)
    left_out = [spread, -spread, *[0.0] * 8]
    return Contender(
        kind, None, f"use {kind}", scores, two, two, [zeros] * len(scores), two, left_out=left_out
    )


def test_the_recommendation_is_none_within_one_standard_error_and_else_the_best() -> None:
    none, l2 = contender("none", [0.80, 0.82]), contender("l2", [0.90, 0.94])
    assert l2.error == pytest.approx(0.02) and l2.difference(none) == pytest.approx((0.11, 0.01))
    near = contender("l1", [0.89, 0.93], zeros=0.5)  # 0.01 below with both seeds
    close = contender("l1", [0.90, 0.93], zeros=0.5)  # 0.005 ± 0.005
    comparison = Comparison([none, l2, near], "accuracy", test_score=0.875)
    assert comparison.recommendation() is l2 and comparison.near() == [l2]
    assert "Recommended: l2 (above none by 0.11 ± 0.01). To use it: use l2" in str(comparison)
    assert "Test accuracy of it: 0.875" in str(comparison) and "Within" not in comparison.advice()
    comparison = Comparison([none, l2, close], "accuracy")
    assert comparison.recommendation() is l2
    assert "Within one standard error of the best: l1 (50% zeros)" in comparison.advice()
    lucky = contender("none", [0.94, 0.88])  # 0.01 ± 0.05
    comparison = Comparison([lucky, l2], "accuracy")
    assert comparison.recommendation() is lucky
    assert "Recommended: none (l2 is above it by 0.01 ± 0.05, too little to tell)" in comparison.advice()
    highest = Comparison([contender("none", [0.95, 0.96]), l2], "accuracy")
    assert "Recommended: none (it has the best score)" in highest.advice()
    broken = contender("l2", [float("nan"), float("inf")])
    assert Comparison([none, broken], "accuracy").recommendation() is none


def test_seeds_that_agree_do_not_hide_that_the_samples_are_few() -> None:
    none, lucky = contender("none", [0.96, 0.96]), contender("l2", [0.97, 0.97], spread=0.008)
    assert lucky.error == pytest.approx(0.008 * (2 * 9 / 10) ** 0.5)  # the seeds' part is 0
    assert Comparison([none, lucky], "accuracy").recommendation() is none
    winner = contender("l2", [0.98, 0.98], spread=0.008)
    assert Comparison([none, winner], "accuracy").recommendation() is winner
    # samples that are hard for both of them do not count
    hard = contender("none", [0.96, 0.96], spread=0.008)
    assert Comparison([hard, lucky], "accuracy").recommendation() is lucky


def test_the_error_has_the_samples_in_it_for_any_score_and_loader() -> None:
    """Of a loss, a shuffled loader and a run that is the same as none: no difference, and no error of it."""
    generator = torch.Generator().manual_seed(0)
    loaders = [DataLoader(data(24), 5, shuffle=True), DataLoader(data(24), 5, True, generator=generator)]
    for validation in loaders:
        how = SHORT | {"seeds": 1, "on_kind": lambda _: torch.rand(1)}  # as in another process
        found = compare(Net, [pl.Callback()], data(), validation, **how)
        none, same_as_none = found
        assert none.difference(same_as_none) == (0.0, 0.0) and found.recommendation() is none
        assert none.error > 0.0 and len(none.left_out) == 10
    mean = sum(none.left_out) / 10
    assert none.left_out != [none.score] * 10 and mean == pytest.approx(none.score, rel=0.1)


def test_a_score_that_needs_more_samples_is_left_out_of_the_error() -> None:
    def score(module: Any, batches: Any) -> float:
        (batch,) = list(batches)
        if len(batch[0]) < 24:
            raise ValueError("one class")
        return 1.0

    with pytest.warns(UserWarning, match="score failed on a part of the validation data: one class"):
        found = compare(Net, [], data(), data(24), score=score, **SHORT)
    assert found["none"].score == 1.0 and found["none"].error == 0.0


@torch.no_grad()
def test_early_stopping_is_scored_on_samples_that_did_not_choose_its_epoch(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = TensorDataset(data(64).tensors[0], 3 * torch.randn(64, 1, generator=generator))
    how: dict[str, Any] = SHORT | {"epochs": 6, "budget": 18, "seeds": 1, "directory": tmp_path}

    @torch.enable_grad()
    def early_stopping() -> Contender:
        return compare(Net, ["early stopping"], data(), noise, **how)["early stopping"]

    found = early_stopping()
    run = torch.load(tmp_path / "early-stopping-0000.pt", weights_only=True)

    def loss(state: Any, blocks: frozenset[int]) -> float:
        module = Net()
        module.load_state_dict(state)
        (batch,) = Part([noise.tensors], blocks)
        return float(nn.functional.mse_loss(module.net(batch[0]), batch[1]))

    halves = [loss(state, other) for state, other in zip(run["halves"], HALVES[::-1], strict=True)]
    assert found.losses == [pytest.approx(sum(halves) / 2, rel=1e-3)] and found.score == -found.loss
    # of a mean over samples; of any other score it is what the halves say of the choice, added to all samples
    chosen = loss(run["module"], ALL)  # the epoch that all samples chose: what the test data see
    others = [loss(run["module"], half) for half in HALVES[::-1]]
    added = sum(crossed - before for crossed, before in zip(halves, others, strict=True)) / 2
    assert found.losses == [pytest.approx(chosen + added)] and added > 0.0
    # a directory of an earlier release has no halves, and nothing without a block
    del run["halves"], run["left_out"]
    torch.save(run, tmp_path / "early-stopping-0000.pt")
    assert replace(early_stopping(), seconds=[]) == replace(found, seconds=[])


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
        if len(batch[0]) == 24:  # all of them
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
