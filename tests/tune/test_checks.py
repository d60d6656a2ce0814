"""What the functions of tune are given by mistake, and the sentence that says so before they train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lightning_reg import L1, L2
from lightning_reg.callbacks import DropoutFinder, L1PenaltyCallback, MaxNorm, StrengthFinder
from lightning_reg.tune import (
    compare,
    find_dropout,
    find_strength,
    regularization_path,
    stability_selection,
    strength_study,
)
from tests.support import Net, data

PENALISED = (find_strength, regularization_path, stability_selection)


def strength(**options: Any) -> Any:
    return find_strength(Net(), L2(0.0), data(), data(), **options)


@pytest.mark.parametrize("search", PENALISED, ids=lambda search: search.__name__)
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (L1PenaltyCallback(0.1), r"it holds one: give L1\(strength=0.1"),
        (L1, r"the class L1 is none; it is the class: give L1\(0.0\)"),
        ("l1", r"'l1' is none; give one such as L1\(0.0\)"),
        (MaxNorm(1.0), r"give one such as L1"),
        ([L1(0.0), L2(0.0)], r"call it for each, or use compare"),
    ],
    ids=str,
)
def test_what_is_not_one_penalty_is_named(search: Any, given: Any, sentence: str) -> None:
    with pytest.raises(TypeError, match=rf"{search.__name__} takes one penalty, and .*{sentence}"):
        search(Net(), given, data(), **({"validation": data()} if search is find_strength else {}))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: strength(epochs=1.5), "epochs=1.5 is not a whole number; give one, 1 or more"),
        (lambda: strength(seeds=[0, 1]), r"seeds=\[0, 1\] is not a whole number"),
        (lambda: strength(seeds=0), "seeds=0 is too few; give 1 or more"),
        (lambda: strength(points=2), "points=2 is too few; give 3 or more"),
        (lambda: strength(lowest=1.0, highest=0.1), "lowest=1.0, highest=0.1 make no sweep"),
        (lambda: strength(trainer=pl.Trainer), "trainer=the class Trainer is not a dict of options"),
        (lambda: strength(score="accuracy"), "score='accuracy' is not a function"),
        (
            lambda: strength(epochs=1, points=3, score=lambda module: 1.0),
            r"failed on a module; it is called as score\(module, batches\)",
        ),
        (
            lambda: strength(epochs=1, points=3, score=lambda module, batches: None),
            "returned None, which is not a number",
        ),
        (
            lambda: find_strength(Net, L1(0.0), data(), data()),  # type: ignore[arg-type]
            r"find_strength trains a LightningModule, and got the class Net; give Net\(...\)$",
        ),
        (lambda: find_dropout(Net, data(), data()), r"got the class Net; give Net\(...\)$"),  # type: ignore[arg-type]
        (lambda: find_dropout(Net(), data(), data(), highest=1.0), "highest=1.0 makes no sweep"),
        (lambda: compare("net", None, data(), data()), "got 'net'; give an instance, or a function"),  # type: ignore[arg-type]
        (
            lambda: compare(lambda: nn.Linear(2, 1), None, data(), data()),
            "compare trains a LightningModule, and Linear has no training_step; wrap it",
        ),
        (lambda: compare(Net, None, data(), data(), seeds=[0]), r"seeds=\[0\] is not a whole number"),  # type: ignore[arg-type]
        (lambda: compare(Net, None, data(), data(), trainer=[]), r"trainer=\[\] is not a dict"),  # type: ignore[arg-type]
        (lambda: regularization_path(Net(), L1(0.0), data(), max_epochs=0), "max_epochs=0 is too few"),
        (lambda: strength_study(max, ["l1"]), r"strengths=\['l1'\] is no dict of ranges"),  # type: ignore[arg-type]
        (
            lambda: strength_study(max, {"l1": (1e-2, 1e-6)}),
            r"strengths\['l1'\]=.* is no range; give 0 < lowest",
        ),
        (lambda: strength_study(max, {"l1": (0.0, 1.0)}), "is no range; give 0 < lowest"),  # type: ignore[arg-type]
        (lambda: strength_study(max, {}, {"p": (0.6, 0.0)}), r"rates\['p'\]=.* give 0 <= lowest"),  # type: ignore[arg-type]
        (lambda: StrengthFinder(L1(0.0)), r"is neither True nor False; what it searches for is in the run"),  # type: ignore[arg-type]
        (lambda: StrengthFinder(options=["points"]), r"options=\['points'\] is no dict"),  # type: ignore[arg-type]
        (lambda: StrengthFinder(options={"points": 2}), "points=2 is too few"),
        (lambda: StrengthFinder(options={"apply": "loss"}), "options have 'apply', which the run gives"),
        (lambda: DropoutFinder(options={"highest": 1.5}), "highest=1.5 makes no sweep"),
        (lambda: DropoutFinder(options={"module": 1}), "options have 'module', which the run gives"),
        (lambda: DropoutFinder(options={"penalty": 1}), "options have 'penalty', which find_dropout lacks"),
    ],
)
def test_a_mistake_is_one_sentence(call: Callable[[], Any], sentence: str) -> None:
    torch.manual_seed(0)
    with pytest.raises((TypeError, ValueError), match=sentence) as said:
        call()
    assert "\n" not in str(said.value) and len(str(said.value)) < 320
