"""From ``L1PenaltyCallback(1e-4)`` to the weights: through how many files a step goes, traced.

A call is on the way if a weight, a gradient or the optimizer's state changes while it runs, or if it
returns a part of the loss. A call that changes nothing only answers a question (is there a schedule, which
tensors are chosen, which step does the optimizer take); its file counts as touched. The step traced comes
when what is done once, or looked at in the first steps, is done. To come back to the caller is no return;
to call into a file that is above in the stack, and is not the caller's, is one. The frame of a decorator
is no file on the way.

``python -m tests.hosts.test_way_of_a_step`` prints the table.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

import lightning_reg
from lightning_reg.callbacks import L1PenaltyCallback
from lightning_reg.tensors import grad_mode
from tests.support import QUIET

ROOT = Path(lightning_reg.__file__).resolve().parents[1]
DECORATOR = os.path.realpath(grad_mode.__file__)
#: The mode, and how many files a step may touch in all.
MODES: dict[str, tuple[dict[str, Any], int]] = {
    "gradient": ({}, 8),
    "loss": ({"apply": "loss"}, 13),
    "decoupled": ({"apply": "decoupled"}, 13),
    "proximal": ({"apply": "proximal"}, 29),
    "proximal, plain": ({"apply": "proximal", "dual_averaging": False}, 23),
}


@dataclass
class Call:
    """A call of ours: where it is, and the files of ours above it in the stack."""

    file: str
    above: tuple[str, ...]
    before: object
    on_the_way: bool = False


@dataclass
class Tracer(pl.Callback):
    """Notes the calls of one step."""

    at: int = 16
    calls: list[Call] = field(default_factory=list)
    _open: list[tuple[FrameType, Call]] = field(default_factory=list)

    def on_train_batch_start(self, trainer: Any, module: Any, *args: object) -> None:
        self._watched = module, trainer.optimizers
        if trainer.global_step == self.at:
            sys.setprofile(self._note)

    def on_train_batch_end(self, *args: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, value: object) -> None:
        if event not in ("call", "return"):
            return
        file = os.path.realpath(frame.f_code.co_filename)
        if file == DECORATOR or not file.startswith((f"{ROOT}/lightning_reg", f"{ROOT}/callbacks")):
            return
        if event == "call":
            above = tuple(call.file for _, call in self._open)
            call = Call(os.path.relpath(file, ROOT).removeprefix("lightning_reg/"), above, self._state())
            self.calls.append(call)
            self._open.append((frame, call))
        elif self._open and self._open[-1][0] is frame:
            _, call = self._open.pop()
            adds = isinstance(value, Tensor) and value.requires_grad and value.dim() == 0
            call.on_the_way = adds or self._state() != call.before

    def _state(self) -> list[tuple[int, int]]:
        """What changes when a tensor is written to."""
        module, optimizers = self._watched
        tensors = [t for p in module.parameters() for t in (p, p.grad) if t is not None]
        states = [state for optimizer in optimizers for state in optimizer.state.values()]
        tensors += [t for state in states for t in state.values() if isinstance(t, Tensor)]
        return [(id(tensor), tensor._version) for tensor in tensors]


class Net(pl.LightningModule):
    def __init__(self, optimizer: Any) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1))
        self.optimizer = optimizer

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.net(batch).square().mean()
        return loss

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


def calls_of_a_step(callback: pl.Callback, optimizer: Any) -> list[Call]:
    tracer = Tracer()
    trainer = pl.Trainer(max_steps=18, callbacks=[callback, tracer], **QUIET)
    trainer.fit(Net(optimizer), torch.randn(20, 8, 20))
    assert any(call.on_the_way for call in tracer.calls)
    return tracer.calls


def ups(calls: list[Call]) -> list[str]:
    """Calls on the way into a file that was left on the way down."""
    way = [call for call in calls if call.on_the_way and call.above]
    return [f"{c.above[-1]} → {c.file}" for c in way if c.file != c.above[-1] and c.file in c.above]


OPTIMIZERS = {"SGD": partial(torch.optim.SGD, lr=0.1), "Adam": partial(torch.optim.Adam, lr=0.1)}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("mode", MODES)
def test_a_step_goes_down_through_seven_files_at_most(mode: str, optimizer: str) -> None:
    options, touched = MODES[mode]
    calls = calls_of_a_step(L1PenaltyCallback(1e-4, **options), OPTIMIZERS[optimizer])
    way = list(dict.fromkeys(call.file for call in calls if call.on_the_way))
    assert len(way) <= 7, " → ".join(way)
    assert not ups(calls)
    assert len({call.file for call in calls}) <= touched, sorted({call.file for call in calls})


if __name__ == "__main__":
    for name, (options, _) in MODES.items():
        for label, optimizer in OPTIMIZERS.items():
            calls = calls_of_a_step(L1PenaltyCallback(1e-4, **options), optimizer)
            way = list(dict.fromkeys(call.file for call in calls if call.on_the_way))
            files = [call.file for call in calls]
            changes = sum(a != b for a, b in pairwise(files))
            print(f"{name}, {label}: {len(way)} files on the way, {len(ups(calls))} returns; touched in all")
            print(f"  {len(set(files))}, {changes} changes: {' → '.join(way)}")
