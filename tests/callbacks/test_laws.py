"""What every callback keeps: copies, two fits, no trace in the module, checkpoints for any run."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from torch import nn

from lightning_reg import callbacks as public
from tests.callbacks.cases import CASES, SEARCHES, Case
from tests.support import QUIET, STRICT, Net, batches, fit, weights

every_case = pytest.mark.parametrize("case", CASES, ids=str)


class Dropping(Net):
    """With a place that drops, and the losses that adaptive dropout reads."""

    def __init__(self) -> None:
        super().__init__()
        self.net.insert(2, nn.Dropout(0.2))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss)
        return loss


def run(*callbacks: Any) -> tuple[Dropping, pl.Trainer]:
    module = Dropping()
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = fit(module, *callbacks, steps=8)
    return module, trainer


def trace(module: nn.Module) -> list[Any]:
    return [
        (
            name,
            sorted(set(vars(part)) - {"_trainer"}),
            len(part._forward_hooks),
            len(part._forward_pre_hooks),
            len(part._backward_hooks),
            part.p if isinstance(part, nn.Dropout) else None,
        )
        for name, part in module.named_modules()
    ]


def test_every_public_callback_has_a_row() -> None:
    assert {case.name for case in CASES} | SEARCHES == set(public.__all__)


@every_case
def test_it_is_a_callback_of_both_namespaces(case: Case) -> None:
    assert isinstance(case.make(), pl.Callback) and isinstance(case.make(), pytorch_lightning.Callback)


@every_case
def test_a_copy_is_the_same_and_does_the_same(case: Case) -> None:
    made = case.make()
    expected = weights(run(made)[0])
    for other in (copy.deepcopy(made), copy.deepcopy(case.make())):
        assert repr(other) == repr(made) or " at 0x" in repr(made)
        assert torch.equal(weights(run(other)[0]), expected)
    assert torch.equal(weights(run(made)[0]), expected), "in a second fit too"


@every_case
def test_it_can_be_pickled(case: Case) -> None:
    other = pickle.loads(pickle.dumps(case.make()))
    assert torch.equal(weights(run(other)[0]), weights(run(case.make())[0]))


@every_case
def test_it_acts_and_leaves_no_trace(case: Case) -> None:
    module, _ = run(case.make())
    plain, _ = run()
    assert trace(module) == trace(plain)
    assert list(module.state_dict()) == list(plain.state_dict())
    assert not any(p._post_accumulate_grad_hooks for p in module.parameters())
    assert torch.equal(weights(module), weights(plain)) == (not case.acts)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # Lightning's, of one with a state
@every_case
def test_a_run_without_it_goes_on_from_its_checkpoint(case: Case, tmp_path: Path) -> None:
    module, trainer = run(case.make())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["state_dict"].keys() == module.state_dict().keys()
    plain = pl.Trainer(**QUIET, max_steps=10)
    plain.fit(Dropping(), batches(), ckpt_path=tmp_path / "last.ckpt", **STRICT)
    assert plain.global_step == 10
