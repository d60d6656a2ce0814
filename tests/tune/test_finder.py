"""The finder leaves no trace, and what it suggests is near the best of a grid."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import L1, L2
from lightning_reg.callbacks import DropoutFinder, L2PenaltyCallback, StrengthFinder
from lightning_reg.tune import Sweep, find_dropout, find_strength, lambda_max, regularization_path
from lightning_reg.tune._loss import TensorBatches
from tests.support import QUIET, Net, batches, data
from tests.turns import part_of, turn


class Validated(Net):
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]))


class Dropping(Validated):
    def __init__(self) -> None:
        super().__init__(lambda p: torch.optim.Adam(p, lr=1e-2))
        self.net.insert(1, nn.Dropout(0.25))


SHORT: dict[str, Any] = {"points": 3, "epochs": 1}


class Watch(pl.Callback):
    """Writes down all there is to restore, at fit start and at the end."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.look(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.look(trainer, pl_module)

    def look(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.seen.append(
            copy.deepcopy(
                {
                    "module": {**module.state_dict()},
                    "attributes": sorted(module.__dict__),
                    "modes": [part.training for part in module.modules()],
                    "gradients": [p.grad for p in module.parameters()],
                    "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
                    "loops": trainer.fit_loop.state_dict(),
                    "step": trainer.global_step,
                    "random": (random.getstate(), torch.get_rng_state()),
                }
            )
        )


def run(*finders: pl.Callback) -> Watch:
    torch.manual_seed(5)
    random.seed(5)
    module, watch = Dropping(), Watch()
    loader = DataLoader(data(), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(3))
    callbacks = [watch, L2PenaltyCallback(1e-3), *finders]
    trainer = pl.Trainer(callbacks=callbacks, max_epochs=2, **QUIET)
    trainer.fit(module, loader, DataLoader(data(24), batch_size=8))
    return watch


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


@pytest.mark.parametrize("finder", [StrengthFinder, DropoutFinder])
def test_it_leaves_no_trace(finder: Any) -> None:
    with_it, without = finder(update=False, options=SHORT), run()
    watch = run(with_it)
    assert with_it.suggestion is not None
    assert len(watch.seen) == len(without.seen) == 2
    for found, expected in zip(watch.seen, without.seen, strict=True):
        for part, value in expected.items():
            assert equal(found[part], value), part


def test_the_suggestion_is_used() -> None:
    penalty, finder = L2PenaltyCallback(1e-3), StrengthFinder(options=SHORT)
    trainer = pl.Trainer(callbacks=[penalty, finder], max_epochs=1, **QUIET)
    trainer.fit(Validated(), DataLoader(data(), 16), DataLoader(data(24), 8))
    assert penalty.penalty.strength == finder.suggestion

    module, dropout = Dropping(), DropoutFinder(options=SHORT)
    trainer = pl.Trainer(callbacks=[dropout], max_epochs=1, **QUIET)
    trainer.fit(module, DataLoader(data(), 16), DataLoader(data(24), 8))
    assert module.net[1].p == dropout.suggestion


def test_the_copies_train_as_long_as_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int | None] = []
    for finder in (StrengthFinder, DropoutFinder):
        monkeypatch.setattr(finder, "search", lambda *given: seen.append(given[-1].get("epochs")))
    for length in (1, 1000, -1):
        for callback in (StrengthFinder(), DropoutFinder(options={"epochs": 3})):
            trainer = pl.Trainer(callbacks=[callback], max_epochs=length, max_steps=1, **QUIET)
            trainer.fit(Validated(), DataLoader(data(), 16), DataLoader(data(24), 8))
    assert seen == [1, 3, 60, 3, None, 3]  # None: what find_strength does by itself


def test_what_cannot_be_searched_is_refused() -> None:
    trainer = pl.Trainer(callbacks=[L2PenaltyCallback(1e-3), StrengthFinder()], max_epochs=1, **QUIET)
    with pytest.raises(ValueError, match="give the Trainer validation data"):
        trainer.fit(Net(), DataLoader(data(), 16))
    trainer = pl.Trainer(callbacks=[StrengthFinder()], max_epochs=1, **QUIET)
    with pytest.raises(ValueError, match="there are 0"):
        trainer.fit(Validated(), DataLoader(data(), 16), DataLoader(data(), 16))
    with pytest.raises(ValueError, match="no dropout site"):
        find_dropout(Net(), data(), data(24))
    with pytest.raises(ValueError, match="make no sweep"):
        find_strength(Net(), L2(1.0), data(), data(24), lowest=1.0, highest=0.1)


def test_every_strength_starts_from_the_module_and_sees_the_same_batches() -> None:
    loader = DataLoader(data(), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(3))
    state = loader.generator.get_state()
    module, seen, batches = Net(), [], []

    class Record(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            batches.append(batch)

    with pytest.warns(UserWarning, match=r"0.1, is the highest tried"):
        sweep = find_strength(
            module,
            L2(1.0),
            loader,
            data(24),
            lowest=1e-5,
            highest=1e-1,
            points=3,
            epochs=13,
            trainer=QUIET | {"callbacks": [Record()]},
            on_point=lambda *point: seen.append(point),
        )
    assert list(sweep) == seen and sweep.values == pytest.approx([0.0, 1e-5, 1e-3, 1e-1])
    assert torch.equal(loader.generator.get_state(), state)
    first, *others = (batches[i : i + 13 * 4] for i in range(0, len(batches), 13 * 4))
    assert len(others) == 3 and all(equal(first, other) for other in others)
    # the same by hand: the mean over the last two of thirteen epochs
    for strength, loss in sweep:
        copied, losses = copy.deepcopy(module), []
        optimizer = copied.configure_optimizers()
        for batch in first:
            optimizer.zero_grad()
            penalty = sum(p.square().sum() for p in copied.parameters() if p.dim() > 1)
            (copied.training_step(batch, 0) + 0.5 * strength * penalty).backward()
            optimizer.step()
            with torch.no_grad():
                losses.append(float(copied.training_step(list(data(24).tensors), 0)))
        assert loss == pytest.approx((losses[-1] + losses[-5]) / 2, rel=1e-5)


def test_the_curve_finds_a_parabola_and_stands_a_ruined_end() -> None:
    strengths = [10.0 ** (-4 + i / 2) for i in range(9)]
    wanted = 10**-2.2
    losses = [math.log10(s / wanted) ** 2 for s in strengths]
    assert Sweep("strength", strengths, losses).suggestion() == pytest.approx(wanted, rel=0.1)
    ruined = [*losses[:-2], 1e6, math.nan]
    assert Sweep("strength", strengths, ruined).suggestion() == pytest.approx(wanted, rel=0.25)
    rates = [i / 10 for i in range(9)]
    assert Sweep("rate", rates, [(r - 0.33) ** 2 for r in rates]).suggestion() == pytest.approx(
        0.33, abs=0.02
    )
    with pytest.raises(ValueError, match="no run had a finite loss"):
        Sweep("rate", [0.0, 0.1, 0.2], [math.nan, math.inf, math.nan]).suggestion()


def test_the_curve_where_most_losses_are_alike_is_scaled_by_their_upper_quartile() -> None:
    rates = [i / 10 for i in range(9)]
    losses = [2.0, 1.2, 1.002, 1.001, 1.0, 1.001, 1.003, 1.4, 3.0]  # median 1.002, upper quartile 1.4
    heights = np.minimum(2.0, np.log1p((np.array(losses) - 1.0) / (0.1 * 0.4)))
    for place, loss in list(zip(*Sweep("rate", rates, losses).curve(), strict=True))[::50]:
        weight = np.exp(-0.25 * ((np.array(rates) - place) / 0.1) ** 2)  # polyfit squares it
        fitted = np.polyval(np.polyfit(rates, heights, 2, w=weight), place)
        assert loss == pytest.approx(1.0 + 0.04 * np.expm1(fitted), rel=1e-9)


def test_no_penalty_is_an_answer() -> None:
    strengths, rising = [0.0, 1e-4, 1e-3, 1e-2, 1e-1], [1.0, 1.01, 1.02, 1.5, 3.0]
    sweep = Sweep("strength", strengths, rising)
    assert sweep.suggestion() == 0.0 and min(sweep.curve()[0]) == pytest.approx(1e-4)
    assert sweep.remark() is None
    assert sweep.choice() == "strength 0, validation loss 1 (without a penalty 1), of 5 tried"
    better = Sweep("strength", strengths, [1.0, 0.9, 0.5, 0.9, 3.0])
    assert 5e-4 < better.suggestion() < 2e-3 and "without a penalty 1)" in better.choice()


def test_a_score_is_what_counts_and_seeds_are_averaged(tmp_path: Path) -> None:
    strengths: list[float] = []

    def score(module: Any, batches: Any) -> float:
        return float(sum(p.detach().abs().sum() for p in module.parameters()))  # no penalty scores best

    how: Any = {"points": 3, "epochs": 1, "lowest": 1e-3, "highest": 10.0, "trainer": QUIET, "score": score}
    note = strengths.append
    sweep = find_strength(Net(), L2(1.0), data(), data(24), on_point=lambda *point: note(point[0]), **how)
    assert sweep.suggestion() == 0.0 and sweep.losses[0] == min(sweep.losses) < 0 and len(strengths) == 4
    sweep.to_csv(tmp_path / "find.csv")
    assert (tmp_path / "find.csv").read_text().splitlines()[1] == f"0.0,{-sweep.losses[0]}"
    both = find_strength(Net(), L2(1.0), batches(), data(24), seeds=2, **how)
    one, other = (find_strength(Net(), L2(1.0), batches(), data(24), seed=k, **how) for k in (0, 1))
    assert both.losses == pytest.approx([(a + b) / 2 for a, b in zip(one.losses, other.losses, strict=True)])


def test_the_range_fits_the_penalty_and_is_left_upwards() -> None:
    how: Any = {"points": 3, "epochs": 1, "trainer": QUIET}
    falling = iter(range(20, 0, -1))  # the higher the better
    with pytest.warns(UserWarning, match="is the highest tried"):
        sweep = find_strength(
            Net(), L2(1.0), data(), data(24), apply="decoupled", score=lambda *_: -float(next(falling)), **how
        )
    assert sweep.values == pytest.approx([0.0, 1e-3, 0.1, 10.0, 1e3, 1e5, 1e7, 1e9])
    l1 = find_strength(Net(), L1(1.0), data(), data(24), **how)
    top = lambda_max(Net(), L1(1.0), data(), convex=False)
    assert l1.values[1] == pytest.approx(1e-4 * top) and l1.values[3] == pytest.approx(top)


def test_what_cannot_be_trained_or_is_no_penalty_is_named() -> None:
    for search in (find_strength, regularization_path):
        with pytest.raises(
            TypeError, match="Linear has no training_step; wrap it, as in RegularizedRegressor"
        ):
            search(nn.Linear(10, 1), L1(0.0), data(), validation=data(24))  # type: ignore[operator]
    with pytest.raises(TypeError, match=r"it holds one: give L2\(strength=0.1"):
        find_strength(Net(), L2PenaltyCallback(0.1), data(), data())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="options have 'rates', which find_strength lacks"):
        StrengthFinder(options={"rates": 3})


def test_the_finder_says_what_it_chose(caplog: pytest.LogCaptureFixture, capfd: Any) -> None:
    finder = StrengthFinder(options=SHORT)
    trainer = pl.Trainer(callbacks=[L2PenaltyCallback(1e-3), finder], max_epochs=1, **QUIET)
    with caplog.at_level("INFO"):
        trainer.fit(Validated(), DataLoader(data(), 16), DataLoader(data(24), 8))
    assert (
        f"StrengthFinder: strength {finder.suggestion:.3g}, validation loss"
        in caplog.text + capfd.readouterr().err
    )


def test_an_end_of_the_range_is_remarked_on() -> None:
    strengths, falling = [1e-4, 1e-3, 1e-2, 1e-1], [4.0, 3.0, 2.0, 1.0]
    remark = Sweep("strength", strengths, falling).remark()
    assert remark == (
        "the strength suggested, 0.1, is the highest tried, and a higher one may be better; raise highest="
    )
    remark = Sweep("strength", strengths, falling[::-1]).remark()
    assert remark is not None and "0.0001, is the lowest tried, and a lower one, or none," in remark
    assert Sweep("strength", strengths, [2.0, 1.0, 1.0, 2.0]).remark() is None
    assert Sweep("rate", [0.0, 0.4, 0.8], [1.0, 2.0, 4.0]).remark() is None, "no dropout is an answer"
    assert Sweep("rate", [0.0, 0.4, 0.8], [4.0, 2.0, 1.0]).remark() is not None
    assert Sweep("rate", [0.0, 0.4, 0.8], [math.nan] * 3).remark() is None


class Digits(pl.LightningModule):
    """A small network that overfits two hundred digits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def digits(seed: int) -> tuple[Digits, TensorDataset, TensorDataset]:
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, labels = datasets.load_digits(return_X_y=True)
    pixels, labels = torch.tensor(pixels / 16.0, dtype=torch.float32), torch.tensor(labels)
    torch.manual_seed(seed)
    order = torch.randperm(len(labels))
    split = [TensorDataset(pixels[part], labels[part]) for part in (order[:200], order[200:])]
    return Digits(), split[0], split[1]


GRID = [1e-4 * 1e4 ** (i / 19) for i in range(20)]


def best_of_the_grid(module: Digits, train: TensorDataset, validation: TensorDataset, seed: int) -> float:
    """Train at every strength with a loop written by hand: a copy of the network for each, side by side."""
    strengths = torch.tensor(GRID)[:, None, None]
    copies = [torch.stack([p.detach()] * len(GRID)).requires_grad_() for p in module.parameters()]
    weight, bias, weight2, bias2 = copies
    optimizer = torch.optim.Adam(copies, lr=1e-2)

    def losses(x: Tensor, y: Tensor) -> Tensor:
        hidden = (x @ weight.mT + bias[:, None]).relu()
        scores = (hidden @ weight2.mT + bias2[:, None]).transpose(1, 2)
        return nn.functional.cross_entropy(scores, y.expand(len(GRID), -1), reduction="none").mean(1)

    torch.manual_seed(seed)
    for _ in range(120):
        for batch in TensorBatches(train, 30):
            optimizer.zero_grad()
            losses(*batch).sum().backward()
            for penalized in (weight, weight2):
                penalized.grad.add_(penalized.detach() * strengths)
            optimizer.step()
    with torch.no_grad():
        return GRID[int(losses(*validation.tensors).argmin())]


@pytest.mark.slow
@pytest.mark.parametrize("seed", part_of([10, 11, 12, 13, 14], 5, turn()))
def test_the_suggestion_on_digits_is_near_the_best_of_a_grid(seed: int) -> None:
    module, train, validation = digits(seed)
    best = best_of_the_grid(module, train, validation, seed)
    sweep = find_strength(module, L2(1.0), train, validation, batch_size=30, seed=seed + 100, trainer=QUIET)
    ratio = sweep.suggestion() / best
    print(f"seed {seed}: suggestion {sweep.suggestion():.2e}, best {best:.2e}, ratio {ratio:.2f}")
    assert 1 / 3 <= ratio <= 3


def test_a_sweep_in_double_precision() -> None:
    def losses(dtype: torch.dtype, **trainer: Any) -> list[float]:
        module, examples = Net().to(dtype), data()
        if dtype == torch.float64:
            examples = TensorDataset(*(tensor.double() for tensor in examples.tensors))
        options: Any = {"points": 3, "epochs": 2, "trainer": {"accelerator": "cpu", **trainer}}
        return find_strength(module, L2(1.0), examples, examples, **options).losses

    assert losses(torch.float32, precision="64-true") == losses(torch.float64)
