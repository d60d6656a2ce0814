"""DropoutTrainerCallback: the share dropped follows the Trainer's clock, also in a resumed run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from lightning_reg import Linear
from lightning_reg.hosts.hugging_face_dropout import DropoutTrainerCallback

pytestmark = pytest.mark.filterwarnings("ignore")

EXAMPLES = [{"x": torch.ones(4), "labels": torch.ones(1)} for _ in range(32)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin, self.drop, self.last = nn.Linear(4, 1000), nn.Dropout(0.1), nn.Linear(1000, 1)
        self.hidden_drop = 0.1
        self.shares: list[tuple[float, float]] = []

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        first = self.drop(torch.ones(x.shape[0], 1000))
        second = nn.functional.dropout(self.lin(x), self.hidden_drop, self.training)
        if self.training:
            self.shares.append(tuple(float((out == 0).float().mean()) for out in (first, second)))
        output = self.last(second)
        return {"loss": nn.functional.mse_loss(output, labels), "logits": output}


def run(folder: Path, model: nn.Module, *callbacks: TrainerCallback, **options: Any) -> Trainer:
    defaults = {
        "use_cpu": True,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return Trainer(
        model,
        TrainingArguments(str(folder), **{**defaults, **options}),
        train_dataset=EXAMPLES,
        eval_dataset=EXAMPLES,
        callbacks=list(callbacks),
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_share_follows_the_trainers_clock_and_the_rates_are_put_back(
    accumulate: int, tmp_path: Path
) -> None:
    net, callback = Net(), DropoutTrainerCallback(Linear(0.0, 0.8))
    run(tmp_path, net, callback, gradient_accumulation_steps=accumulate, eval_strategy="epoch").train()
    steps = 8 // accumulate
    expected = [0.8 * (i // accumulate) / steps for i in range(8)]
    assert [known for known, _ in net.shares] == pytest.approx(expected, abs=0.03)
    found = [found for _, found in net.shares[accumulate:]]  # the first step shows that it is a rate
    assert found == pytest.approx(expected[accumulate:], abs=0.03)
    assert (net.drop.p, net.hidden_drop, type(net.drop), type(net)) == (0.1, 0.1, nn.Dropout, Net)
    assert callback.report is not None and callback.report.complete


def test_a_resumed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    whole, callback = Net(), DropoutTrainerCallback(Linear(0.0, 0.8))
    run(tmp_path, whole, callback, save_strategy="steps", save_steps=3).train()
    resumed = Net()
    again = run(tmp_path, resumed, DropoutTrainerCallback(Linear(0.0, 0.8)))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert [known for known, _ in resumed.shares] == pytest.approx([0.1 * i for i in range(3, 8)], abs=0.03)


def test_a_run_that_fails_is_undone_by_remove_and_by_the_next(tmp_path: Path) -> None:
    class Fail(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            raise ArithmeticError("on purpose")

    net, callback = Net(), DropoutTrainerCallback(0.7)
    failing = run(tmp_path, net, callback, Fail())
    with pytest.raises(ArithmeticError):
        failing.train()
    assert net.drop.p == 0.7
    callback.remove()
    assert (net.drop.p, type(net.drop)) == (0.1, nn.Dropout)
    with pytest.raises(ValueError, match="between 0 and 1"):
        run(tmp_path, Net(), DropoutTrainerCallback(1.5)).train()


def test_a_transformer_is_steered_from_the_first_step(tmp_path: Path) -> None:
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    net = BertForSequenceClassification(BertConfig(vocab_size=50, **sizes))
    examples = [{"input_ids": torch.arange(6), "labels": torch.tensor(1)} for _ in range(8)]
    callback = DropoutTrainerCallback(0.3, select="built")
    seen = []

    class See(TrainerCallback):
        def on_step_end(self, *args: Any, model: Any, **kwargs: Any) -> None:
            seen.append({m.p for m in model.modules() if isinstance(m, nn.Dropout)})

    trainer = run(tmp_path, net, callback, See(), num_train_epochs=1)
    trainer.train_dataset = examples
    trainer.train()
    assert seen == [{0.3}] and callback.report is not None and callback.report.complete
    assert {m.p for m in net.modules() if isinstance(m, nn.Dropout)} == {0.1}
