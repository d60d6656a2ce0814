"""PenaltyTrainerCallback ≡ the same Trainer with the term in the model's loss, or a plain loop."""

from __future__ import annotations

import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from lightning_reg import L1, L2, L2SP, Coupled, GroupLasso, Linear, Penalty, TargetSparsity, attach
from lightning_reg.hosts.hugging_face import PenaltyTrainerCallback
from tests.support import data, network, relative, weights
from tests.turns import part_of, turn

pytestmark = pytest.mark.filterwarnings("ignore")

SCHEDULED = L1(Linear(0.1, 0.5))
COUPLED = GroupLasso(0.3, groups=Coupled([{"net.0.weight": "rows", "net.0.bias": "rows"}]))
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


class Net(nn.Module):
    """A model as the Trainer likes it, with a term in its loss if there is one."""

    def __init__(self, dtype: torch.dtype = torch.float64, term: Penalty | None = None) -> None:
        super().__init__()
        self.net = network().to(dtype)
        self.term, self.clock = term, (0, 1)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        output = self.net(x)
        loss = nn.functional.mse_loss(output, labels)
        if self.term is not None:
            loss = loss + self.term(self, *self.clock)
        return {"loss": loss, "logits": output}


class Clock(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        model.clock = state.global_step, state.max_steps


class InOrder(Trainer):
    def get_train_dataloader(self) -> DataLoader:
        size = self.args.per_device_train_batch_size
        return self.accelerator.prepare(DataLoader(self.train_dataset, size, collate_fn=self.data_collator))


def examples(dtype: torch.dtype = torch.float64, size: int = 64) -> list[dict[str, Tensor]]:
    x, y = data(size, torch.float64).tensors
    return [{"x": a, "labels": b} for a, b in zip(x.to(dtype), y.to(dtype), strict=True)]


def trainer(folder: Path, model: nn.Module, *callbacks: TrainerCallback, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "use_cpu": True,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.02,
        "weight_decay": 0.0,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
    }
    dtype = next(model.parameters()).dtype
    return InOrder(
        model,
        TrainingArguments(str(folder), **{**defaults, **options}),
        train_dataset=examples(dtype),
        callbacks=list(callbacks),
    )


def trained(run: Trainer, **options: Any) -> Tensor:
    run.train(**options)
    return weights(run.model)


def hooks(model: nn.Module, optimizer: Any) -> int:
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    on_steps = len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)
    return on_steps + sum(len(p._post_accumulate_grad_hooks or {}) for p in model.parameters())


#: 8 batches an epoch: the last window of three is cut short. Every fifth has both of each.
IN_THE_LOSS = list(itertools.product([SCHEDULED, COUPLED], [1, 3], [0.0, 0.3], TOLERANCE))


@pytest.mark.parametrize(
    ("penalty", "accumulate", "clip", "dtype"), part_of(IN_THE_LOSS, 5, turn()), ids=repr
)
def test_gradient_is_the_term_in_the_models_loss(
    penalty: Penalty, accumulate: int, clip: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    options = {"gradient_accumulation_steps": accumulate, "max_grad_norm": clip}
    attached = trainer(tmp_path, Net(dtype), PenaltyTrainerCallback(penalty), **options)
    in_loss = trainer(tmp_path, Net(dtype, penalty), Clock(), **options)
    got, expected = trained(attached), trained(in_loss)
    assert relative(got, expected) < TOLERANCE[dtype]
    assert relative(trained(trainer(tmp_path, Net(dtype), **options)), expected) > 1e-3, "it must matter"
    norms = [[entry["grad_norm"] for entry in run.state.log_history[:-1]] for run in (attached, in_loss)]
    if clip:  # the norm that is clipped is that of the sum
        assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert hooks(attached.model, attached.optimizer) == 0


@pytest.mark.parametrize(
    ("apply", "accumulate", "clip"),
    part_of(list(itertools.product(["decoupled", "proximal"], [1, 4], [0.0, 0.3])), 3, turn()),
)
def test_the_other_modes_are_those_of_a_plain_loop(
    apply: Any, accumulate: int, clip: float, tmp_path: Path
) -> None:
    callback = PenaltyTrainerCallback(SCHEDULED, apply)
    options = {"gradient_accumulation_steps": accumulate, "max_grad_norm": clip}
    got = trained(run := trainer(tmp_path, Net(), callback, **options))

    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.0)
    steps = 3 * 8 // accumulate
    schedule = LambdaLR(optimizer, lambda step: (steps - step) / steps)  # the Trainer's default
    handle = attach(model, optimizer, SCHEDULED, apply, total_steps=steps)
    for _ in range(3):
        for i, batch in enumerate(DataLoader(examples(), 8)):
            (model(**batch)["loss"] / accumulate).backward()
            if (i + 1) % accumulate == 0:
                if clip:
                    with handle.clipping():
                        nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    assert relative(got, weights(model)) < 1e-12
    assert hooks(run.model, run.optimizer) == 0


def test_two_callbacks_add_up_and_are_logged_apart(tmp_path: Path) -> None:
    class Both(Net):
        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            output = super().forward(x, labels)
            return {**output, "loss": output["loss"] + L2(0.1, select="all")(self) + L1(0.01)(self)}

    callbacks = [PenaltyTrainerCallback(p) for p in (L2(0.1, select="all"), SCHEDULED, L1(0.01))]
    run = trainer(tmp_path, Net(), *callbacks)
    got = trained(run)
    assert relative(got, trained(trainer(tmp_path, Both(term=SCHEDULED), Clock()))) < 1e-12
    last = run.state.log_history[-2]
    assert last["penalty/l2"] == pytest.approx(float(L2(0.1, select="all")(run.model)))
    assert last["penalty/l1"] == pytest.approx(float(SCHEDULED(run.model, 24, 24)))
    assert last["penalty/l1/strength"] == pytest.approx(0.5)
    assert last["penalty/l1_2"] == pytest.approx(float(L1(0.01)(run.model)))
    assert not any("penalty" in key for key in run.state.log_history[-1])  # the run's summary


class Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step == 13


RESUMED = [
    (SCHEDULED, "gradient"),
    (SCHEDULED, "decoupled"),
    (SCHEDULED, "proximal"),
    (L1(TargetSparsity(0.5, until=0.6)), "proximal"),
    (L2SP(1.0), "gradient"),
]


@pytest.mark.parametrize(
    ("saves", "penalty", "apply"),
    part_of([(saves, *case) for saves in ("steps", "epoch") for case in RESUMED], 3, turn()),
    ids=repr,
)
def test_resumed_is_uninterrupted(penalty: Penalty, apply: Any, saves: str, tmp_path: Path) -> None:
    options = {"save_strategy": saves, "save_steps": 5}
    whole = trained(trainer(tmp_path / "whole", Net(), PenaltyTrainerCallback(penalty, apply), **options))
    trained(trainer(tmp_path / "part", Net(), PenaltyTrainerCallback(penalty, apply), Stop(), **options))
    again = trainer(tmp_path / "part", Net(), PenaltyTrainerCallback(penalty, apply), **options)
    resumed = trained(again, resume_from_checkpoint=True)
    assert torch.equal(resumed, whole)
    state = json.loads((tmp_path / "part" / "checkpoint-24" / "trainer_state.json").read_text())
    assert set(state["stateful_callbacks"]) <= {"TrainerControl", "lightning_reg"}
    model = Net()  # and a run without the callback takes it as well
    trained(trainer(tmp_path / "part", model, **options), resume_from_checkpoint=True)


def test_a_checkpoint_that_holds_nothing_of_the_penalty(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 5}
    trained(trainer(tmp_path, Net(), Stop(), **options))
    run = trainer(tmp_path, Net(), PenaltyTrainerCallback(L2SP(1.0)), **options)
    with pytest.warns(
        UserWarning, match="the checkpoint holds nothing of l2_sp, which starts afresh at step 10"
    ):
        run.train(resume_from_checkpoint=True)


def test_an_error_in_training_then_training_again(tmp_path: Path) -> None:
    class Fails(TrainerCallback):
        def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                raise RuntimeError("mid-window")

    callback = PenaltyTrainerCallback(SCHEDULED)
    run = trainer(tmp_path, Net(), callback, Fails(), gradient_accumulation_steps=2)
    with pytest.raises(RuntimeError, match="mid-window"):
        run.train()
    run.remove_callback(Fails)
    run.model.load_state_dict(Net().state_dict())
    run.create_optimizer_and_scheduler = None  # type: ignore[assignment]
    run.optimizer = None
    run.train()
    fresh = trained(
        trainer(tmp_path, Net(), PenaltyTrainerCallback(SCHEDULED), gradient_accumulation_steps=2)
    )
    assert relative(weights(run.model), fresh) < 1e-12
    assert hooks(run.model, run.optimizer) == 0


def test_an_epoch_that_stops_inside_an_accumulation_window(tmp_path: Path) -> None:
    class StopOnce(TrainerCallback):
        stopped = False

        def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_epoch_stop = state.global_step == 1 and not self.stopped
            self.stopped |= control.should_epoch_stop

    seen: list[Tensor] = []

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
            seen.append(model.net[0].weight.grad.clone())

    options = {"gradient_accumulation_steps": 4, "max_grad_norm": 1e6}
    for callbacks in ([PenaltyTrainerCallback(L1(100.0))], []):
        trained(trainer(tmp_path, Net(), *callbacks, StopOnce(), Look(), **options))
    with_term, without = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert len(without) == 5, "of 6 steps one was never taken"
    for a, b in zip(with_term, without, strict=True):
        assert 90.0 < float((a - b).abs().median()) < 110.0, "the term comes once a step"


def test_bert(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    ids = torch.randint(0, 50, (32, 6), generator=torch.Generator().manual_seed(0))
    sentences = [{"input_ids": row, "labels": row[0] % 2} for row in ids]
    penalty = GroupLasso(0.5, select="bert.encoder.*.intermediate.*.weight", groups="rows")
    arguments = TrainingArguments(
        str(tmp_path),
        use_cpu=True,
        max_steps=30,
        learning_rate=1e-2,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=10,
    )
    callback = PenaltyTrainerCallback(penalty, "proximal", metric="euclidean")
    run = Trainer(model, arguments, train_dataset=sentences, callbacks=[callback])
    run.train()
    rows = torch.cat([layer.intermediate.dense.weight for layer in model.bert.encoder.layer])
    assert bool((rows == 0).all(1).any()), "whole units are gone"
    values = [entry["penalty/group_lasso"] for entry in run.state.log_history[:-1]]
    assert len(values) == 3 and min(values) > 0.0


# --- what is refused ---------------------------------------------------------------------------------


def test_the_loss_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"apply='loss' has nothing to add to.*use apply='gradient'"):
        PenaltyTrainerCallback(L1(0.1), "loss")


def test_what_is_refused_when_training_begins(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="matches none of the 4 parameters of Net"):
        trainer(tmp_path, Net(), PenaltyTrainerCallback(L1(0.1, select="nothing"))).train()
    big = Net()
    big.wide = nn.Linear(2**10, 2**10)
    with pytest.raises(ValueError, match=r"l2_sp keeps 4 MiB, too much.*reference="):
        trainer(tmp_path, big, PenaltyTrainerCallback(L2SP(0.1))).train()


class DeepSpeedOptimizerWrapper(AcceleratedOptimizer):
    """What Accelerate calls it."""


def test_deepspeed_is_refused(tmp_path: Path) -> None:
    class Shards(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, *, optimizer: Any, **_: Any) -> None:
            optimizer.__class__ = DeepSpeedOptimizerWrapper

    with pytest.raises(ValueError, match="DeepSpeed steps an optimizer of its own"):
        trainer(tmp_path, Net(), Shards(), PenaltyTrainerCallback(L1(0.1))).train()


def test_a_proximal_step_beside_clipping_in_several_processes_warns(tmp_path: Path) -> None:
    class InTwo(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            args.__class__ = type("InTwo", (TrainingArguments,), {"world_size": 2})

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            args.__class__ = TrainingArguments

    callbacks = [InTwo(), PenaltyTrainerCallback(L1(0.1), "proximal")]
    with pytest.warns(UserWarning, match="in 2 processes apply='proximal' does not see by how much"):
        trainer(tmp_path, Net(), *callbacks).train()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer(tmp_path, Net(), *callbacks, max_grad_norm=0.0).train()
    assert not [each for each in said if "processes" in str(each.message)]


def test_a_proximal_step_is_as_long_as_the_clipped_gradient(tmp_path: Path) -> None:
    """The Trainer clips to a norm of 1 unasked; with SGD each step is then shorter, by known factors."""
    model = Net()
    loop, start = Net(), {name: p.detach().clone() for name, p in model.named_parameters()}
    callbacks = [PenaltyTrainerCallback(L1(0.2), "proximal", dual_averaging=False)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    run = InOrder(
        model,
        TrainingArguments(
            str(tmp_path),
            use_cpu=True,
            max_steps=6,
            per_device_train_batch_size=16,
            max_grad_norm=0.5,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=examples(),
        callbacks=callbacks,
        optimizers=(optimizer, LambdaLR(optimizer, lambda step: 1.0)),
    )
    run.train()
    loop.load_state_dict(start)
    x, y = data(64, torch.float64).tensors
    factors = []
    for step in range(6):
        some = slice(16 * (step % 4), 16 * (step % 4) + 16)
        loop.zero_grad()
        loop(x[some], y[some])["loss"].backward()
        norm = nn.utils.clip_grad_norm_(loop.parameters(), 0.5)
        factors.append(min(1.0, 0.5 / (float(norm) + 1e-6)))
        with torch.no_grad():
            for name, p in loop.named_parameters():
                p.sub_(p.grad, alpha=0.02)
                if name.endswith("weight"):
                    p.copy_(p.sign() * (p.abs() - 0.02 * 0.2 * factors[-1]).clamp(min=0))
    assert max(factors) < 1.0
    assert relative(weights(model), weights(loop)) < 1e-6
