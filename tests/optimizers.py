"""The optimizers whose metric is known, in each of torch's implementations."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from torch import Tensor
from torch.optim import (
    ASGD,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
)


@dataclass(frozen=True)
class Variant:
    """An optimizer with its options; ``lr`` suits the standardised diabetes data."""

    optimizer: type[Optimizer]
    lr: float
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        options = "-".join(key if value is True else f"{key}={value}" for key, value in self.options.items())
        return f"{self.optimizer.__name__}-{options}" if options else self.optimizer.__name__

    def __call__(self, params: Iterable[Tensor], lr: float | None = None, **options: Any) -> Optimizer:
        return self.optimizer(params, lr=self.lr if lr is None else lr, **{**self.options, **options})


#: One way of each optimizer, and every option that changes its metric.
PLAIN = [
    Variant(SGD, 0.4),
    Variant(SGD, 0.1, {"momentum": 0.9}),
    Variant(SGD, 0.2, {"momentum": 0.9, "dampening": 0.5}),
    Variant(SGD, 0.1, {"momentum": 0.9, "nesterov": True}),
    Variant(Adam, 0.02),
    Variant(Adam, 0.02, {"amsgrad": True}),
    Variant(AdamW, 0.02, {"weight_decay": 0.0}),
    Variant(AdamW, 0.02, {"weight_decay": 0.0, "amsgrad": True}),
    Variant(NAdam, 0.02),
    Variant(RAdam, 0.02),
    Variant(Adagrad, 0.5),
    Variant(Adagrad, 0.5, {"lr_decay": 1e-3}),
    Variant(RMSprop, 0.005),
    Variant(RMSprop, 0.001, {"momentum": 0.9}),
    Variant(RMSprop, 0.005, {"centered": True}),
    Variant(RMSprop, 0.001, {"momentum": 0.9, "centered": True}),
    Variant(Adamax, 0.02),
    Variant(Adadelta, 10.0),
    Variant(ASGD, 0.4, {"lambd": 0.0}),
]
_FUSED = (SGD, Adam, AdamW, Adagrad)
_CAPTURABLE = (Adam, AdamW, NAdam, RAdam, RMSprop, Adamax, Adadelta, ASGD)


def _also(variant: Variant, **options: Any) -> Variant:
    return Variant(variant.optimizer, variant.lr, {**variant.options, **options})


FOREACH = [_also(variant, foreach=True) for variant in PLAIN]
FUSED = [_also(variant, fused=True) for variant in PLAIN if variant.optimizer in _FUSED]
CAPTURABLE = [_also(variant, capturable=True) for variant in PLAIN if variant.optimizer in _CAPTURABLE]
MAXIMIZE = [_also(variant, maximize=True) for variant in PLAIN]
EVERY = [*PLAIN, *FOREACH, *FUSED, *CAPTURABLE]


def allow_capturable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch run its capturable code on the CPU, which it can do and asserts that it is not asked to."""
    for name in {cls.__module__ for cls in _CAPTURABLE}:
        module = importlib.import_module(name)
        if hasattr(module, "_get_capturable_supported_devices"):
            monkeypatch.setattr(module, "_get_capturable_supported_devices", lambda **_: ["cpu", "cuda"])
