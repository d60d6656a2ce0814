"""Watched numbers behave in any expression as the numbers they are equal to."""

import json
import math
import operator

import numpy as np
import pytest
import torch

from lightning_reg.dropout.watched import is_watched, plain, wanted, watched

EXPRESSIONS = {
    "log": np.log,
    "maximum": lambda p: np.maximum(p, 0.1),
    "clip": lambda p: np.clip(p, 0, 1),
    "multiply": lambda p: np.multiply(np.ones(2), p),
    "array times": lambda p: 1 - np.ones(2) * p,
    "array in place": lambda p: operator.imul(np.ones(2), p),
    "full": lambda p: np.full(2, p),
    "array of": lambda p: np.array([p, 1]),
    "linspace": lambda p: np.linspace(0, p, 3),
    "choice": lambda p: np.random.default_rng(0).choice(2, size=3, p=[p, 1 - p]),
    "binomial": lambda p: np.random.default_rng(0).binomial(1, 1 - p, 3),
    "less": lambda p: np.less(np.arange(3) / 4, p),
    "times numpy's": lambda p: np.float64(2) * p + np.float32(1),
    "numpy's less": lambda p: np.float32(0.1) < p,
    "array less": lambda p: np.arange(3) / 4 < p,
    "less array": lambda p: p <= np.arange(3) / 4,
    "numpy's from": lambda p: np.where(np.arange(3) / 4 >= p, 0, 1),
    "root": lambda p: math.sqrt(1 - p),
    "power": lambda p: p**2 // 0.01 + p % 0.1,
    "whole": lambda p: (int(10 * p), round(10 * p), math.ceil(p), math.floor(p)),
    "rounded": lambda p: round(p, 1),
    "text": lambda p: f"{p:.2f} {p}",
    "key": lambda p: {p: 1}[p],
    "least": lambda p: (min(0.9, p), max(p, 0.1), sum([p, p])),
    "equal": lambda p: (p == 0.25, bool(p), complex(p)),
    "torch": lambda p: (torch.tensor(p) + torch.linspace(0, p, 3)).tolist(),
}


class Observer:
    def __init__(self, rate=False):
        self.rate, self.others = rate, []

    def compared(self, site, other):
        self.others.append(type(other))
        return self.rate

    def converted(self, site, value):
        pass


@pytest.mark.parametrize(
    "number", [0.25, np.float64(0.25), np.float32(0.25), 1], ids=lambda n: type(n).__name__
)
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expressions_are_those_of_the_number(name, number):
    result = EXPRESSIONS[name](watched(number, 0, Observer(), wanted=0.5))
    expected = EXPRESSIONS[name](number)
    if isinstance(expected, np.ndarray):
        assert np.array_equal(result, expected) and result.dtype == expected.dtype
    else:
        assert plain(result) == expected


def test_json_writes_the_number():
    assert json.dumps(watched(0.25, 0, Observer())) == "0.25"


@pytest.mark.parametrize("number", [0.25, np.float64(0.25), np.float32(0.25)], ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("name", ["less", "array less", "less array", "numpy's from", "numpy's less"])
def test_a_comparison_by_numpy_is_told_and_made_with_the_rate_wanted(name, number):
    if name == "less" and type(number) is float:
        pytest.skip("a function of numpy's takes Python's floats as they are")
    observer = Observer(rate=True)
    result = EXPRESSIONS[name](watched(number, 0, observer, wanted=0.6))
    assert np.array_equal(result, EXPRESSIONS[name](0.6)) and len(observer.others) == 1


@pytest.mark.parametrize("number", [0.25, np.float64(0.25), 1], ids=lambda n: type(n).__name__)
def test_arithmetic_takes_the_rate_wanted_along(number):
    for result in (
        1 - watched(number, 0, Observer(), wanted=0.6) * 0.5,
        -watched(number, 0, Observer(), wanted=-0.7),
    ):
        assert is_watched(result) and wanted(result) == pytest.approx(0.7)
